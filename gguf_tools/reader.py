# SPDX-License-Identifier: MIT
"""A strict GGUF reader: maps the file, checks every number in it, allocates only what the file backs.

The reader of the ``gguf`` package trusts the header and stops at type ids it does not know; this one
is for files from anywhere and knows the CB types. Every defect is a ``LutraError`` that names the
file and the key or tensor. GGUF versions 2 and 3 are read, little-endian only.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType
from gguf.gguf_writer import GGUFValue
from numpy.typing import NDArray

from gguf_tools.errors import LutraError
from gguf_tools.formats.family import CB_FORMATS
from gguf_tools.mapped import MappedFile

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
MAX_DIMS = 4
MAX_NAME = 63  # bytes; ggml keeps 64 with the final zero

# Scalar value types and their struct codes; strings and arrays are handled apart.
SCALARS: dict[GGUFValueType, str] = {
    GGUFValueType.UINT8: "B",
    GGUFValueType.INT8: "b",
    GGUFValueType.UINT16: "H",
    GGUFValueType.INT16: "h",
    GGUFValueType.UINT32: "I",
    GGUFValueType.INT32: "i",
    GGUFValueType.FLOAT32: "f",
    GGUFValueType.BOOL: "?",
    GGUFValueType.UINT64: "Q",
    GGUFValueType.INT64: "q",
    GGUFValueType.FLOAT64: "d",
}


# ggml types that the gguf package does not know yet: name, weights and bytes of a block, by id.
_LATER = {42: ("Q2_0", 64, 18)}


def type_name(type_id: int) -> str:
    """The name of a ggml type ("CB4", "F16"), or its number when nobody here knows it."""
    if type_id in CB_FORMATS:
        return CB_FORMATS[type_id].name
    if type_id in _LATER:
        return _LATER[type_id][0]
    try:
        return GGMLQuantizationType(type_id).name
    except ValueError:
        return str(type_id)


def type_id(name: str) -> int:
    """The ggml type of this name, as ``type_name`` has it. KeyError for others."""
    ids = {fmt.name: number for number, fmt in CB_FORMATS.items()}
    ids |= {later[0]: number for number, later in _LATER.items()}
    return ids[name] if name in ids else int(GGMLQuantizationType[name])


def block_size(type_id: int) -> tuple[int, int]:
    """Weights and bytes of a block of one of upstream's types. ``ValueError`` when it is unknown."""
    if type_id in _LATER:
        return _LATER[type_id][1:]
    try:
        return GGML_QUANT_SIZES[GGMLQuantizationType(type_id)]
    except (ValueError, KeyError):
        raise ValueError(f"ggml type {type_id} is unknown") from None


def tensor_nbytes(type_id: int, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor of ``shape`` (numpy order, rows last but one), a CB type's library included.

    ``ValueError`` when the type is unknown or the shape does not fit its blocks or strips.
    """
    k = shape[-1] if shape else 1
    rows = prod(shape[:-1])
    if fmt := CB_FORMATS.get(type_id):
        ne1 = shape[-2] if len(shape) > 1 else 1
        if k % fmt.sb or ne1 % 8:
            raise ValueError(
                f"{fmt.name} needs rows of a multiple of {fmt.sb} weights and 8 rows, not {shape}"
            )
        return fmt.tensor_bytes(rows, k)
    block, nbytes = block_size(type_id)
    if k % block:
        raise ValueError(f"{type_name(type_id)} needs rows of a multiple of {block} weights, not {k}")
    return rows * (k // block) * nbytes


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a file: ``shape`` in numpy order, ``offset`` from the start of the file."""

    name: str
    type: int
    shape: tuple[int, ...]
    offset: int
    nbytes: int

    @property
    def weights(self) -> int:
        """Number of weights."""
        return prod(self.shape)


class _Cursor:
    """Reads the header front to back; nothing beyond the end of the file is believed."""

    def __init__(self, path: Path, buffer: mmap.mmap) -> None:
        self.path = path
        self.buffer = buffer
        self.at = 0

    def fail(self, what: str) -> LutraError:
        what = what if len(what) <= 300 else f"{what[:300]}..."  # names come from the file
        return LutraError(f"{self.path}: {what}; the file is damaged, download or convert it again")

    def take(self, n: int, what: str) -> int:
        """Claim n bytes, return where they start."""
        if n > len(self.buffer) - self.at:
            raise self.fail(f"{what} reaches beyond the end of the file")
        start, self.at = self.at, self.at + n
        return start

    def scalar(self, code: str, what: str) -> Any:
        return struct.unpack_from("<" + code, self.buffer, self.take(struct.calcsize("<" + code), what))[0]

    def count(self, code: str, item_bytes: int, what: str) -> int:
        """A count of items that take at least ``item_bytes`` each, so that it is bounded by the file."""
        n: int = self.scalar(code, what)
        if n * item_bytes > len(self.buffer) - self.at:
            raise self.fail(f"{what} ({n}) is more than the file can hold")
        return n

    def string(self, what: str) -> str:
        n = self.count("Q", 1, f"the length of {what}")
        start = self.take(n, what)
        # surrogateescape: bytes that are not UTF-8 (token pieces) survive a round trip
        return self.buffer[start : start + n].decode("utf-8", "surrogateescape")

    def value_type(self, what: str) -> GGUFValueType:
        number = self.scalar("I", what)
        try:
            return GGUFValueType(number)
        except ValueError:
            raise self.fail(f"{what} has the unknown type {number}") from None

    def value(self, key: str) -> GGUFValue:
        what = f"key {key!r}"
        kind = self.value_type(what)
        if kind == GGUFValueType.STRING:
            return GGUFValue(self.string(what), kind)
        if kind != GGUFValueType.ARRAY:
            return GGUFValue(self.scalar(SCALARS[kind], what), kind)
        item = self.value_type(what)
        if item == GGUFValueType.ARRAY:
            raise self.fail(f"{what} is an array of arrays")
        if item == GGUFValueType.STRING:
            n = self.count("Q", 8, f"the length of {what}")
            return GGUFValue([self.string(what) for _ in range(n)], kind, item)
        dtype = np.dtype("<" + SCALARS[item]) if item != GGUFValueType.BOOL else np.dtype(bool)
        n = self.count("Q", dtype.itemsize, f"the length of {what}")
        start = self.take(n * dtype.itemsize, what)
        return GGUFValue(np.frombuffer(self.buffer, dtype, n, start).tolist(), kind, item)


class GGUFFile:
    """A mapped GGUF file; a context manager, which unmaps it.

    ``metadata`` holds the key/values in file order (``GGUFValue`` of the gguf package: value, type,
    sub_type), ``tensors`` the tensors by name in file order. Raises ``LutraError`` on construction
    when the header or any tensor's place is not sound; the tensors' bytes are not looked at.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._file = MappedFile(self.path)
        self.size = self._file.size  # bytes of the file
        try:
            self._read()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> GGUFFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Unmap the file: ``data`` gives nothing any more, arrays that it gave stay valid."""
        self._file.close()

    def _read(self) -> None:
        cursor = _Cursor(self.path, self._file.bytes)
        if cursor.buffer[:4] != MAGIC:
            raise LutraError(f"{self.path}: not a GGUF file (it does not begin with 'GGUF')")
        cursor.at = 4
        self.version: int = cursor.scalar("I", "the version")
        if self.version & 0xFFFF == 0 and self.version:
            raise LutraError(f"{self.path}: a big-endian GGUF; convert it with gguf-convert-endian first")
        if self.version not in VERSIONS:
            raise LutraError(f"{self.path}: GGUF version {self.version} is not supported, only 2 and 3")
        n_tensors = cursor.count("Q", 8 + 4 + 8 + 4 + 8, "the number of tensors")
        n_values = cursor.count("Q", 8 + 4 + 1, "the number of keys")
        self.metadata = self._read_metadata(cursor, n_values)
        self.alignment = self._read_alignment(cursor)
        infos = [self._read_info(cursor) for _ in range(n_tensors)]
        self.data_offset = -(-cursor.at // self.alignment) * self.alignment
        self.tensors = self._place(cursor, infos)

    @property
    def architecture(self) -> str:
        """The value of general.architecture, "" when it is missing or no string."""
        value = self.metadata.get("general.architecture")
        return value.value if value is not None and isinstance(value.value, str) else ""

    def get(self, key: str, default: Any = None) -> Any:
        """The plain value of a key."""
        value = self.metadata.get(key)
        return default if value is None else value.value

    def data(self, tensor: TensorInfo) -> NDArray[np.uint8]:
        """The tensor's bytes, mapped and read-only."""
        return self._file.array(np.uint8, (tensor.nbytes,), tensor.offset)

    @staticmethod
    def _read_metadata(cursor: _Cursor, n: int) -> dict[str, GGUFValue]:
        metadata: dict[str, GGUFValue] = {}
        for i in range(n):
            key = cursor.string(f"key {i}")
            if not key or key in metadata:
                raise cursor.fail(f"key {i} {f'({key!r}) occurs twice' if key else 'has no name'}")
            metadata[key] = cursor.value(key)
        return metadata

    def _read_alignment(self, cursor: _Cursor) -> int:
        value = self.metadata.get("general.alignment")
        if value is None:
            return DEFAULT_ALIGNMENT
        n = value.value
        if value.type != GGUFValueType.UINT32 or n == 0 or n & (n - 1):
            raise cursor.fail(f"general.alignment is {n!r}, not a power of two")
        return int(n)

    @staticmethod
    def _read_info(cursor: _Cursor) -> TensorInfo:
        """One tensor info; its offset is still relative to the data section."""
        name = cursor.string("a tensor's name")
        what = f"tensor {name!r}"
        if not 0 < len(name.encode("utf-8", "surrogateescape")) <= MAX_NAME:
            raise cursor.fail(f"{what[:90]} has a name of more than {MAX_NAME} bytes or none")
        n_dims = cursor.scalar("I", what)
        if not 1 <= n_dims <= MAX_DIMS:
            raise cursor.fail(f"{what} has {n_dims} dimensions")
        shape = tuple(cursor.scalar("Q", what) for _ in range(n_dims))[::-1]
        type_id, offset = cursor.scalar("I", what), cursor.scalar("Q", what)
        if prod(shape) == 0:
            raise cursor.fail(f"{what} has no weights (shape {shape})")
        try:
            nbytes = tensor_nbytes(type_id, shape)
        except ValueError as error:
            raise LutraError(f"{cursor.path}: {what}: {error}; this version cannot read the file") from None
        return TensorInfo(name, type_id, shape, offset, nbytes)

    def _place(self, cursor: _Cursor, infos: Iterable[TensorInfo]) -> dict[str, TensorInfo]:
        """Make the offsets absolute; as ggml does, expect the tensors one after the other."""
        tensors: dict[str, TensorInfo] = {}
        end = 0
        for info in infos:
            if info.name in tensors:
                raise cursor.fail(f"tensor {info.name!r} occurs twice")
            if info.offset != end:
                raise cursor.fail(f"tensor {info.name!r} begins at {info.offset}, not at {end}")
            start = self.data_offset + info.offset
            if start + info.nbytes > self.size:
                missing = start + info.nbytes - self.size
                raise cursor.fail(f"tensor {info.name!r} lacks {missing} bytes at its end")
            end = -(-(end + info.nbytes) // self.alignment) * self.alignment
            tensors[info.name] = TensorInfo(info.name, info.type, info.shape, start, info.nbytes)
        return tensors
