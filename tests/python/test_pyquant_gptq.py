# SPDX-License-Identifier: MIT
"""Encoding against a Hessian: what it gains, that its loss is the decoded file's, and pieces."""

from __future__ import annotations

import numpy as np
import pytest

from gguf_tools.errors import LutraError
from gguf_tools.formats import codebook
from gguf_tools.formats.family import CB_FORMATS
from pyquant import gptq, in_order
from pyquant._native import native
from pyquant.arguments import Shape
from pyquant.codebook import decode_shape, encode_shape, learn_shape
from pyquant.gptq import DAMPING, column_blocks, quantize

try:
    native()
except LutraError as error:
    pytest.skip(str(error), allow_module_level=True)

FORMATS = {f.name: f for f in CB_FORMATS.values()}


def correlated(rows, k, seed=1):
    """Weights, and the Hessian of inputs that lie near an eighth of the dimensions."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((4 * k, k // 8)) @ rng.standard_normal((k // 8, k))
    x = (x + rng.standard_normal(x.shape)).astype(np.float32)
    return rng.standard_normal((rows, k), dtype=np.float32), x.T @ x / len(x)


def relative_error(w, decoded, hessian):
    """In double precision, of the damped Hessian, as ``loss`` has it."""
    h = hessian.astype(np.float64)
    h = h * len(h) / np.trace(h) + DAMPING * np.eye(len(h))
    e = (w - decoded).astype(np.float64)
    return ((e @ h) * e).sum() / ((w @ h) * w).sum()


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_gptq_pays_and_is_what_the_file_says(name):
    """Less than half of the error of codes chosen weight by weight, and every step better than the last."""
    fmt = FORMATS[name]
    w, hessian = correlated(64, 512)
    encoded = quantize(w, hessian, fmt, threads=2)
    data = np.concatenate(
        [part.reshape(-1).view(np.uint8) for part in in_order([encoded.layers()], encoded.libraries)]
    )
    decoded = codebook.dequantize(data, *w.shape, fmt)
    assert np.array_equal(decoded, encoded.weights())
    assert encoded.loss[-1] == pytest.approx(relative_error(w, decoded, hessian), rel=1e-3)
    assert encoded.loss == sorted(encoded.loss, reverse=True)

    shape = Shape.of(fmt)
    diagonal = np.ascontiguousarray(np.diag(hessian))
    library = learn_shape(w, shape, importance=diagonal)
    codes, selectors, d, _ = encode_shape(w, library, shape, importance=diagonal)
    alone = relative_error(w, decode_shape(codes, selectors, d, library, shape), hessian)
    assert encoded.loss[-1] < 0.5 * alone


@pytest.mark.parametrize("name", ["CB2", "CB3_64"])
def test_threads_and_blas_do_not_matter(name):
    w, hessian = correlated(600, 256)
    one, three = (quantize(w, hessian, FORMATS[name], threads=threads) for threads in (1, 3))
    for field in ("codes", "selectors", "d", "library"):
        assert np.array_equal(getattr(one, field), getattr(three, field)), field


def test_without_correlations_it_is_no_worse_than_the_plain_search():
    fmt = FORMATS["CB3"]
    w, _ = correlated(256, 256)
    loss = quantize(w, np.eye(256, dtype=np.float32), fmt).loss
    shape = Shape.of(fmt)
    codes, selectors, d, _ = encode_shape(w, learn_shape(w, shape), shape)
    plain = relative_error(w, decode_shape(codes, selectors, d, learn_shape(w, shape), shape), np.eye(256))
    assert loss[0] <= 1.001 * plain  # the same scales and library
    assert loss[-1] < loss[0]


def test_columns_that_are_never_used():
    """Dead inputs and rows of zeros do no harm."""
    w, hessian = correlated(16, 256)
    hessian[:100] = hessian[:, :100] = 0.0
    w[3] = 0.0
    encoded = quantize(w, hessian, FORMATS["CB2"])
    assert np.isfinite(encoded.weights()).all()
    assert not encoded.weights()[3].any()
    assert encoded.loss[-1] < encoded.loss[0]


def same(one, other):
    return all(np.array_equal(getattr(one, f), getattr(other, f)) for f in ("codes", "selectors", "d"))


def test_rows_beyond_the_sample(monkeypatch):
    """A large matrix, slab by slab: nearly as good as at once, and slabs do not matter."""
    fmt = FORMATS["CB3"]
    w, hessian = correlated(512, 256)
    at_once = quantize(w, hessian, fmt)
    monkeypatch.setattr(gptq, "SAMPLE", 256 * 256)
    sampled = quantize(w, hessian, fmt, threads=2)
    monkeypatch.setattr(gptq, "SLAB", 200 * 256)
    in_slabs = quantize(w, hessian, fmt, threads=1)
    assert same(sampled, in_slabs)
    assert np.array_equal(sampled.library, in_slabs.library)
    assert in_slabs.loss[-1] == pytest.approx(relative_error(w, in_slabs.weights(), hessian), rel=1e-3)
    assert at_once.loss[-1] < in_slabs.loss[-1] < 1.15 * at_once.loss[-1]
    assert np.array_equal(in_slabs.weights(slice(5, 9)), in_slabs.weights()[5:9])


def test_columns_in_blocks(monkeypatch):
    """The Hessian of blocks of columns, the last of them narrower, is the block-diagonal one."""
    fmt = FORMATS["CB4"]
    w, hessian = correlated(64, 1280)
    monkeypatch.setattr(gptq, "WIDEST", 700)
    columns = column_blocks(1280, fmt)
    assert columns == [slice(0, 768), slice(768, 1280)]
    blocks, diagonal = np.zeros((2, 768, 768), np.float32), np.zeros_like(hessian)
    for block, part in zip(blocks, columns, strict=True):
        m = part.stop - part.start
        block[:m, :m] = diagonal[part, part] = hessian[part, part]
    one, three = (quantize(w, blocks, fmt, threads=threads) for threads in (1, 3))
    assert same(one, three)
    assert one.loss[-1] == pytest.approx(relative_error(w, one.weights(), diagonal), rel=1e-2)
    assert one.loss[-1] < 0.8 * quantize(w, np.eye(768, dtype=np.float32)[None].repeat(2, 0), fmt).loss[-1]


def test_experts_share_a_library():
    """Each expert against its own Hessian; one that was never asked is encoded all the same."""
    fmt = FORMATS["CB3"]
    parts = [correlated(40, 256, seed) for seed in (1, 2, 3)]
    w = np.concatenate([p[0] for p in parts])
    hessians = np.stack([p[1] for p in parts])
    hessians[2] = 0.0
    encoded = quantize(w, hessians, fmt)
    assert np.isfinite(encoded.weights()).all()
    for i in range(2):
        own = slice(40 * i, 40 * (i + 1))
        alone = quantize(w[own], hessians[i], fmt, libraries=encoded.libraries)
        error, other = (relative_error(w[own], encoded.weights(own), h) for h in hessians[[i, 1 - i]])
        assert error < other
        assert np.array_equal(alone.library, encoded.library)
        assert alone.loss[-1] < 1.5 * error  # the library was refitted to other codes


def test_rows_that_count_more():
    """The library follows the rows that weigh most: their error falls, that of the others rises."""
    fmt = FORMATS["CB2"]
    w, hessian = correlated(512, 256)
    w[256:] = np.sign(w[256:]) * w[256:] ** 2  # another distribution
    weight = np.repeat(np.float32([100, 1]), 256)

    def errors(encoded):
        return [
            relative_error(w[half], encoded.weights(half), hessian) for half in (slice(256), slice(256, 512))
        ]

    plain, first = quantize(w, hessian, fmt), quantize(w, hessian, fmt, row_weight=weight)
    last = quantize(w, hessian, fmt, row_weight=weight[::-1].copy())
    assert errors(first)[0] < errors(plain)[0] < errors(last)[0]
    assert errors(last)[1] < errors(plain)[1] < errors(first)[1]


def two_sided(w, q, hessian, outputs):
    """tr(E^T outputs E hessian), both damped as they are for encoding."""

    def damped(h):
        h = h.astype(np.float64)
        return h * len(h) / np.trace(h) + DAMPING * np.eye(len(h))

    e = (w - q).astype(np.float64)
    return ((damped(outputs) @ e @ damped(hessian)) * e).sum()


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_rows_make_up_for_each_other(name):
    """Where outputs are correlated the error that counts falls, and that of each row for itself grows."""
    fmt = FORMATS[name]
    w, hessian = correlated(200, 512)
    _, outputs = correlated(8, 200, seed=2)
    alone = quantize(w, hessian, fmt)
    together, *threaded = (quantize(w, hessian, fmt, outputs=outputs, threads=n) for n in (1, 3, 12))
    sizes = [two_sided(w, encoded.weights(), hessian, outputs) for encoded in (alone, together)]
    assert sizes[1] < 0.75 * sizes[0]
    assert alone.loss[-1] < together.loss[-1] < 2 * alone.loss[-1]
    assert together.loss[-1] == pytest.approx(relative_error(w, together.weights(), hessian), rel=1e-3)
    assert all(np.array_equal(together.weights(), other.weights()) for other in threaded)
    anyhow = quantize(w, hessian, fmt, outputs=1000 * outputs)
    assert np.array_equal(together.weights(), anyhow.weights())


def test_outputs_without_correlation_change_nothing_that_counts():
    fmt = FORMATS["CB3"]
    w, hessian = correlated(64, 512)
    alone, together = (quantize(w, hessian, fmt, outputs=o) for o in (None, np.eye(64, dtype=np.float32)))
    # The library was refitted to the codes of one, not of the other.
    assert together.loss[-1] == pytest.approx(alone.loss[-1], rel=0.06)


def test_hessians_of_outputs_that_do_not_fit_are_refused():
    w, hessian = correlated(64, 256)
    bad = np.eye(64, dtype=np.float32)
    bad[3, 3] = np.nan
    indefinite = np.ones((64, 64), np.float32) - 3 * np.eye(64, dtype=np.float32)[::-1]
    np.fill_diagonal(indefinite, 1)
    for outputs, message in (
        (np.eye(63, dtype=np.float32), "needed"), (bad, "not finite"), (indefinite, "not positive"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            quantize(w, hessian, FORMATS["CB3"], outputs=outputs)
    with pytest.raises(ValueError, match="for one matrix"):
        quantize(w, np.stack([hessian] * 2), FORMATS["CB3"], outputs=np.eye(64, dtype=np.float32))
