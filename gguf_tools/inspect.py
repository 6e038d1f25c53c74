# SPDX-License-Identifier: MIT
"""What is in a GGUF file (``lutra info``) and whether its bytes can be right (``lutra verify``)."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFValueType
from gguf.gguf_writer import GGUFValue

from gguf_tools.errors import LutraError
from gguf_tools.formats.codebook import block_dtype, split
from gguf_tools.formats.family import (
    CB_FORMATS,
    CHECKSUMS_KEY,
    LAYOUT_VERSION,
    LAYOUT_VERSION_KEY,
    ROWS,
    CBFormat,
)
from gguf_tools.formats.floats import to_float32
from gguf_tools.formats.keys import PLANES_KEY
from gguf_tools.reader import GGUFFile, TensorInfo, type_name
from gguf_tools.writer import ALIGNMENT

_FLOATS: dict[int, str] = {
    GGMLQuantizationType.F32: "<f4",
    GGMLQuantizationType.F16: "<f2",
    GGMLQuantizationType.BF16: "<u2",
}
_STEP = 1 << 22  # weights looked at together
_LARGEST = 65504.0  # of fp16, in which every weight once was or would have fitted


@dataclass(frozen=True)
class FileInfo:
    """A file's size, tensors and key/values; ``bpw`` is the tensors' bits over their weights."""

    path: Path
    bytes: int
    bpw: float
    tensors: list[TensorInfo]
    metadata: dict[str, GGUFValue]

    @property
    def part(self) -> str:
        """ "2 of 3" for a part of a split file, whose size and tensors are its own only; else empty."""
        return part(self.metadata)

    def to_json(self) -> dict[str, object]:
        """What ``lutra info FILE --json`` prints of a file; shapes in numpy order."""
        tensors = [
            {"name": t.name, "type": type_name(t.type), "shape": list(t.shape), "bytes": t.nbytes}
            for t in self.tensors
        ]
        return {"bytes": self.bytes, "bpw": self.bpw, "tensors": tensors}


def part(metadata: Mapping[str, GGUFValue]) -> str:
    """ "2 of 3" for a file that is one of the parts of a split one; else empty."""
    number, count = (metadata[key].value if key in metadata else 0 for key in ("split.no", "split.count"))
    return (
        f"{number + 1} of {count}" if isinstance(number, int) and isinstance(count, int) and count > 1 else ""
    )


def read_info(path: str | Path) -> FileInfo:
    """Read a file's header. ``LutraError`` when it is no sound GGUF."""
    with GGUFFile(path) as file:
        tensors = list(file.tensors.values())
    weights = sum(t.weights for t in tensors)
    bits = 8 * sum(t.nbytes for t in tensors)
    return FileInfo(file.path, file.size, bits / weights if weights else 0.0, tensors, file.metadata)


def second_bytes(tensor: TensorInfo) -> int:
    """Bytes of the second layer's codes."""
    fmt = CB_FORMATS.get(tensor.type)
    return tensor.weights // ROWS // fmt.sb * fmt.second_bytes if fmt else 0


def check(path: str | Path) -> list[str]:
    """Everything that is wrong with a file, a line each; empty when nothing is.

    Looks at the header, the layout version, every tensor's place, size and checksum, all scales and
    libraries of CB tensors and all weights of float tensors.
    """
    try:
        with GGUFFile(path) as file:
            return [f"{path}: {problem}" for problem in _problems(file)]
    except LutraError as error:
        return [str(error)]


def _problems(file: GGUFFile) -> Iterator[str]:
    tensors = list(file.tensors.values())
    if any(t.type in CB_FORMATS for t in tensors):
        version = file.metadata.get(LAYOUT_VERSION_KEY)
        if version is None:
            yield f"has CB tensors but no key {LAYOUT_VERSION_KEY}"
        elif version.type != GGUFValueType.UINT32 or version.value != LAYOUT_VERSION:
            yield f"{LAYOUT_VERSION_KEY} is {version.value!r}, this version knows {LAYOUT_VERSION}"
        yield from _planes_problems(file)
        if file.alignment % ALIGNMENT:
            yield f"general.alignment is {file.alignment}, CB tensors need {ALIGNMENT}"
    if tensors:
        end = tensors[-1].offset + tensors[-1].nbytes
        if file.size - end >= file.alignment:
            yield f"{file.size - end} bytes follow the last tensor"
    yield from _checksum_problems(file, tensors)
    for t in tensors:
        fmt = CB_FORMATS.get(t.type)
        found = _cb_problems(file, t, fmt) if fmt else _float_problems(file, t)
        yield from (f"tensor {t.name!r} ({type_name(t.type)}): {problem}" for problem in found)


def _planes_problems(file: GGUFFile) -> Iterator[str]:
    names = file.get(PLANES_KEY)
    if names is None or file.get("split.count"):  # a part of a split file has the keys of the whole
        return
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        yield f"{PLANES_KEY} is no list of tensor names"
        return
    for name in names:
        if name not in file.tensors or file.tensors[name].type not in CB_FORMATS:
            yield f"{PLANES_KEY} names {name!r}, which is no codebook tensor"


def _checksum_problems(file: GGUFFile, tensors: list[TensorInfo]) -> Iterator[str]:
    expected = file.get(CHECKSUMS_KEY)
    if expected is None or file.get("split.count"):  # a part of a split file has the keys of the whole
        return
    if not isinstance(expected, list) or len(expected) != len(tensors):
        yield f"{CHECKSUMS_KEY} does not hold a checksum for each of the {len(tensors)} tensors"
        return
    for t, checksum in zip(tensors, expected, strict=True):
        if zlib.crc32(file.data(t).data) != checksum:
            yield f"tensor {t.name!r}: the checksum is wrong, its bytes were changed"


def _cb_problems(file: GGUFFile, t: TensorInfo, fmt: CBFormat) -> Iterator[str]:
    strips, libraries, _ = split(file.data(t), fmt)
    library = libraries.view(np.int8)
    if (library == -128).any():
        yield "the library has an entry of -128, entries end at -127"
    if not library.any():
        yield "the library is all zeros"
    d = strips.view(block_dtype(fmt))["d"]
    d = d.reshape(-1, t.shape[-1] // fmt.sb, ROWS)  # strip, super-block, row
    finite = np.isfinite(d)
    if not finite.all():
        strip, block, row = np.unravel_index(np.argmin(finite), d.shape)
        yield f"the scale of row {ROWS * strip + row}, super-block {block} is {d[strip, block, row]}"
        return
    largest = float(np.abs(d).max()) * float(np.abs(library.astype(np.int16)).max())
    if largest > _LARGEST:
        yield f"scales make weights of up to {largest:.3g}"


def _float_problems(file: GGUFFile, t: TensorInfo) -> Iterator[str]:
    stored = _FLOATS.get(t.type)
    if stored is None:
        return
    weights = file.data(t).view(stored)
    for start in range(0, len(weights), _STEP):
        if not np.isfinite(to_float32(weights[start : start + _STEP], type_name(t.type), 1)).all():
            yield "has a NaN or an infinity"
            return
