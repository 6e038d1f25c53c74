# SPDX-License-Identifier: MIT
"""Weights that lie on a grid already: a library that is not learned, and codes that lose nothing.

Models are published as integers times a scale, and as the values of FP4 times a power of two.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gguf_tools.formats.family import CBFormat
from pyquant._native import check, ffi, native, pointer, thread_count
from pyquant.arguments import Shape, check_library, check_matrix, read_rows
from pyquant.codebook import pack

_LARGEST = 127  # entry
_FP4 = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12])  # twice its values
_OCTAVES = 7  # that they are there in, the largest of them in the first four only


def has_grids(fmt: CBFormat) -> bool:
    """Whether ``grids`` are there: for one layer, and whole bits for a weight."""
    return fmt.second is None and fmt.bits % fmt.pair == 0


def grids(fmt: CBFormat) -> NDArray[np.int8]:
    """The library of the grids that weights may lie on, int8 ``fmt.library_shape``.

    With n bits for a weight: the signed integers of n bits; those of the other sign (Q2_0 has {-1, 0, 1, 2},
    with ternary weights among them); the odd integers. Each times 1, 2, 3, ... as far as entries go. With
    4 bits also FP4 times powers of two.
    """
    bits = fmt.bits // fmt.pair
    library, codes = np.zeros(fmt.library_shape, np.int8), np.arange(1 << fmt.bits)
    for table, levels in zip(library, _tables(bits), strict=False):
        for weight, entries in enumerate(table):
            entries[:] = levels[codes >> weight * bits & (1 << bits) - 1]
    return library


def _tables(bits: int) -> Iterator[NDArray[np.int64]]:
    integers = np.arange(1 << bits) - (1 << bits >> 1)
    for levels in (-integers, integers, 2 * integers + 1):
        for scale in range(1, _LARGEST // int(abs(levels).max()) + 1):
            yield scale * levels
    if bits == 4:
        for octave in range(_OCTAVES):
            levels = _FP4 << octave
            yield np.where(abs(levels) > _LARGEST, 0, levels)


def encode_exact(
    w: NDArray[Any], library: NDArray[np.int8], fmt: CBFormat, *, threads: int | None = None
) -> NDArray[np.uint8] | None:
    """Rows as strips that stand for exactly these weights (but for the sign of zero); None if there are none.

    ``w``: float32 (n, k), n a multiple of 8. ``library``: int8, ``fmt.library_shape``; of ``grids``, or any.

    Returns uint8 (n * fmt.row_bytes(k),). Raises ValueError for NaN, infinity and wrong shapes.
    """
    shape = Shape.of(fmt)
    n, k = check_matrix(w.shape, shape)
    w, library = read_rows(w, 0, n), check_library(library, shape)
    codes = np.empty((n, k // shape.pair), np.uint8)
    selectors = np.empty((n, k // shape.group), np.uint16)
    d = np.empty((n, k // shape.sb), np.float16)
    exact = ffi.new("bool *")
    check(native().lutra_encode_exact(
        shape.native(), n, k, pointer(w, "float"), pointer(library, "int8_t"), thread_count(threads),
        pointer(codes, "uint8_t"), pointer(selectors, "uint16_t"), pointer(d, "uint16_t"), exact,
    ), f"encoding {w.size} weights")  # fmt: skip
    return pack(codes, selectors, d, fmt, threads=threads) if exact[0] else None
