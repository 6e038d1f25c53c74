# SPDX-License-Identifier: MIT
"""FP4: two weights a byte (E2M1, the lower bits first), a scale for each group of 32 (MXFP4) or 16 (NVFP4).

Scales of MXFP4 are powers of two; those of NVFP4 are FP8, and there is one for all of them besides.
"""

from __future__ import annotations

from math import prod

import numpy as np
from numpy.typing import NDArray

from gguf_tools.sources.dequantize.checkpoint import Checkpoint, check, wrong_shape
from gguf_tools.sources.dequantize.scales import Spread, scaled, spread
from gguf_tools.sources.safetensors import StoredTensor
from gguf_tools.sources.weights import Weights

MX, NV = 32, 16
_WHOLE = ("weight_scale_2", "weight_global_scale")  # ModelOpt's and compressed-tensors' name
_VALUES = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
_E2M1 = np.concatenate([_VALUES, -_VALUES])


def restore(packed: StoredTensor, name: str, checkpoint: Checkpoint) -> Weights:
    """The weights called ``name`` whose codes are ``packed``, uint8 (..., rows, k / 2)."""
    if packed.dtype != "U8" or len(packed.shape) < 2:
        raise wrong_shape(packed, "U8 of rows")
    half = packed.shape[-1]
    shape = (*packed.shape[:-1], 2 * half)

    def load(rows: NDArray[np.intp]) -> NDArray[np.float32]:
        codes = packed.array.reshape(-1, half)[rows]
        return _E2M1[np.stack([codes & 15, codes >> 4], axis=-1).reshape(-1, 2 * half)]

    scale = checkpoint.need(packed, "weight_scale")
    whole = checkpoint.beside(packed, *_WHOLE)
    group, dtypes = (NV, ("F8_E4M3",)) if whole else (MX, ("U8", "F8_E8M0"))
    check(scale, dtypes, (*packed.shape[:-1], -(-2 * half // group)))
    factor = spread(scale, shape, (1, group))
    return scaled(Weights(name, shape, "F32", packed.path, load), _both(factor, whole) if whole else factor)


def _both(factor: Spread, whole: StoredTensor) -> Spread:
    """Scales of groups with that of all weights, which compressed-tensors divides by."""
    check(whole, ("F32",), whole.shape if prod(whole.shape) == 1 else (1,))
    divides = whole.name.endswith(_WHOLE[1])

    def load(rows: NDArray[np.intp]) -> NDArray[np.float32]:
        number = whole.array.reshape(1, 1)
        return np.asarray(factor(rows) / number if divides else factor(rows) * number, np.float32)

    return load
