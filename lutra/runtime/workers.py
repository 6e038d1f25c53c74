# SPDX-License-Identifier: MIT
"""Workers: other machines (``lutra worker``) that hold some of a model's layers and compute them.

ggml's RPC backend does the work. It ends the process when something is wrong, so everything that can be known
before is asked here first, over a connection of our own.
"""

from __future__ import annotations

import ctypes
import functools
import os
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gguf_tools.errors import LutraError
from lutra.runtime.native import load, load_backends

if TYPE_CHECKING:
    import socket

HOST, PORT = "127.0.0.1", 50052
_PATIENCE = 5.0  # seconds
_PROTOCOL = (7, 0)  # RPC_PROTO_MAJOR_VERSION, RPC_PROTO_MINOR_VERSION of ggml-rpc.h
_HELLO, _GET_ALLOC_SIZE = 14, 13  # enum rpc_cmd
_CAPABILITIES = 24  # bytes
_TENSOR = struct.Struct("<QIQ4I4II16ii10QQQQ64si")  # rpc_tensor
_SOURCES = 10  # GGML_MAX_SRC
_CPU_DEVICE = 0  # GGML_BACKEND_DEVICE_TYPE_CPU


def parse_workers(text: str) -> list[str]:
    """The workers "HOST:PORT" of "HOST[:PORT],...". Raises LutraError when it is no such list."""
    workers = []
    for word in text.split(","):
        host, colon, port = word.strip().partition(":")
        if not colon:
            port = str(PORT)
        if not host or not port.isdecimal() or not 0 < int(port) < 65536:
            raise LutraError(f"'{word}' is no worker; give HOST or HOST:PORT, an IPv4 address or a name")
        workers.append(f"{host}:{port}")
    if len(set(workers)) < len(workers):
        raise LutraError(f"'{text}' has a worker twice; a worker serves one connection at a time")
    return workers


def require_workers(workers: Sequence[str]) -> None:
    """Raise LutraError unless every worker "HOST:PORT" answers, speaks our protocol and knows our types."""
    if workers:
        import socket  # which a model on one machine does not need

    for worker in workers:
        host, _, port = worker.rpartition(":")
        try:
            with socket.create_connection((host, int(port)), _PATIENCE) as connection:
                _greet(worker, connection)
        except socket.gaierror:
            raise LutraError(f"worker {worker}: no machine has the name {host}; try its address") from None
        except ConnectionRefusedError:
            raise LutraError(
                f"worker {worker}: nobody listens there; start it with 'lutra worker --host ADDRESS "
                f"--port {port}' on that machine"
            ) from None
        except TimeoutError:
            raise LutraError(
                f"worker {worker}: no connection within {_PATIENCE:.0f} s; is the machine on, and does its "
                "firewall let the port through?"
            ) from None
        except OSError as error:
            raise LutraError(f"worker {worker}: {error.strerror or error}") from None


def _greet(worker: str, connection: socket.socket) -> None:
    try:
        hello = _ask(connection, _HELLO, bytes(_CAPABILITIES), 4 + _CAPABILITIES)
    except TimeoutError:
        raise LutraError(f"worker {worker}: busy; a worker serves one program at a time") from None
    if hello is None:
        raise LutraError(f"worker {worker}: what listens there is no worker, or one of another release")
    major, minor = hello[:2]
    if major != _PROTOCOL[0] or minor > _PROTOCOL[1]:
        raise LutraError(
            f"worker {worker}: speaks version {major}.{minor} of the protocol, this machine "
            f"{_PROTOCOL[0]}.{_PROTOCOL[1]}; install the same release of Lutra on both"
        )
    from gguf_tools.formats.family import CB_FORMATS, ROWS

    fmt = next(iter(CB_FORMATS.values()))
    k, row = fmt.sb, fmt.row_bytes(fmt.sb)
    tensor = _TENSOR.pack(1, fmt.type, 0, k, ROWS, 1, 1, row, row, ROWS * row, ROWS * row, *[0] * 31, b"", 0)
    size = _ask(connection, _GET_ALLOC_SIZE, bytes(4) + tensor + bytes(_SOURCES * _TENSOR.size), 8)
    if size is None or int.from_bytes(size, "little") != fmt.tensor_bytes(ROWS, k):
        raise LutraError(
            f"worker {worker}: does not know codebook types; start it with 'lutra worker' of this release"
        )


def _ask(connection: socket.socket, command: int, request: bytes, size: int) -> bytes | None:
    """The answer of ``size`` bytes to a request; None when there is another one or none."""
    connection.sendall(bytes([command]) + len(request).to_bytes(8, "little") + request)
    answer = b""
    while len(answer) < 8 + size:
        try:
            data = connection.recv(8 + size - len(answer))
        except ConnectionResetError:
            data = b""
        if not data:
            return None
        answer += data
        if int.from_bytes(answer[:8], "little") != size and len(answer) >= 8:
            return None
    return answer[8:]


def tool_arguments(path: Path, workers: Sequence[str]) -> list[str]:
    """The options that tell llama.cpp's tools of ``workers`` for a GGUF file. Raises LutraError, as above."""
    if not workers:
        return []
    require_workers(workers)
    devices = Devices(workers)
    try:
        return ["--rpc", ",".join(workers), "-ngl", str(devices.layers(path))]
    finally:
        devices.close()


# ---- devices -------------------------------------------------------------------------------


class Devices:
    """The workers as devices of llama.cpp, connected until ``close``."""

    def __init__(self, workers: Sequence[str]) -> None:
        self._ggml = ggml = _ggml()
        rpc = ggml.ggml_backend_reg_by_name(b"RPC")
        if not rpc:
            raise LutraError("this build has no workers; run 'pip install .' again")
        add = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_char_p)(
            ggml.ggml_backend_reg_get_proc_address(rpc, b"ggml_backend_rpc_add_server")
        )
        registers = [add(os.fsencode(worker)) for worker in workers]
        self._devices = [
            ggml.ggml_backend_reg_dev_get(register, i)
            for register in registers
            for i in range(ggml.ggml_backend_reg_dev_count(register))
        ]
        self._backends = [ggml.ggml_backend_dev_init(device, None) for device in self._devices]
        self._array = (ctypes.c_void_p * (len(self._devices) + 1))(*self._devices)  # ends with NULL

    @property
    def address(self) -> int:
        """Of the list, as llama_model_params has it."""
        return ctypes.addressof(self._array)

    def layers(self, path: Path) -> int:
        """How many layers of a GGUF file the workers take: by their part of all memory, at least one."""
        from gguf_tools.reader import (
            GGUFFile,
        )  # and numpy with it, which a model on one machine does not need

        with GGUFFile(path) as file:
            total = (
                int(file.get(f"{file.get('general.architecture')}.block_count") or 0) + 1
            )  # with the output
        theirs = sum(map(self._memory, self._devices))
        ours = self._memory(self._ggml.ggml_backend_dev_by_type(_CPU_DEVICE))
        return max(1, round(total * theirs / (theirs + ours)))

    def _memory(self, device: int) -> int:
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        self._ggml.ggml_backend_dev_memory(device, ctypes.byref(free), ctypes.byref(total))
        return total.value

    def close(self) -> None:
        """Let the workers go. Closing twice is fine."""
        for backend in self._backends:
            self._ggml.ggml_backend_free(backend)
        self._backends = []


@functools.cache
def _ggml() -> ctypes.CDLL:
    load_backends()
    ggml = load("ggml")
    size, pointer, text = ctypes.c_size_t, ctypes.c_void_p, ctypes.c_char_p
    signatures: dict[str, tuple[object, ...]] = {
        "reg_by_name": (pointer, text),
        "reg_get_proc_address": (pointer, pointer, text),
        "reg_dev_count": (size, pointer),
        "reg_dev_get": (pointer, pointer, size),
        "dev_by_type": (pointer, ctypes.c_int),
        "dev_init": (pointer, pointer, text),
        "dev_memory": (None, pointer, ctypes.POINTER(size), ctypes.POINTER(size)),
        "free": (None, pointer),
    }
    for name, (result, *arguments) in signatures.items():
        function = getattr(ggml, f"ggml_backend_{name}")
        function.restype, function.argtypes = result, arguments
    return ggml
