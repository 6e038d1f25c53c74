# SPDX-License-Identifier: MIT
"""What each step of calibration does: without it, a measured error rises by more than chance."""

from __future__ import annotations

import re
from types import SimpleNamespace

import numpy as np
import pytest

from gguf_tools.formats.catalog import RECIPES
from gguf_tools.sources.open import open_source
from lutra.conversion import calibrate, statistics
from lutra.conversion.jobs import Jobs
from lutra.conversion.plan import Rules, plan, tensor_type
from lutra.conversion.text import read_pieces
from lutra.conversion.workdir import WorkDirectory
from lutra.runtime.matmul_inputs import Capture
from lutra.runtime.model import Model
from lutra.runtime.paths import CALIBRATION_TEXT

SEEDS = 3
ATTENTION = [f"blk.{i}.attn_output.weight" for i in range(2, 8)]
EMBEDDING = "token_embd.weight"  # and the output matrix
DEQUANTIZED, ENCODE = calibrate.dequantized, calibrate.encode  # whatever a test makes of them


@pytest.fixture(scope="module")
def text(f16):
    """Sequences to calibrate with, and others."""
    with Model(f16, threads=1, n_ctx=32, weights=False) as tokenizer:
        pieces = read_pieces(CALIBRATION_TEXT, tokenizer, 8 * 256)
    return SimpleNamespace(seen=pieces[::2], unseen=pieces[1::2])


@pytest.fixture
def calibrated(f16, text, tmp_path):
    """``calibrated(names, seed)``: the weights that these matrices become in CB2, by name."""
    source = open_source(f16)

    def run(names, seed):
        rules = Rules(RECIPES["f16"], [(re.compile("|".join(map(re.escape, names))), tensor_type("cb2"))])
        planned = {p.name: p for p in plan(source.tensors, rules) if p.fmt}
        assert sorted(planned) == sorted(names)
        groups = calibrate.matmul_order(f16, set(planned), text.seen[0], threads=1)
        with WorkDirectory(tmp_path / "out.gguf", {}) as work:
            arguments = f16, groups, planned, text.seen, work, Jobs(1)
            for _ in calibrate.calibrate(*arguments, tied=True, seed=seed, threads=1):
                pass
            return {name: DEQUANTIZED(p, work.load(name)[0].copy()) for name, p in planned.items()}

    return run


def inputs(f16, pieces, name, weights):
    """Of the matrix ``name``, in a model of other ``weights`` (by name)."""
    names = {*weights, name}
    with Capture(f16, pieces, names, threads=1, predictions=1 << 27, lookups=False) as capture:
        for matrix in capture:
            if matrix.name == name:
                return matrix.inputs.copy()
            matrix.replace(weights[matrix.name])
    raise AssertionError(name)


def rises(errors, without):
    """Whether an error without a step is out of reach of chance, which is how ``errors`` with it differ."""
    return without - max(errors) > 3 * (max(errors) - min(errors)) and without > 1.1 * max(errors)


def relative(difference, whole):
    return float(np.square(difference, dtype=np.float64).sum() / np.square(whole, dtype=np.float64).sum())


@pytest.fixture
def error_of_the_model(f16, text, calibrated):
    """``error_of_the_model(seed)``: of the last layer's output, its matrices being codebooks, on the text."""
    original = inputs(f16, text.seen, EMBEDDING, {})

    def error(seed):
        weights = calibrated(ATTENTION, seed)
        return relative(inputs(f16, text.seen, EMBEDDING, weights) - original, original)

    return error


def unquantized(p, data):
    """What the second copy of the model would go on with if it were the first."""
    return p.source.read(0, p.source.rows).astype(np.float16)


def test_each_matrix_is_calibrated_behind_the_quantized_layers(f16, text, calibrated, monkeypatch):
    """Its Hessian is that of the inputs that it will have, not of the original model's."""
    used = {}

    def encode(name, target, hessian, *rest, **options):
        used[name] = hessian
        return ENCODE(name, target, hessian, *rest, **options)

    monkeypatch.setattr(calibrate, "encode", encode)
    last = ATTENTION[-1]

    def distances():
        """Of the Hessian that was used to those behind the quantized and the original layers."""
        weights = calibrated(ATTENTION, 0)
        del weights[last]
        xs = (inputs(f16, text.seen, last, w) for w in (weights, {}))
        return [relative(used[last] - x.T @ x / len(x), used[last]) for x in xs]

    quantized, original = distances()
    assert quantized < 1e-6 < 1e-4 < original
    monkeypatch.setattr(calibrate, "dequantized", unquantized)
    quantized, original = distances()
    assert original < 1e-6 < 1e-4 < quantized


def test_the_sequence_of_layers_and_the_correction_of_drift_pay(error_of_the_model, monkeypatch):
    """Layers do not know of errors before them, or do not make up for them: the model's error rises."""
    errors = [error_of_the_model(seed) for seed in range(SEEDS)]
    with monkeypatch.context() as patch:
        patch.setattr(calibrate, "dequantized", unquantized)
        assert rises(errors, error_of_the_model(0))
    with monkeypatch.context() as patch:
        patch.setattr(statistics, "SHIFT", 0.0)
        assert rises(errors, error_of_the_model(0))


def test_rows_of_frequent_tokens_are_closer(f16, text, calibrated, monkeypatch):
    """The error of what is looked up for other text of the kind."""
    rows = {t.name: t for t in open_source(f16).tensors}[EMBEDDING].read()[np.concatenate(text.unseen)]

    def error(seed):
        return relative(calibrated([EMBEDDING], seed)[EMBEDDING][np.concatenate(text.unseen)] - rows, rows)

    errors = [error(seed) for seed in range(SEEDS)]
    monkeypatch.setattr(calibrate, "_row_weight", lambda p, pieces: None)
    assert rises(errors, error(0))
