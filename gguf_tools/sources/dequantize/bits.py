# SPDX-License-Identifier: MIT
"""Codes of a few bits out of the words of 32 bits that they are packed into, the lowest first."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

WORD = 32


def words_for(count: int, bits: int) -> int:
    """Words that ``count`` codes take, each right behind another."""
    return -(-count * bits // WORD)


def take(words: NDArray[Any], bits: int, offsets: NDArray[np.intp]) -> NDArray[np.uint8]:
    """The codes of ``bits`` (1 to 8) at bit ``offsets`` (count,) of each row of ``words`` (n, m), int32.

    uint8 (n, count). A code may go on in the next word.
    """
    words = words.view(np.uint32)
    at, shift = np.divmod(offsets, WORD)
    codes = words[:, at] >> shift.astype(np.uint32)
    if (beyond := shift + bits > WORD).any():
        codes[:, beyond] |= words[:, at[beyond] + 1] << (WORD - shift[beyond]).astype(np.uint32)
    return (codes & ((1 << bits) - 1)).astype(np.uint8)
