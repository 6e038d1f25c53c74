"""Encoding against a Hessian: what it gains, that what it says is what the file decodes to, errors."""

from __future__ import annotations

import numpy as np
import pytest

from gguf_tools import layout
from gguf_tools.errors import LutraError
from gguf_tools.types import CB_FORMATS
from lutra.paths import lib_path
from pyquant.codebook import Shape, decode_shape, encode_shape, learn_shape
from pyquant.feedback import DAMPING, quantize

try:
    lib_path("lutra_quant")
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
def test_feedback_pays_and_is_what_the_file_says(name):
    """Less than half of the error of codes chosen weight by weight, and every step better than the last."""
    fmt = FORMATS[name]
    w, hessian = correlated(64, 512)
    encoded = quantize(w, hessian, fmt, threads=2)
    data = np.concatenate([encoded.strips(), encoded.library.reshape(-1).view(np.uint8)])
    decoded = layout.dequantize(data, *w.shape, fmt)
    assert np.array_equal(decoded, encoded.weights())
    assert encoded.loss[-1] == pytest.approx(relative_error(w, decoded, hessian), rel=1e-3)
    assert encoded.loss == sorted(encoded.loss, reverse=True)

    shape = Shape.of(fmt)
    diagonal = np.ascontiguousarray(np.diag(hessian))
    library = learn_shape(w, shape, importance=diagonal)
    codes, selectors, d, _ = encode_shape(w, library, shape, importance=diagonal)
    alone = relative_error(w, decode_shape(codes, selectors, d, library, shape), hessian)
    assert encoded.loss[0] == pytest.approx(alone, rel=0.05)  # libraries differ by rounding
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
    assert loss[1] <= 1.001 * loss[0]  # the same scales and library, all tables tried
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


@pytest.mark.parametrize("bad", [np.eye(128), np.full((256, 256), np.nan)])
def test_a_hessian_that_does_not_fit(bad):
    w, _ = correlated(8, 256)
    with pytest.raises(ValueError, match="Hessian"):
        quantize(w, bad.astype(np.float32), FORMATS["CB3"])
