# SPDX-License-Identifier: MIT
"""A streaming GGUF writer: sizes declared up front, data in order and in pieces, rename at the end.

The data goes to a partial file in the output's own directory, which becomes the output only when every
declared byte is on the disk. Whatever fails before, nothing is left behind. The partial file is locked while
it is written: a second writer to the same output is refused, what a killed one left is written over.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
from gguf import GGUFValueType
from gguf.gguf_writer import GGUFValue
from numpy.typing import NDArray

from gguf_tools.errors import LutraError
from gguf_tools.formats.family import CB_FORMATS, CHECKSUMS_KEY
from gguf_tools.interrupts import shielded
from gguf_tools.reader import MAGIC, SCALARS, tensor_nbytes, type_name

GGUF_VERSION = 3
ALIGNMENT = 64  # a cache line: strips are used straight from the mapping


@dataclass(frozen=True)
class TensorSpec:
    """A tensor to come: GGUF name, ggml type id, shape in numpy order, bytes of its data."""

    name: str
    type: int
    shape: tuple[int, ...]
    nbytes: int


def _string(text: str) -> bytes:
    data = text.encode("utf-8", "surrogateescape")
    return struct.pack("<Q", len(data)) + data


def _items(kind: GGUFValueType, values: Iterable[Any]) -> bytes:
    if kind == GGUFValueType.STRING:
        return b"".join(map(_string, values))
    values = list(values)
    return struct.pack(f"<{len(values)}{SCALARS[kind]}", *values)


def _value(value: GGUFValue) -> bytes:
    if value.type != GGUFValueType.ARRAY:
        return struct.pack("<I", value.type) + _items(value.type, [value.value])
    item = value.sub_type
    if item is None:  # the gguf package leaves it open: then the first item decides
        if len(value.value) == 0:
            raise ValueError("an empty array must say what it is an array of")
        is_bytes = isinstance(value.value, bytes)
        item = GGUFValueType.UINT8 if is_bytes else GGUFValueType.get_type(value.value[0])
    if item == GGUFValueType.ARRAY:
        raise ValueError("arrays of arrays are not supported")
    values = [v.decode("utf-8", "surrogateescape") if isinstance(v, bytes) else v for v in value.value]
    return struct.pack("<IIQ", value.type, item, len(values)) + _items(item, values)


# Linux sizes the pages of its cache by what one write brings, and the file is mapped from there: after
# writes of 8 KB the weights are read a fifth to a quarter slower than after these.
BUFFER_BYTES = 4 << 20


def file_bytes(metadata: Mapping[str, GGUFValue], tensors: Sequence[TensorSpec]) -> int:
    """Size of the file that ``GGUFWriter`` makes of these."""
    return len(_header(metadata, tensors)[0]) + sum(padded(spec.nbytes) for spec in tensors)


def padded(nbytes: int) -> int:
    """Bytes that a tensor's data takes in the file."""
    return nbytes + -nbytes % ALIGNMENT


def _header(metadata: Mapping[str, GGUFValue], tensors: Sequence[TensorSpec]) -> tuple[bytes, int | None]:
    """Everything before the data, and where the checksums go in it (zeros so far) if it has any."""
    metadata = {**metadata, "general.alignment": GGUFValue(ALIGNMENT, GGUFValueType.UINT32)}
    # Only here: a stock type's file may be made into another by tools that would keep the key as it is.
    if any(spec.type in CB_FORMATS for spec in tensors):
        kind = GGUFValueType.ARRAY, GGUFValueType.UINT32
        metadata.pop(CHECKSUMS_KEY, None)
        metadata[CHECKSUMS_KEY] = GGUFValue([0] * len(tensors), *kind)  # the last key, filled in at the end
    parts = [MAGIC, struct.pack("<IQQ", GGUF_VERSION, len(tensors), len(metadata))]
    for key, value in metadata.items():
        try:
            parts += _string(key), _value(value)
        except (struct.error, ValueError, TypeError, AttributeError, OverflowError) as error:
            raise ValueError(f"key {key!r} cannot be written as {value.type.name}: {error}") from None
    checksums_at = sum(map(len, parts)) - 4 * len(tensors) if CHECKSUMS_KEY in metadata else None
    offset = 0
    for spec in tensors:
        n = len(spec.shape)
        parts += _string(spec.name), struct.pack(f"<I{n}Q", n, *reversed(spec.shape))
        parts.append(struct.pack("<IQ", spec.type, offset))
        offset += padded(spec.nbytes)
    header = b"".join(parts)
    return header + bytes(-len(header) % ALIGNMENT), checksums_at


_KINDS = {
    stat.S_IFDIR: "directory",
    stat.S_IFCHR: "device",
    stat.S_IFBLK: "device",
    stat.S_IFIFO: "pipe",
    stat.S_IFSOCK: "socket",
}


def require_replaceable(path: str | Path) -> Path:
    """The file that an output to ``path`` makes or replaces: ``path``, or where it leads as a symbolic link.

    A regular file may be replaced, and a free name taken. Raises ``LutraError`` for a directory, and for a
    device, pipe or socket, which a rename would replace by a file.
    """
    path = Path(path)
    try:
        kind = stat.S_IFMT(path.stat().st_mode)
        if kind != stat.S_IFREG:
            raise LutraError(f"{path}: is a {_KINDS.get(kind, 'special file')}; name a file instead")
    except FileNotFoundError:
        pass  # a free name, or a link to one
    except OSError as error:
        raise LutraError(f"{path}: cannot be written: {error.strerror}; choose another place") from None
    return path.resolve() if path.is_symlink() else path


def _open_locked(path: Path) -> BinaryIO:
    """An empty file at ``path``, locked until it is closed. BlockingIOError while another writer has it."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        with contextlib.ExitStack() as stack:
            stack.callback(os.close, descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Its last writer may have renamed or removed it between the two lines above.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), path.lstat()):
                    os.ftruncate(descriptor, 0)
                    stack.pop_all()
                    return os.fdopen(descriptor, "wb", buffering=BUFFER_BYTES)


class GGUFWriter:
    """Writes one GGUF file; use as a context manager.

    ``metadata`` maps keys to ``GGUFValue`` of the gguf package; ``general.alignment`` is set to 64
    here, and a file with CB tensors gets the CRC-32 of each tensor's data. ``write`` takes the tensors'
    bytes in the declared order, cut anywhere; leaving the ``with`` block without an exception checks that
    all of them came and puts the file in its place: ``path``, or where it leads as a symbolic link.
    ``LutraError`` when the directory or disk refuses, when ``path`` is no file (``require_replaceable``),
    and while another writer is at work on it.
    """

    def __init__(
        self, path: str | Path, metadata: Mapping[str, GGUFValue], tensors: Iterable[TensorSpec]
    ) -> None:
        self.path = require_replaceable(path)
        self.tensors = list(tensors)
        self._partial = self.path.with_name(f".{self.path.name}.lutra-partial")
        self._index = 0  # tensor being written
        self._written = 0  # bytes of it
        self._checksums = [0] * len(self.tensors)
        self._check_specs()
        self._header, self._checksums_at = _header(metadata, self.tensors)
        self._file: BinaryIO | None = None

    def __enter__(self) -> GGUFWriter:
        try:
            self._open()
            return self
        except BaseException:  # a signal at the end of _open is raised here, too
            self._abort()
            raise

    @shielded
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind:
            self._abort()
            return
        try:
            self._finish()
        except BaseException:
            self._abort()
            raise

    def write(self, data: bytes | NDArray[Any]) -> None:
        """The next bytes of the current tensor; a complete tensor is padded and the next one begins."""
        view = (
            np.ascontiguousarray(data).reshape(-1).view(np.uint8).data
            if isinstance(data, np.ndarray)
            else data
        )
        spec = self.tensors[self._index] if self._index < len(self.tensors) else None
        if spec is None or self._written + len(view) > spec.nbytes:
            raise ValueError(f"more bytes than declared for {spec.name if spec else 'the file'!r}")
        assert self._file  # entered
        with self._disk_errors():
            self._file.write(view)
            self._checksums[self._index] = zlib.crc32(view, self._checksums[self._index])
            self._written += len(view)
            if self._written == spec.nbytes:
                self._file.write(bytes(-spec.nbytes % ALIGNMENT))
                self._index, self._written = self._index + 1, 0

    @shielded
    def _open(self) -> None:
        with self._disk_errors():
            self._file = _open_locked(self._partial)
            self._file.write(self._header)

    def _finish(self) -> None:
        """Flush to the disk, rename into place. ``ValueError`` when declared bytes are missing."""
        if self._index < len(self.tensors):
            spec = self.tensors[self._index]
            raise ValueError(f"{spec.name!r}: {self._written} of {spec.nbytes} bytes were written")
        assert self._file  # entered
        with self._disk_errors():
            if self._checksums_at is not None:
                self._file.seek(self._checksums_at)
                self._file.write(_items(GGUFValueType.UINT32, self._checksums))
            self._file.flush()
            os.fsync(self._file.fileno())
            os.replace(self._partial, self.path)
            self._file.close()

    @shielded
    def _abort(self) -> None:
        """Remove what was written."""
        if not self._file:
            return
        with contextlib.suppress(OSError):  # first, while it is locked: then it is no other writer's
            self._partial.unlink()
        with contextlib.suppress(OSError):  # closing flushes, and the disk may still be full
            self._file.close()

    def _check_specs(self) -> None:
        names: set[str] = set()
        for spec in self.tensors:
            if spec.name in names:
                raise ValueError(f"tensor {spec.name!r} is declared twice")
            names.add(spec.name)
            expected = tensor_nbytes(spec.type, spec.shape)
            if spec.nbytes != expected:
                kind = type_name(spec.type)
                raise ValueError(
                    f"{spec.name!r}: {kind} {spec.shape} takes {expected} bytes, not {spec.nbytes}"
                )

    @contextlib.contextmanager
    def _disk_errors(self) -> Iterator[None]:
        hint = "choose another place with -o"
        try:
            yield
        except BlockingIOError:
            raise LutraError(f"{self.path}: is being written by another process; {hint}") from None
        except OSError as error:
            raise LutraError(f"{self.path}: cannot be written: {error.strerror}; {hint}") from None
