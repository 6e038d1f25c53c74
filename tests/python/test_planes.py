# SPDX-License-Identifier: MIT
"""Two planes of activations: what they compute, and that --planes and the file's list are obeyed."""

from __future__ import annotations

import json
import signal

import numpy as np
import pytest
from cli_runner import assert_error, lutra, random_codebooks, require_built
from gguf import GGUFValueType as T
from gguf.gguf_writer import GGUFValue
from gguf_samples import write_gguf
from serving import serving

from gguf_tools.formats.family import CB_FORMATS
from gguf_tools.formats.keys import PLANES_KEY
from gguf_tools.inspect import check
from gguf_tools.reader import GGUFFile
from lutra.conversion.export import export
from lutra.runtime.predictor import Predictor

TOKENS = list(range(3, 50))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A random model of codebooks throughout, with super-blocks of 256 and of 64."""
    return random_codebooks(tmp_path_factory.mktemp("planes"), gain=2.0)


@pytest.fixture(scope="module")
def float_model(model):
    return export(model, model.with_name("f32.gguf"), type="f32", pure=True).path


def with_planes(model, path, names):
    """``model`` as a file that gives the tensors ``names`` two planes."""
    with GGUFFile(model) as file:
        tensors = {name: (t.type, t.shape, file.data(t)) for name, t in file.tensors.items()}
        names = GGUFValue(names, T.ARRAY, T.STRING)
        return write_gguf(path, tensors, {**file.metadata, PLANES_KEY: names})


def matrices(model):
    with GGUFFile(model) as file:
        return [name for name, t in file.tensors.items() if t.type in CB_FORMATS]


@pytest.fixture
def logits(monkeypatch):
    def compute(path, planes=""):
        monkeypatch.setenv("LUTRA_PLANES", planes)
        with Predictor(path, len(TOKENS), 7, threads=1) as predictor:
            return predictor.logits(TOKENS)

    return compute


def test_two_planes_are_nearly_exact(model, float_model, logits):
    exact, one, two = logits(float_model), logits(model, "1"), logits(model, "2")
    np.testing.assert_array_equal(logits(model), one)
    assert 0 < np.abs(two - exact).max() < np.abs(one - exact).max() / 100


def test_a_file_says_which_tensors_have_two(model, logits, tmp_path):
    names = matrices(model)
    every = with_planes(model, tmp_path / "every.gguf", names)
    some = with_planes(model, tmp_path / "some.gguf", [name for name in names if "ffn" in name])
    one, two = logits(model, "1"), logits(model, "2")
    np.testing.assert_array_equal(logits(every), two)
    np.testing.assert_array_equal(logits(every, "1"), one)
    np.testing.assert_array_equal(logits(some, "2"), two)
    between = logits(some)
    assert not (between == one).all()
    assert not (between == two).all()
    assert check(every) == []
    assert json.loads(lutra("info", every, "--json").stdout)["two_planes"] == names
    assert f"two planes      {len(names)} tensors" in lutra("info", every).stdout


def test_convert_writes_the_list(model, tmp_path):
    source, output = model.with_name("hf"), tmp_path / "m.gguf"
    args = ["convert", source, "--type", "cb4", "--pure", "--no-calibration", "-o", output, "--two-planes"]
    shown = lutra(*args, "ffn_(up|down)", "--dry-run").stdout.splitlines()
    assert [line.split()[0] for line in shown if line.endswith("two planes")] == (
        names := ["blk.0.ffn_down.weight", "blk.0.ffn_up.weight"]
    )
    assert lutra(*args, "ffn_(up|down)").returncode == 0
    with GGUFFile(output) as file:
        assert sorted(file.get(PLANES_KEY)) == names
    assert_error(lutra(*args, "router"), "--two-planes router: no codebook has such a name")
    assert_error(lutra(*args, "("), "'(' is no regular expression")
    assert_error(lutra("convert", source, "--type", "q4_0", "--two-planes", "x"), "q4_0 has none")


@pytest.mark.parametrize(("kind", "has"), [("cb4", False), ("cb5", True), ("cb6", True)])
def test_types_of_two_layers_have_planes_where_inputs_have_outliers(model, tmp_path, kind, has):
    output = tmp_path / "m.gguf"
    args = ["convert", model.with_name("hf"), "--type", kind, "--no-calibration", "-o", output]
    assert lutra(*args).returncode == 0
    with GGUFFile(output) as file:
        assert list(file.get(PLANES_KEY) or []) == ["blk.0.ffn_down.weight", "blk.0.attn_v.weight"] * has
    assert lutra(*args, "--two-planes", "ffn_up").returncode == 0
    with GGUFFile(output) as file:
        assert list(file.get(PLANES_KEY)) == ["blk.0.ffn_up.weight"]


def test_a_wrong_list_is_found(model, tmp_path):
    for name in ("blk.7.ffn_up.weight", "output_norm.weight"):
        path = with_planes(model, tmp_path / "m.gguf", [name])
        assert check(path) == [f"{path}: {PLANES_KEY} names {name!r}, which is no codebook tensor"]


def test_eval_obeys(model, float_model, tmp_path):
    text = tmp_path / "t.txt"
    text.write_text("The cat sat on the mat, and the dog did not. " * 20)
    args = ["eval", model, "--text", text, "--base", float_model, "--ctx", 128, "--chunks", 2, "--json"]
    one, two = (json.loads(lutra(*args, "--planes", n).stdout)["kld_mean"] for n in (1, 2))
    assert abs(two) < one / 10  # six decimals are printed


@pytest.mark.parametrize(
    "verb",
    [["chat", "FILE", "-p", "a", "-n", 1, "--verbose"], ["bench", "FILE", "-p", 0, "-n", 1, "-r", 1, "-v"]],
)
def test_chat_and_bench_obey(verb, model):
    command = [model if word == "FILE" else word for word in verb]
    for planes, said in ((1, "1 plane of"), (2, "2 planes of")):
        done = lutra(*command, "--planes", planes)
        assert f"activations have {said} int8, by LUTRA_PLANES" in done.stderr
    assert "activations have" not in lutra(*command).stderr


def test_serve_obeys(model):
    with serving(model, "--planes", "2", "--verbose", "--", "-v") as server:
        assert "activations have 2 planes of int8" in server.end(signal.SIGTERM)[1]


@pytest.mark.parametrize(
    ("args", "fragment"),
    [
        (["chat", "m.gguf", "--planes", "3"], "--planes"),
        (["bench", "m.gguf", "--planes", "3"], "--planes 3: there are 1 or 2"),
        (["chat", "FILE", "-p", "a"], "LUTRA_PLANES=3: activations have 1 plane or 2"),
    ],
)
def test_other_numbers_are_one_line(args, fragment, model):
    args = [model if word == "FILE" else word for word in args]
    assert_error(lutra(*args, env={"LUTRA_PLANES": "3"}), fragment)


def test_info_shows_what_is_forced():
    require_built()
    assert "planes: as the file says" in lutra("info", env={"LUTRA_PLANES": ""}).stdout
    forced = lutra("info", "--json", env={"LUTRA_PLANES": "2"})
    assert json.loads(forced.stdout)["planes"] == "2"
