# SPDX-License-Identifier: MIT
"""The kernel registry of libggml-base (cpu_kernels/include/lutra_kernels.h) through ctypes.

Arrays go in as numpy where a kernel is called; listing kernels needs no numpy.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gguf_tools.errors import LutraError
from gguf_tools.formats.family import CB_FORMATS
from lutra.runtime.native import load, load_backends
from lutra.runtime.paths import lib_dir

if TYPE_CHECKING:
    import numpy as np

    from gguf_tools.formats.codebook import Parts

OPS = ("gemv", "batch", "gemm", "dequantize", "quantize")  # enum lutra_op


class _Kernel(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char_p),
        ("op", ctypes.c_int),
        ("set", ctypes.c_int),
        ("type", ctypes.c_int32),
        ("function", ctypes.c_void_p),
    )


class _Column(ctypes.Structure):
    _fields_ = (("q", ctypes.c_void_p), ("d", ctypes.c_void_p), ("y", ctypes.c_void_p))


class _Weights(ctypes.Structure):
    _fields_ = (("strips", ctypes.c_void_p), ("second", ctypes.c_void_p), ("library", ctypes.c_void_p))


_I64, _INT, _PTR = ctypes.c_int64, ctypes.c_int, ctypes.c_void_p
_AT = ctypes.POINTER(_Weights)
_FUNCTIONS = {
    "gemv": ctypes.CFUNCTYPE(None, _I64, _I64, _AT, _PTR, _PTR, _PTR),
    "batch": ctypes.CFUNCTYPE(None, _I64, _I64, _AT, _I64, ctypes.POINTER(_Column)),
    "gemm": ctypes.CFUNCTYPE(None, _I64, _I64, _AT, _I64, ctypes.POINTER(_Column)),
    "dequantize": ctypes.CFUNCTYPE(None, _I64, _AT, _INT, _PTR),
    "quantize": ctypes.CFUNCTYPE(None, _I64, _PTR, _PTR, _PTR),
}


@dataclass(frozen=True)
class Kernel:
    """One kernel of this build.

    ``type`` is a ggml type id, for op "quantize" a super-block; ``chosen`` honours LUTRA_KERNELS.
    """

    name: str
    op: str
    set: str
    type: int
    supported: bool
    chosen: bool
    address: int


@functools.cache
def _registry() -> ctypes.CDLL:
    base = load("ggml-base")
    if not hasattr(base, "lutra_kernel_count"):
        raise LutraError(
            f"{base._name}: a ggml without Lutra's kernels; run 'pip install .' or set LUTRA_LIB_DIR"
        )
    base.lutra_kernel_at.restype = ctypes.POINTER(_Kernel)
    base.lutra_kernel_chosen.restype = ctypes.POINTER(_Kernel)
    base.lutra_kernel_chosen.argtypes = (ctypes.c_int, ctypes.c_int32)
    base.lutra_set_name.restype = ctypes.c_char_p
    base.lutra_set_supported.restype = ctypes.c_bool
    base.lutra_kernels_error.restype = ctypes.c_char_p
    return base


def require_obeyed_choice() -> None:
    """Raise LutraError when LUTRA_KERNELS asks for what this build or CPU does not have."""
    if error := _registry().lutra_kernels_error():
        raise LutraError(f"{error.decode()}; 'lutra info' lists the kernels")


def kernels() -> list[Kernel]:
    """Every kernel compiled into this build, in the registry's order."""
    require_obeyed_choice()
    registry = _registry()
    result = []
    for i in range(registry.lutra_kernel_count()):
        k = registry.lutra_kernel_at(i).contents
        chosen = registry.lutra_kernel_chosen(k.op, k.type)
        result.append(
            Kernel(
                name=k.name.decode(),
                op=OPS[k.op],
                set=registry.lutra_set_name(k.set).decode(),
                type=k.type,
                supported=registry.lutra_set_supported(k.set),
                chosen=bool(chosen) and chosen.contents.name == k.name,
                address=k.function,
            )
        )
    return result


def cpu_library() -> str:
    """File name of ggml's CPU code that this machine runs: of a portable build, the variant chosen."""
    load_backends()
    for path in sorted(lib_dir().glob("libggml-cpu*.so")):
        with contextlib.suppress(OSError):  # one that is not loaded
            ctypes.CDLL(str(path), mode=os.RTLD_NOLOAD | os.RTLD_LAZY)
            return path.name
    raise LutraError(f"{lib_dir()}: none of ggml's CPU libraries runs on this machine")


def sets() -> dict[str, list[str]]:
    """Instruction sets with kernels: "compiled" into this build, "supported" by this CPU, "chosen" now."""
    listed = kernels()
    return {
        "compiled": list(dict.fromkeys(k.set for k in listed)),
        "supported": list(dict.fromkeys(k.set for k in listed if k.supported)),
        "chosen": list(dict.fromkeys(k.set for k in listed if k.chosen)),
    }


def quantize(kernel: Kernel, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Quantize activations ``x`` float32 (k,) to q int8 (k,) and d float32 (k / super-block,)."""
    import numpy as np

    q = np.empty(x.size, np.int8)
    d = np.empty(x.size // kernel.type, np.float32)
    _FUNCTIONS["quantize"](kernel.address)(x.size, x.ctypes.data, q.ctypes.data, d.ctypes.data)
    return q, d


def gemv(kernel: Kernel, parts: Parts, q: np.ndarray, d: np.ndarray) -> np.ndarray:
    """y float32 (rows,) of whole strips times one quantized activation row."""
    import numpy as np

    strips = _strips(kernel, parts, q.size)
    y = np.empty(8 * strips, np.float32)
    arrays = (q, d, y)
    call = _FUNCTIONS["gemv"](kernel.address)
    call(q.size, strips, _weights(parts), *(a.ctypes.data for a in arrays))
    return y


def gemm(kernel: Kernel, parts: Parts, columns: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """y float32 (columns, rows) for activation rows ``columns``, each (q int8 (k,), d float32)."""
    import numpy as np

    k = columns[0][0].size
    strips = _strips(kernel, parts, k)
    y = np.empty((len(columns), 8 * strips), np.float32)
    array = (_Column * len(columns))(
        *(
            _Column(q.ctypes.data, d.ctypes.data, row.ctypes.data)
            for (q, d), row in zip(columns, y, strict=True)
        )
    )
    _FUNCTIONS["gemm"](kernel.address)(k, strips, _weights(parts), len(columns), array)
    return y


def dequantize(kernel: Kernel, parts: Parts, k: int) -> np.ndarray:
    """The 8 rows of the first strip as float32 (8, k)."""
    import numpy as np

    y = np.empty((8, k), np.float32)
    call = _FUNCTIONS["dequantize"](kernel.address)
    for row in range(8):
        call(k, _weights(parts), row, y[row].ctypes.data)
    return y


def _strips(kernel: Kernel, parts: Parts, k: int) -> int:
    fmt = CB_FORMATS[kernel.type]
    return parts.strips.size // (fmt.block_bytes * (k // fmt.sb))


def _weights(parts: Parts) -> _Weights:
    """Where the weights lie; ``parts`` must stay alive."""
    return _Weights(*(part.ctypes.data for part in (parts.strips, parts.second, parts.library)))
