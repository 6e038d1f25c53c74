# SPDX-License-Identifier: MIT
"""Stored floats as float32: what is exact in every precision that models are published in."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def to_float32(raw: NDArray[Any], dtype: str, k: int) -> NDArray[np.float32]:
    """Rows of ``k`` weights as float32 (n, k).

    ``raw`` is the stored form: (n, k) of float32 ("F32"), float16 ("F16") or uint16 ("BF16"), or
    (n, bytes) of uint8 ("Q8_0": blocks of 32 weights, an fp16 scale before 32 int8).
    """
    if dtype == "BF16":
        return (raw.astype(np.uint32) << 16).view(np.float32)
    if dtype == "Q8_0":
        blocks = raw.reshape(-1, 34)
        scale = blocks[:, :2].copy().view("<f2").astype(np.float32)
        weights: NDArray[np.float32] = (scale * blocks[:, 2:].view(np.int8)).reshape(-1, k)
        return weights
    return raw.astype(np.float32)
