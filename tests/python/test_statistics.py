# SPDX-License-Identifier: MIT
"""What calibration makes of the inputs that it sees; no model computes here."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from gguf_tools.formats.family import CB_FORMATS
from gguf_tools.sources.open import Source
from gguf_tools.sources.tensors import SourceTensor
from lutra.conversion.calibrate import MEMORY, SEQUENCES, token_limit
from lutra.conversion.experts import originals
from lutra.conversion.statistics import PRIOR, Statistics
from lutra.conversion.targets import targets
from lutra.conversion.text import TOKENS

RNG = np.random.default_rng(0)


def inputs(tokens: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    x = RNG.standard_normal((tokens, k)).astype(np.float32) @ RNG.standard_normal((k, k)).astype(np.float32)
    return x, x + np.float32(0.1) * RNG.standard_normal((tokens, k)).astype(np.float32)


@pytest.mark.parametrize("threads", [1, 3])
def test_sums_are_those_of_each_column_block(threads):
    x, original = inputs(300, 700)
    blocks = [slice(0, 448), slice(448, 700)]
    statistics = Statistics.of(x, original, blocks, threads)
    for i, columns in enumerate(blocks):
        m, own = columns.stop - columns.start, x[:, columns]
        for found, factor in (
            (statistics.hessian[i], own),
            (statistics.drift[i], original[:, columns] - own),
        ):
            expected = factor.T.astype(np.float64) @ own / 300
            assert np.allclose(found[:m, :m], expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
            assert not found[m:].any()
            assert not found[:, m:].any()
        assert np.array_equal(statistics.hessian[i], statistics.hessian[i].T)


def test_a_token_that_counts_twice_is_as_good_as_two():
    x, original = inputs(100, 64)
    blocks, twice = [slice(0, 64)], np.arange(100) % 4 == 0
    weights = np.where(twice, 2, 1).astype(np.float32)
    found = Statistics.of(x, original, blocks, 1, weights)
    both = (np.concatenate([values, values[twice]]) for values in (x, original))
    expected = Statistics.of(*both, blocks, 1)
    for mine, theirs in ((found.hessian, expected.hessian), (found.drift, expected.drift)):
        assert np.allclose(mine * 100, theirs * 125, rtol=1e-4, atol=1e-3)


def test_targets_make_up_for_half_of_the_drift():
    x, original = inputs(4000, 256)
    bias = RNG.standard_normal((256, 256)).astype(np.float32)
    original = x + np.float32(0.01) * x @ bias  # a drift that weights can make up for, but for the damping
    w = RNG.standard_normal((64, 256)).astype(np.float32)
    tensor = SourceTensor("x", w.shape, "F32", Path("x"), lambda start, stop: w[start:stop], keeps_f32=False)
    planned = SimpleNamespace(source=tensor, fmt=CB_FORMATS[403])
    blocks = [slice(0, 256)]
    corrections = Statistics.of(x, original, blocks, 1).correction(blocks)[None]
    target = targets(planned, corrections, threads=2).astype(np.float32)
    assert np.array_equal(targets(planned, None, threads=1), w.astype(np.float16))
    was, now = (np.linalg.norm(original @ w.T - x @ weights.T) for weights in (w, target))
    assert 0.5 <= now / was < 0.6


def test_an_expert_of_few_tokens_leans_on_all():
    blocks = [slice(0, 64)]
    every = Statistics.of(*inputs(1000, 64), blocks, 1)
    none = Statistics.of(*inputs(0, 64), blocks, 1).blended(every)
    assert np.array_equal(none.hessian, every.hessian)
    assert np.array_equal(none.drift, every.drift)
    some = Statistics.of(*inputs(PRIOR, 64), blocks, 1)
    assert np.allclose(some.blended(every).hessian, (some.hessian + every.hessian) / 2)


def test_experts_are_compared_with_the_same_experts():
    x, original = (np.arange(12, dtype=np.float32).reshape(6, 2) + 100 * i for i in (0, 1))
    now = SimpleNamespace(inputs=x, experts=np.array([[0, 1], [2, 3], [1, 2]]))
    before = SimpleNamespace(inputs=original, experts=np.array([[1, 0], [2, 0], [3, 0]]))
    expected = np.stack([original[1], original[0], original[2], x[3], x[4], x[5]])
    assert np.array_equal(originals(before, now), expected)


def test_tokens_shrink_with_what_the_model_takes(monkeypatch):
    def limit(sequence: int, weights: int = 1 << 30, once: int = 0, **wanted: object) -> int:
        shape = (weights // 256, 256)
        tensor = SourceTensor(
            "x", shape, "F16", Path("x"), lambda a, b: np.zeros((0, 0), np.float32), keeps_f32=False
        )
        source = Source(Path("x"), "llama", {}, [tensor])
        return token_limit(source, 256, lambda n: once + n * sequence, **wanted)

    assert limit(1 << 20) == TOKENS
    assert limit(1 << 20, weights=1 << 20) == 2 * TOKENS
    large = limit(57 << 20)  # Granite 4 H, 1B: recurrent states of each sequence
    assert large == MEMORY // (2 * (57 << 20)) * 256
    assert limit(57 << 20, once=512 << 20) < large
    assert limit(4 << 30) == 256  # at least one
    for total, memory in ((8 << 30, MEMORY), (20 << 30, 5 << 30), (64 << 30, 2 * MEMORY)):
        monkeypatch.setattr("lutra.conversion.calibrate.total_memory", lambda total=total: total)
        assert limit(1 << 20, thorough=True) == 4 * TOKENS
        assert limit(57 << 20, thorough=True) == memory // (2 * (57 << 20)) * 256
        assert limit(57 << 20) == large
    assert limit(4 << 30, wanted=5000) == 19 * 256
    assert limit(1 << 20, wanted=1 << 20) == SEQUENCES * 256  # as many as llama.cpp computes side by side
