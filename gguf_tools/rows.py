# SPDX-License-Identifier: MIT
"""The weights of a tensor in a GGUF file as float32, whatever its type."""

from __future__ import annotations

import numpy as np
from gguf import GGMLQuantizationType, quants
from numpy.typing import NDArray

from gguf_tools.errors import LutraError
from gguf_tools.formats import codebook
from gguf_tools.formats.family import CB_FORMATS, ROWS, CBFormat
from gguf_tools.formats.floats import to_float32
from gguf_tools.reader import GGUFFile, TensorInfo, type_name

# What the bytes of these types are viewed as.
_STORED: dict[int, str] = {
    GGMLQuantizationType.F32: "<f4",
    GGMLQuantizationType.F16: "<f2",
    GGMLQuantizationType.BF16: "<u2",
    GGMLQuantizationType.Q8_0: "u1",
}


def read_rows(file: GGUFFile, tensor: TensorInfo, start: int, stop: int) -> NDArray[np.float32]:
    """Rows ``start`` to ``stop``, leading dimensions multiplied, as float32 (n, k): exactly what is stored.

    Raises ``LutraError`` for a type that is not known here.
    """
    data, k = file.data(tensor), tensor.shape[-1]
    if fmt := CB_FORMATS.get(tensor.type):
        return _codebook_rows(data, start, stop, k, fmt)
    rows = data.reshape(tensor.weights // k, -1)[start:stop]
    if stored := _STORED.get(tensor.type):
        return to_float32(rows.view(stored), type_name(tensor.type), k)
    if type_name(tensor.type) == "Q2_0":  # which the gguf package does not know yet
        return _q2_0(rows, k)
    try:
        return quants.dequantize(rows, GGMLQuantizationType(tensor.type)).astype(np.float32, copy=False)
    except NotImplementedError:
        raise LutraError(
            f"{file.path}: tensor {tensor.name!r} is {type_name(tensor.type)}, which only llama.cpp reads"
        ) from None


def _codebook_rows(
    data: NDArray[np.uint8], start: int, stop: int, k: int, fmt: CBFormat
) -> NDArray[np.float32]:
    """The strips around the rows, with the libraries, are a tensor of their own."""
    first, last = start // ROWS * ROWS, -(-stop // ROWS) * ROWS
    part = codebook.some_rows(data, k, fmt, first, last)
    return codebook.dequantize(part, last - first, k, fmt)[start - first : stop - first]


def _q2_0(rows: NDArray[np.uint8], k: int) -> NDArray[np.float32]:
    """Blocks of 64 weights: an fp16 scale, then codes of 2 bits for -1, 0, 1 and 2, four to a byte."""
    blocks = rows.reshape(-1, 18)
    codes = blocks[:, 2:, None] >> np.arange(0, 8, 2, dtype=np.uint8) & 3
    scale = blocks[:, :2].copy().view("<f2").astype(np.float32)
    weights: NDArray[np.float32] = (codes.reshape(-1, 64).astype(np.float32) - 1) * scale
    return weights.reshape(-1, k)
