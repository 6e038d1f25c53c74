# SPDX-License-Identifier: MIT
"""Weights on a grid become codes that stand for exactly the same numbers."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Q

from gguf_tools.formats import codebook
from gguf_tools.formats.family import CB_FORMATS
from pyquant.exact import encode_exact, grids

CB = {fmt.name: fmt for fmt in CB_FORMATS.values()}


def assert_exact(w, fmt):
    data = encode_exact(w, grids(fmt), fmt, threads=2)
    assert data is not None
    whole = np.concatenate([data, grids(fmt).reshape(-1).view(np.uint8)])
    assert np.array_equal(codebook.dequantize(whole, *w.shape, fmt), w)


def on_grid(rng, levels, scale, shape=(16, 1024)):
    return (rng.choice(levels, shape) * np.float32(scale)).astype(np.float32)


TERNARY, ODD = [-1, 0, 1], [-3, -1, 1, 3]
FP4 = [0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6]


@pytest.mark.parametrize("sb", ["", "_64"])
@pytest.mark.parametrize(
    ("name", "levels"),
    [
        ("CB2", TERNARY),
        ("CB2", [-1, 0, 1, 2]),
        ("CB2", [-2, -1, 0, 1]),
        ("CB2", ODD),
        ("CB3", range(-4, 4)),
        ("CB3", range(-7, 8, 2)),
        ("CB4", range(-8, 8)),
        ("CB4", range(-15, 16, 2)),
        ("CB4", [2 * value for value in FP4]),
    ],
)
@pytest.mark.parametrize("scale", [1.0, 0.0123, 2.0**-20, 3e-7])
def test_integers_times_a_scale_of_half_precision(name, levels, scale, sb):
    rng = np.random.default_rng(0)
    assert_exact(on_grid(rng, list(levels), np.float16(scale)), CB[name + sb])


def test_every_half_that_is_a_scale():
    """Of three weights each, so that all mantissas and exponents take part; the largest is d itself."""
    halves = np.arange(1, 0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    rng = np.random.default_rng(1)
    rows = -(-len(halves) // 8) * 8
    scales = np.resize(halves, (rows, 1))
    assert_exact((rng.choice(TERNARY, (rows, 64)) * scales).astype(np.float32), CB["CB2_64"])


@pytest.mark.parametrize("octaves", [0, 1, 2, 3])
def test_fp4_whose_scales_span_three_octaves(octaves):
    rng = np.random.default_rng(2)
    exponents = rng.integers(-12 - octaves, -11, (16, 32))
    w = on_grid(rng, FP4, 1, (16, 32, 32)) * np.exp2(exponents)[:, :, None]
    assert_exact(w.reshape(16, 1024).astype(np.float32), CB["CB4"])


def test_fp4_of_more_octaves_where_the_values_leave_room():
    """The scale is six octaves larger, but of its values only the smallest ones occur."""
    rng = np.random.default_rng(3)
    w = on_grid(rng, FP4, 1, (8, 8, 32))
    w[:, 0] = on_grid(rng, [-0.5, 0, 0.5], 2**6, (8, 32))
    assert_exact(w.reshape(8, 256), CB["CB4"])


def test_groups_of_zeros_and_zeros_of_both_signs():
    w = np.zeros((8, 256), np.float32)
    assert_exact(w, CB["CB2"])
    w[3, 40:50], w[4] = 0.25, -0.0
    assert_exact(w, CB["CB2"])


@pytest.mark.parametrize(
    "wrong",
    [
        lambda w: w.__setitem__((3, 5), np.nextafter(w[3, 5], np.float32(9))),  # one bit off
        lambda w: w.__setitem__((15, 1023), np.float32(3 * 0.0123)),  # no level
        lambda w: w.__setitem__((0, 0), np.float32(1e-30)),  # far below
        lambda w: w.__imul__(np.float32(2.0**-40)),  # scales that are no halves
        lambda w: w.__imul__(np.float32(1.0001)),
    ],
)
def test_what_is_not_exact_is_said(wrong):
    w = on_grid(np.random.default_rng(4), [-1, 1], np.float16(0.0123))
    wrong(w)
    assert encode_exact(w, grids(CB["CB2"]), CB["CB2"]) is None


def test_fp4_of_too_many_octaves():
    w = on_grid(np.random.default_rng(5), FP4, 1, (8, 256))
    w[:, 32:64] *= 16
    assert encode_exact(w, grids(CB["CB4"]), CB["CB4"]) is None


@pytest.mark.parametrize(("kind", "name"), [(Q.TQ1_0, "CB2"), (Q.TQ2_0, "CB2")])
def test_the_ternary_types_of_llama_cpp(kind, name):
    w = np.random.default_rng(6).normal(size=(8, 512)).astype(np.float32)
    assert_exact(gguf.quants.dequantize(gguf.quants.quantize(w, kind), kind), CB[name])


@pytest.mark.parametrize("threads", [1, 3])
def test_the_same_bytes_whatever_the_threads(threads):
    w = on_grid(np.random.default_rng(7), range(-8, 8), 0.5)
    library = grids(CB["CB4"])
    assert np.array_equal(
        encode_exact(w, library, CB["CB4"], threads=threads), encode_exact(w, library, CB["CB4"], threads=2)
    )


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_only(value):
    w = np.full((8, 256), value, np.float32)
    with pytest.raises(ValueError, match="not finite"):
        encode_exact(w, grids(CB["CB2"]), CB["CB2"])
