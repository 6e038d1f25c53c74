# SPDX-License-Identifier: MIT
"""Tables of odd integers: the identities of bipolar integers, and rounding to them."""

from __future__ import annotations

import numpy as np
import pytest

from gguf_tools.formats import codebook
from gguf_tools.formats.family import CB_FORMATS, CBFormat, Codes
from pyquant.arguments import Shape
from pyquant.bipolar import (
    bits_of,
    codes_of,
    encode_bipolar,
    encode_levels,
    has_integers,
    integers,
    libraries,
    scales,
)

BITS = range(1, 9)
CB = {fmt.name: fmt for fmt in CB_FORMATS.values()}
# A member for every number of bits, of one layer and of two, of single weights and of pairs; those that have
# no type are there on paper.
MEMBERS = [
    *(fmt for fmt in CB.values() if has_integers(fmt)),
    CBFormat("1 bit", -1, 1, 1, 256),
    CBFormat("pairs of 1 bit", -1, 2, 2, 256),
    CBFormat("2 bits", -1, 2, 1, 256),
    CBFormat("5 bits", -1, 5, 1, 256),
    CBFormat("6 bits", -1, 6, 1, 256),
    CBFormat("2 + 1 bits", -1, 4, 2, 256, second=Codes(1, 1)),
    CBFormat("2 + 2 bits", -1, 4, 2, 256, second=Codes(4, 2)),
    CBFormat("4 + 3 bits", -1, 4, 1, 256, second=Codes(3, 1)),
    CBFormat("4 + 4 bits", -1, 4, 1, 256, second=Codes(4, 1)),
]


def entries(fmt):
    """What every level of every table adds up to, (tables, 2 of a pair or 1, levels)."""
    levels = np.arange(1 << bits_of(fmt))
    left, total = bits_of(fmt), 0
    for layer, library in zip(fmt.layers, libraries(fmt), strict=True):
        bits = layer.bits // layer.pair
        left -= bits
        part = levels >> left & (1 << bits) - 1
        other = np.arange(len(levels)) % (1 << bits)  # the code's other weight must not matter
        first = library[:, 0, part | other << bits if layer.pair == 2 else part]
        second = library[:, -1, part << bits | other if layer.pair == 2 else part]
        total = total + np.stack([first, second], axis=1).astype(int)
    return total


@pytest.mark.parametrize("bits", BITS)
def test_bipolar_integers(bits):
    """Of n bits they are the odd ones, symmetric, one for each signed integer, and bits with signs add up."""
    found = integers(bits)
    assert found.tolist() == [v for v in range(1 - (1 << bits), 1 << bits) if v % 2]
    assert np.array_equal(found, -found[::-1])
    signed = np.arange(-(1 << bits >> 1), 1 << bits >> 1)
    assert np.array_equal(found, 2 * signed + 1)
    u = np.arange(1 << bits)
    assert np.array_equal(found, sum((2 * (u >> i & 1) - 1) << i for i in range(bits)))
    for low in range(1, bits):  # any cut of the bits
        upper, lower = integers(bits - low)[u >> low], integers(low)[u & (1 << low) - 1]
        assert np.array_equal(found, (upper << low) + lower)


@pytest.mark.parametrize("fmt", MEMBERS, ids=lambda fmt: fmt.name)
def test_tables_are_the_integers_times_scales(fmt):
    bits, total = bits_of(fmt), entries(fmt)
    scale = scales(bits)
    assert 2 <= len(scale) <= 256
    assert (np.diff(scale) < 0).all()
    for table, of_scale in zip(total, scale[:-1], strict=False):
        exact = of_scale.astype(float) * integers(bits)
        assert np.abs(table - exact).max() <= 0.5 * len(fmt.layers)
        if of_scale == int(of_scale):
            assert np.array_equal(table, [exact, exact])
        if bits < 8:
            assert np.array_equal(table, -table[:, ::-1])
    assert not total[len(scale) - 1 :].any()
    assert np.abs(total).max() <= 127
    if bits < 8:
        assert 1 in scale
        assert scale[0] * integers(bits)[-1] > 127 / 2


def test_those_of_8_bits_are_the_integers_of_int8():
    total = entries(CBFormat("4 + 4 bits", -1, 4, 1, 256, second=Codes(4, 1)))
    assert total[0, 0].tolist() == [*range(-127, 113), *range(112, 128)]


@pytest.mark.parametrize("fmt", MEMBERS, ids=lambda fmt: fmt.name)
def test_levels_come_apart_into_codes_and_back(fmt):
    rng, bits = np.random.default_rng(0), bits_of(fmt)
    levels = rng.integers(0, 1 << bits, (8, 256), np.uint8)
    found = codes_of(levels, fmt)
    selectors = np.full((8, 8), scales(bits).tolist().index(1) if bits < 8 else 0, np.uint8)
    total = sum(
        codebook.entries(codes, selectors, library).astype(int)
        for codes, library in zip(found, libraries(fmt), strict=True)
    )
    if bits < 8:
        assert np.array_equal(total, integers(bits)[levels])


def weights(levels, selectors, d, bits):
    n, k = levels.shape
    scaled = integers(bits)[levels].reshape(n, -1, 32) * scales(bits)[selectors][..., None]
    return (scaled.reshape(n, len(d[0]), -1) * d.astype(np.float32)[..., None]).reshape(n, k)


@pytest.mark.parametrize("sb", [64, 256])
@pytest.mark.parametrize("bits", range(1, 8))
def test_a_matrix_on_the_grid_loses_nothing(bits, sb):
    """Every level, whether or not the largest of them is in a group."""
    rng = np.random.default_rng(0)
    q = rng.integers(0, 1 << bits, (16, 1024))
    q[:, : 1 << bits], q[3] = np.arange(1 << bits), rng.integers(0, 1 << bits - 1, 1024)
    d = np.repeat(rng.uniform(0.001, 0.1, (16, 1024 // sb)).astype(np.float16), sb, axis=1)
    w = (integers(bits)[q] * d.astype(np.float32)).astype(np.float32)
    found = encode_levels(w, bits, Shape(4, 1, sb), threads=2)
    assert np.array_equal(weights(*found, bits), w)


@pytest.mark.parametrize(
    ("bits", "snr"), [(1, 3.8), (2, 9.5), (3, 15.2), (4, 21.2), (5, 27.1), (6, 32.4), (7, 37.0), (8, 43.0)]
)
def test_normally_distributed_weights(bits, snr):
    w = np.random.default_rng(0).standard_normal((64, 2048)).astype(np.float32)
    found = encode_levels(w, bits, Shape(4, 1, 256), threads=2)
    for threads in (1, 3):
        again = encode_levels(w, bits, Shape(4, 1, 256), threads=threads)
        assert all(np.array_equal(a, b) for a, b in zip(found, again, strict=True))
    error = w - weights(*found, bits)
    assert 10 * np.log10((w**2).sum() / (error**2).sum()) > snr


@pytest.mark.parametrize("name", [name for name, fmt in CB.items() if has_integers(fmt)])
def test_strips(name):
    fmt = CB[name]
    w = np.random.default_rng(1).standard_normal((16, 512)).astype(np.float32)
    levels, selectors, d = encode_levels(w, bits_of(fmt), Shape.of(fmt))
    strips, *second = encode_bipolar(w, fmt)
    parts = strips, *libraries(fmt), *second
    data = np.concatenate([part.reshape(-1).view(np.uint8) for part in parts])
    error = codebook.dequantize(data, *w.shape, fmt) - weights(levels, selectors, d, bits_of(fmt))
    assert np.abs(error).max() <= 0.501 * d.max() * len(fmt.layers)  # of rounded entries


def test_zeros_and_groups_next_to_nothing():
    w = np.zeros((8, 256), np.float32)
    w[0, :32], w[0, 32:64] = 1, 1e-6
    _, selectors, d = encode_levels(w, 4, Shape(4, 1, 256))
    (library,) = libraries(CB["CB4"])
    (strips,) = encode_bipolar(w, CB["CB4"])
    data = np.concatenate([strips, library.reshape(-1).view(np.uint8)])
    found = codebook.dequantize(data, 8, 256, CB["CB4"])
    assert np.abs(found - w).max() < 1e-2
    assert not found[1:].any()
    assert not found[0, 64:].any()
    assert d[1:].tolist() == [[0]] * 7
    assert selectors[0, 1] == len(scales(4)) - 1


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_only(value):
    with pytest.raises(ValueError, match="not finite"):
        encode_levels(np.full((8, 256), value, np.float32), 4, Shape(4, 1, 256))
