# SPDX-License-Identifier: MIT
"""Safetensors files, mapped and checked, without torch: bfloat16 stays the uint16 it is on disk."""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gguf_tools.errors import LutraError, Unfamiliar
from gguf_tools.formats.floats import STORED
from gguf_tools.mapped import MappedFile

# What quantized models have beside floats: codes, and words that codes are packed into.
_INTEGERS = {"BOOL": "u1", "U8": "u1", "I8": "i1", "I16": "<i2", "I32": "<i4", "I64": "<i8"}
_DTYPES = STORED | _INTEGERS
MAX_HEADER = 100_000_000  # bytes; the format's own limit


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as stored, ``offset`` bytes into its file."""

    name: str
    dtype: str
    file: MappedFile
    shape: tuple[int, ...]
    offset: int

    @property
    def path(self) -> Path:
        """The file that holds it."""
        return self.file.path

    @property
    def is_float(self) -> bool:
        """Whether its numbers stand for themselves."""
        return self.dtype in STORED

    @property
    def array(self) -> NDArray[Any]:
        """The mapping, shaped: of floats as ``formats.floats`` has them. ``ValueError`` when it is closed."""
        return self.file.array(_DTYPES[self.dtype], self.shape, self.offset)

    @property
    def nbytes(self) -> int:
        """Bytes of its data."""
        return prod(self.shape) * np.dtype(_DTYPES[self.dtype]).itemsize


def open_safetensors(directory: Path, resources: ExitStack) -> dict[str, StoredTensor]:
    """All tensors of a model directory, single-file or sharded, part by part in order of their names.

    The files stay open until ``resources`` is closed. Raises ``LutraError`` naming the file, and the tensor
    where there is one; ``Unfamiliar`` where the weights are pickles.
    """
    index, single = directory / "model.safetensors.index.json", directory / "model.safetensors"
    weight_map: Any = {}
    if single.is_file():  # an index beside it is left over, from before the parts were joined
        parts = [single.name]
    elif index.is_file():
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(p, str) for p in weight_map.values()):
            raise LutraError(f"{index}: has no weight_map; download the model again")
        parts = sorted(set(weight_map.values()))
    elif any(directory.glob("pytorch_model*.bin")):
        raise Unfamiliar(f"{directory}: has no model.safetensors but pickles (pytorch_model.bin)")
    else:
        raise LutraError(f"{directory}: has no model.safetensors; download the model again")
    tensors: dict[str, StoredTensor] = {}
    for part in parts:
        path = directory / part
        if "/" in part or not path.is_file():
            raise LutraError(f"{index}: names {part!r}, which is not there; download the model again")
        for tensor in _read_part(resources.enter_context(MappedFile(path))):
            if tensor.name in tensors:
                raise LutraError(f"{path}: tensor {tensor.name!r} is in another part too")
            tensors[tensor.name] = tensor
    missing = sorted(set(weight_map) - set(tensors))
    if missing:
        raise LutraError(f"{directory / weight_map[missing[0]]}: lacks tensor {missing[0]!r} of the index")
    return tensors


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; ``LutraError`` when it is missing or not one."""
    try:
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise LutraError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise LutraError(f"{path}: is not a JSON object; download the model again")
    return value


def _read_part(file: MappedFile) -> list[StoredTensor]:
    """The tensors of one file in order of their names."""
    header, data = _header(file)
    tensors = [_read_tensor(file, name, header[name], data) for name in sorted(header)]
    end = max((t.offset + t.nbytes for t in tensors), default=data)
    if end < file.size:
        raise LutraError(
            f"{file.path}: {file.size - end} bytes follow the last tensor, so the file was changed; "
            "download it again"
        )
    return tensors


def read_header(path: Path) -> dict[str, Any]:
    """What a file says of its tensors by name, unchecked. ``LutraError`` when it is no safetensors file."""
    with MappedFile(path) as file:
        return _header(file)[0]


def _header(file: MappedFile) -> tuple[dict[str, Any], int]:
    """The header of a file, and where its data begins.

    The file: 8 bytes little-endian length of the header, the header (JSON: name -> dtype, shape,
    data_offsets), then the data that the offsets count in.
    """
    length = int.from_bytes(file.bytes[:8], "little")
    if length > min(file.size - 8, MAX_HEADER):
        raise LutraError(f"{file.path}: truncated or no safetensors file; download it again")
    try:
        header = json.loads(file.bytes[8 : 8 + length], object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        raise LutraError(f"{file.path}: damaged header ({error}); download it again") from None
    if not isinstance(header, dict):
        raise LutraError(f"{file.path}: damaged header; download it again")
    header.pop("__metadata__", None)
    return header, 8 + length


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names: dict[str, Any] = {}
    for name, value in pairs:
        if name in names:
            raise ValueError(f"{name!r} occurs twice")
        names[name] = value
    return names


def _read_tensor(file: MappedFile, name: str, entry: Any, data: int) -> StoredTensor:
    """One entry of the header; its offsets count from byte ``data`` of the file."""
    path = file.path

    def natural(value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and value >= 0

    try:
        dtype, shape, (start, stop) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        if not all(map(natural, (*shape, start, stop))):
            raise ValueError
    except (KeyError, TypeError, ValueError):
        raise LutraError(f"{path}: tensor {name!r} has a damaged header entry; download it again") from None
    if dtype not in _DTYPES:
        raise LutraError(
            f"{path}: tensor {name!r} is {dtype}, not BF16, F16 or F32; "
            "convert the model to an F16 GGUF with llama.cpp's convert_hf_to_gguf.py and pass that"
        )
    kind = np.dtype(_DTYPES[dtype])
    if prod(shape) == 0:
        raise LutraError(f"{path}: tensor {name!r} has no weights (shape {list(shape)})")
    if data + stop > file.size:
        missing = data + stop - file.size
        raise LutraError(f"{path}: truncated, tensor {name!r} lacks {missing} bytes; download it again")
    if stop - start != prod(shape) * kind.itemsize:
        raise LutraError(
            f"{path}: tensor {name!r} has {stop - start} bytes, which is not {dtype} {list(shape)}"
        )
    return StoredTensor(name, dtype, file, shape, data + start)
