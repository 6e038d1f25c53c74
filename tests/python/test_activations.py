# SPDX-License-Identifier: MIT
"""``lutra eval --activations``: formats of activations on known values, and a small random model."""

from __future__ import annotations

import argparse
import json
import re
import tempfile

import numpy as np
import pytest
from cli_runner import random_codebooks
from hypothesis import given
from hypothesis import strategies as st

from lutra.cli import eval as verb
from lutra.conversion.export import export
from lutra.measure import activations
from lutra.measure.perplexity import Text
from lutra.measure.rounding import GROUPS, MANTISSAS, formats
from lutra.runtime.predictor import Predictor

FORMATS = {f.name: f for f in formats()}
INT8, PLANES = FORMATS["int8, scale of 256"], FORMATS["two planes, scales of 256"]
X = np.random.default_rng(0).standard_normal((3, 576), np.float32)

# ---- formats ---------------------------------------------------------------------------------


def test_a_mantissa_has_its_bits_under_the_exponent_of_the_largest():
    x = np.zeros((1, 64), np.float32)
    x[0, :4], x[0, 32:35] = (1.0, 0.5, 0.1, -0.0312), (0.1, 0.0312, -0.011)
    rounded = FORMATS["3-bit mantissa, exponent of 32"].rounding(x)
    # 1.0 is 4 of 2/8, so that 0.1 is nearest to none; 0.1 is 6 of 1/64, and 0.0312 two of them.
    assert rounded[0, :4].tolist() == [1.0, 0.5, 0.0, 0.0]
    assert rounded[0, 32:35].tolist() == [6 / 64, 2 / 64, -1 / 64]


@given(bits=st.sampled_from(list(MANTISSAS)), group=st.sampled_from(GROUPS), seed=st.integers(0, 99))
def test_a_rounded_value_is_half_a_step_off_at_most(bits, group, seed):
    x = np.random.default_rng(seed).standard_cauchy((2, 320)).astype(np.float32)
    rounded = FORMATS[f"{bits}-bit mantissa, exponent of {group}"].rounding(x)
    for start in range(0, 320, group):  # the last group of 256 is one of 64
        part = slice(start, start + group)
        step = 2 ** (np.frexp(np.abs(x[:, part]).max(axis=1, keepdims=True))[1] - float(bits))
        most = (2**bits - 1) * step  # for the next power of two there is no bit
        error = np.abs(rounded[:, part] - np.clip(x[:, part], -most, most))
        assert (error <= step / 2).all()


def test_more_bits_are_better_and_the_planes_best():
    errors = {name: float(np.abs(f.rounding(X) - X).max()) for name, f in FORMATS.items()}
    assert errors[PLANES.name] < errors[INT8.name] / 200
    for group in GROUPS:
        ordered = [errors[f"{bits}-bit mantissa, exponent of {group}"] for bits in MANTISSAS]
        assert ordered == sorted(ordered, reverse=True)


@pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS)
def test_zeros_stay_and_inputs_are_not_written_to(form):
    x = np.concatenate([X, np.zeros((1, 576), np.float32)])
    rounded = form.rounding(before := x.copy())
    assert rounded.shape == x.shape
    assert rounded.dtype == np.float32
    assert (before == x).all()
    assert not rounded[3].any()


# ---- a model ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A random model of codebooks throughout."""
    return random_codebooks(tmp_path_factory.mktemp("activations"), intermediate_size=768)


@pytest.fixture(scope="module")
def float_model(model):
    return export(model, model.with_name("f32.gguf"), type="f32", pure=True).path


TOKENS = list(range(3, 50))


def logits(path, choose=None):
    with Predictor(path, len(TOKENS), 7, threads=1) as predictor:
        return predictor.logits(TOKENS, choose)


def test_int8_is_what_the_kernels_compute_with(model, float_model):
    pattern = "|".join(activations.KINDS.values())
    exact = logits(float_model)
    rounded = logits(float_model, lambda name: INT8.rounding if re.search(pattern, name) else None)
    error = np.abs(rounded - exact).max()
    assert 0 < error < 0.1 * np.abs(exact).max()
    assert np.abs(rounded - logits(model)).max() < 0.01 * error


def test_only_the_chosen_matrices_are_rounded_and_only_once(float_model):
    seen = []

    def halved(x):
        seen.append(x.shape)
        return x / 2

    exact = logits(float_model)
    half = logits(float_model, lambda name: halved if name == "output.weight" else None)
    np.testing.assert_allclose(half, exact / 2, rtol=1e-6)
    assert seen == [(len(TOKENS) - 7, 512)]
    logits(float_model, lambda name: halved if re.search(r"attn_[qkv]\.", name) else None)
    assert seen[1:] == [(len(TOKENS), 512)]  # q, k and v have the same inputs
    np.testing.assert_array_equal(logits(float_model), exact)


def test_what_goes_wrong_in_a_rounding_is_raised(float_model):
    def failing(_):
        raise RuntimeError("lost?")

    with pytest.raises(RuntimeError, match=r"lost\?"):
        logits(float_model, lambda _: failing)


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "t.txt"
    path.write_text("The cat sat on the mat, and the dog did not. " * 20)
    return path


def test_the_tables_add_up(float_model, text, tmp_path, monkeypatch):
    monkeypatch.setattr(activations, "formats", lambda: [INT8, PLANES])
    results = activations.measure_activations(float_model, Text(text, 64, 2), 1, tmp_path)
    assert results["tokens"] == 2 * 31
    int8, planes = results["activations"]
    assert list(int8["kld"]) == ["qkv", "o", "gate-up", "down", "output", "together"]
    assert int8["bits"] == 8.125
    for kind, kld in int8["kld"].items():
        assert kld < 1.5 * int8["kld"]["together"]
        assert 0 < planes["kld"][kind] < 1e-3 * kld
    cache = {record["format"]: record["kld"] for record in results["cache"]}
    assert {"f16", "q8_0", "q4_0"} <= cache.keys()
    assert 0 < cache["f16"]["together"] < cache["q8_0"]["together"] < cache["q4_0"]["together"]
    lines = activations.describe(results).splitlines()
    columns = ["activations", "bits", *int8["kld"], "perplexity"]
    assert [cell.strip() for cell in lines[2].strip("|").split("|")] == columns
    assert lines[4].startswith("| int8, scale of 256")


def test_the_verb_prints_json_and_leaves_nothing(model, text, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(activations, "formats", lambda: [INT8])
    monkeypatch.setattr(activations, "cache_types", lambda _: ["f16"])
    monkeypatch.setenv("TMPDIR", str(tmp_path / "t"))
    (tmp_path / "t").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", None)
    parser = argparse.ArgumentParser()
    verb.add_arguments(parser)
    args = ["--text", text, "--activations", "--ctx", 64, "--chunks", 1, "--threads", 1, "--json"]
    assert verb.run(parser.parse_args(list(map(str, [model, *args])))) == 0
    results = json.loads(capsys.readouterr().out)
    assert results["activations"][0]["format"] == INT8.name
    assert list((tmp_path / "t").iterdir()) == []
