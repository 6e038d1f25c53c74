# SPDX-License-Identifier: MIT
"""Stored floats as float32: what is exact in every precision that models are published in."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

# What the numbers of these types are viewed as, little-endian; of those without a dtype in numpy, the bits.
STORED = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "F8_E4M3": "u1", "F8_E5M2": "u1", "F8_E8M0": "u1"}

_CODES = np.arange(256)


def _e4m3() -> NDArray[np.float32]:
    """Sign, 4 bits of exponent, 3 of mantissa; no infinity, and NaN where all others are set."""
    exponent, mantissa = _CODES >> 3 & 15, _CODES & 7
    values = np.ldexp(np.where(exponent, mantissa + 8, mantissa), np.maximum(exponent, 1) - 10)
    values[_CODES & 127 == 127] = np.nan
    return np.asarray(np.where(_CODES & 128, -values, values), np.float32)


def _e8m0() -> NDArray[np.float32]:
    """A power of two; 255 is NaN."""
    values = np.ldexp(1.0, _CODES - 127)
    values[255] = np.nan
    return values.astype(np.float32)


def _e5m2() -> NDArray[np.float32]:
    """The upper half of an F16. Some CPUs complain of the NaNs among them, which numpy would report."""
    with np.errstate(invalid="ignore"):
        return (_CODES << 8).astype("<u2").view("<f2").astype(np.float32)


_FLOAT8 = {
    "F8_E4M3": _e4m3(),
    "F8_E5M2": _e5m2(),
    "F8_E8M0": _e8m0(),
}


def to_float32(raw: NDArray[Any], dtype: str, k: int) -> NDArray[np.float32]:
    """Rows of ``k`` weights as float32 (n, k).

    ``raw`` is the stored form: (n, k) as ``STORED`` has it, or (n, bytes) of uint8 ("Q8_0": blocks of 32
    weights, an fp16 scale before 32 int8).
    """
    if dtype == "BF16":
        return (raw.astype(np.uint32) << 16).view(np.float32)
    if dtype == "Q8_0":
        blocks = raw.reshape(-1, 34)
        scale = blocks[:, :2].copy().view("<f2").astype(np.float32)
        weights: NDArray[np.float32] = (scale * blocks[:, 2:].view(np.int8)).reshape(-1, k)
        return weights
    if dtype in _FLOAT8:
        found: NDArray[np.float32] = _FLOAT8[dtype][raw]
        return found
    return raw.astype(np.float32)
