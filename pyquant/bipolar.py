# SPDX-License-Identifier: MIT
"""Codebooks that nothing is learned for: odd integers, of n bits 2u - (2^n - 1), times one of few scales.

They are symmetric and need neither a sign nor a zero point, and their bits can be taken apart: 2u - (2^n - 1)
is 2^b times the odd integer of the upper n - b bits, plus that of the lower b (arXiv 2409.17870). The layers
of a type are such parts, and so are the weights of a pair, with bits of their own.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gguf_tools.formats.family import GROUP, TABLES, CBFormat
from pyquant._native import check, native, pointer, thread_count
from pyquant.arguments import Shape, check_matrix, read_rows
from pyquant.codebook import pack
from pyquant.layers import pack_second

_LARGEST = 127  # entry
_NOTHING = 2.0**-10  # a scale whose entries are zeros
_PER_OCTAVE = 16  # scales of an octave that are tried
# Scales that are tried, times bits, below the one that cuts nothing off: the best of 2 bits is at 0.7 of it.
_TRIED = 28


def has_integers(fmt: CBFormat) -> bool:
    """Whether the format has whole bits for each weight."""
    return all(layer.bits % layer.pair == 0 for layer in fmt.layers)


def bits_of(fmt: CBFormat) -> int:
    """n: bits for a weight."""
    return sum(layer.bits // layer.pair for layer in fmt.layers)


def integers(bits: int) -> NDArray[np.int64]:
    """The odd integers of so many bits, in order."""
    return 2 * np.arange(1 << bits) - (1 << bits) + 1


def scales(bits: int) -> NDArray[np.float32]:
    """What tables multiply the integers of 1 to 8 bits by, falling; the last is next to nothing.

    From the largest power of two that int8 has room for (a half, of 8 bits) down to 1, evenly in the
    logarithm, powers of two among them. Of 7 and 8 bits there is one: the scale of the super-block does it.
    """
    octaves = 7 - bits
    if octaves < 1:
        return np.array([2.0**octaves, _NOTHING], np.float32)
    each = (TABLES - 2) // octaves
    falling = np.exp2(octaves - np.arange(octaves * each + 1) / each)
    return np.append(falling, _NOTHING).astype(np.float32)


def libraries(fmt: CBFormat) -> list[NDArray[np.int8]]:
    """The library of each layer, int8 ``layer.library_shape``; those of all layers add up.

    Entries are rounded, but where the scale is a power of two they are exact. Of 8 bits the integers are
    halved, so that they are those of int8 from -127 to 127, and 112 twice.
    """
    of_layers: list[NDArray[np.int8]] = []
    done, least, most = 0, 0, 0  # bits of the layers below, and what their entries come to
    for layer in reversed(fmt.layers):
        scale = scales(bits_of(fmt)).astype(np.float64) * (1 << done)
        bits = layer.bits // layer.pair
        rounded = np.floor(np.outer(scale, integers(bits)) + 0.5)
        tables = np.clip(rounded, -_LARGEST - least, _LARGEST - most).astype(np.int8)
        done, least, most = done + bits, least + int(tables.min()), most + int(tables.max())
        library, codes = np.zeros(layer.library_shape, np.int8), np.arange(1 << layer.bits)
        for weight in range(layer.pair):
            library[: len(scale), weight] = tables[:, codes >> weight * bits & (1 << bits) - 1]
        of_layers.append(library)
    return of_layers[::-1]


def encode_levels(
    w: NDArray[Any], bits: int, shape: Shape, *, threads: int | None = None
) -> tuple[NDArray[np.uint8], NDArray[np.uint16], NDArray[np.float16]]:
    """Levels u (n, k), from 0 to 2^bits - 1, selectors (n, k / group) and scales d (n, k / sb) of rows.

    The scale of a super-block is that of its largest weight; each group has the scale that costs least, of
    some. Raises ValueError for NaN, infinity and wrong shapes.
    """
    n, k = check_matrix(w.shape, shape)
    w = read_rows(w, 0, n)
    levels = np.empty((n, k), np.uint8)
    selectors = np.empty((n, k // shape.group), np.uint16)
    d = np.empty((n, k // shape.sb), np.float16)
    scale = scales(bits)
    step = max(1, (len(scale) - 2) // max(1, 7 - bits) // _PER_OCTAVE)
    check(native().lutra_encode_bipolar(
        shape.native(), bits, n, k, pointer(w, "float"), len(scale), pointer(scale, "float"), step,
        -(-_TRIED // bits), thread_count(threads), pointer(levels, "uint8_t"),
        pointer(selectors, "uint16_t"), pointer(d, "uint16_t"),
    ), f"encoding {w.size} weights")  # fmt: skip
    return levels, selectors, d


def codes_of(levels: NDArray[np.uint8], fmt: CBFormat) -> list[NDArray[np.uint8]]:
    """The codes of each layer, (n, k / pair), of levels (n, k)."""
    left, n = bits_of(fmt), len(levels)
    found: list[NDArray[np.uint8]] = []
    for layer in fmt.layers:
        bits = layer.bits // layer.pair
        left -= bits
        part = levels >> np.uint8(left) & np.uint8((1 << bits) - 1)
        if layer.pair == 2:
            first, other = np.moveaxis(part.reshape(n, -1, 2, GROUP // 2), 2, 0)
            part = (first | other << np.uint8(bits)).reshape(n, -1)
        found.append(part)
    return found


def encode_bipolar(w: NDArray[Any], fmt: CBFormat, *, threads: int | None = None) -> list[NDArray[np.uint8]]:
    """Rows as strips and the codes of a second layer, as ``encode_layers``; with the ``libraries`` above.

    ``w``: float32 (n, k), n a multiple of 8. Super-blocks that are odd integers of n bits times a scale of
    half precision lose nothing. Raises ValueError as ``encode_levels`` does.
    """
    levels, selectors, d = encode_levels(w, bits_of(fmt), Shape.of(fmt), threads=threads)
    first, *second = codes_of(levels, fmt)
    strips = pack(first, selectors, d, fmt, threads=threads)
    return [strips, *(pack_second(codes, fmt, threads=threads) for codes in second)]
