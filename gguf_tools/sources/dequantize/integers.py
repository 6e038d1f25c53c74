# SPDX-License-Identifier: MIT
"""What GPTQ and AWQ have in common: integers with a zero point and a scale for each group of a row."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from gguf_tools.formats.floats import to_float32
from gguf_tools.sources.dequantize.checkpoint import Checkpoint, check
from gguf_tools.sources.safetensors import StoredTensor
from gguf_tools.sources.weights import Weights

# Codes (k, n), or zero points (groups, n), of rows (n,).
Codes = Callable[[NDArray[np.intp]], NDArray[np.uint8]]


def scales_of(packed: StoredTensor, rows: int, k: int, checkpoint: Checkpoint) -> StoredTensor:
    """The scales (groups, rows) beside ``packed``. Raises LutraError when they do not fit."""
    size = checkpoint.settings.get("group_size")
    groups = 1 if size == -1 else -(-k // checkpoint.number("group_size", range(1, 1 << 31)))
    scales = checkpoint.need(packed, "scales")
    return check(scales, ("F16", "BF16", "F32"), (groups, rows))


def restored(
    packed: StoredTensor, k: int, scales: StoredTensor, columns: NDArray[np.intp], codes: Codes, zeros: Codes
) -> Weights:
    """The weights (rows, k) of the tensor ``packed``; ``columns`` (k,): the group of each."""

    def load(numbers: NDArray[np.intp]) -> NDArray[np.float32]:
        scale = to_float32(scales.array[:, numbers], scales.dtype, len(numbers))
        found = codes(numbers).astype(np.float32) - zeros(numbers)[columns]
        return np.ascontiguousarray((found * scale[columns]).T)

    name = packed.name.removesuffix("qweight") + "weight"
    return Weights(name, (scales.shape[1], k), "F32", packed.path, load)
