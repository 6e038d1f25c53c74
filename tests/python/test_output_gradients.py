# SPDX-License-Identifier: MIT
"""Gradients of predictions with respect to outputs, and calibration with them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from cli_runner import require_built
from gguf_samples import BLOCKS, hf_model
from test_tune import OTHERS, SMALL

from gguf_tools.errors import LutraError
from gguf_tools.sources.open import open_source
from lutra.conversion import calibrate, llama_network, output_gradients, pipeline, tune
from lutra.conversion.network import network_of
from lutra.conversion.options import ConversionOptions
from lutra.conversion.output_gradients import OutputGradients, measure
from lutra.conversion.pipeline import convert
from lutra.conversion.transformers_network import TransformersNetwork
from lutra.conversion.workdir import WorkDirectory

try:
    import torch
except ImportError:
    torch = None

PIECES = np.random.default_rng(0).integers(0, 256, (6, 24)).tolist()
DOWN, GATE = "blk.0.ffn_down.weight", "blk.0.ffn_gate.weight"


@pytest.fixture
def source(tmp_path):
    return open_source(hf_model(tmp_path / "model", "LlamaForCausalLM", dtype="F32", intermediate_size=448))


def measured(source, threads=1, at_once=48):
    original = tune.load(source, torch.device("cpu"))
    return measure(source, original, PIECES, at_once=at_once, seed=3, threads=threads)


@pytest.mark.torch
def test_they_are_the_gradients_of_what_is_added_to_outputs(source, monkeypatch):
    """By another way: the gradient of zeros that are added to a matrix's products."""
    found = measured(source)
    network, original = network_of(source), tune.load(source, torch.device("cpu"))
    added, linear = {}, llama_network._linear

    def adding(w, name, x):
        y = linear(w, name, x)
        zeros = added[name + ".weight"] = torch.zeros_like(y, requires_grad=True)
        return y + zeros

    monkeypatch.setattr(llama_network, "_linear", adding)
    sizes, rows = {DOWN: [], GATE: []}, 0
    for i, piece in enumerate(PIECES):
        likely = network.forward(original, torch.tensor([piece])).log_softmax(-1)[0]
        random = torch.Generator().manual_seed(3 * len(PIECES) + i)
        drawn = torch.multinomial(likely.detach().exp(), 1, generator=random)
        likely.gather(1, drawn).sum().backward()
        for name in sizes:
            sizes[name].append(added[name].grad[0].norm(dim=-1))
        g = added[DOWN].grad[0]
        rows = rows + (g / g.norm(dim=-1, keepdim=True)).T @ g
    for name, parts in sizes.items():
        assert np.allclose(found.tokens[name], torch.cat(parts).numpy(), rtol=1e-3, atol=1e-7)
    assert np.allclose(found.rows[DOWN], rows.numpy() / np.size(PIECES), rtol=1e-3, atol=1e-7)
    assert GATE not in found.rows  # its rows are gated
    assert {name.split(".")[2] for name in found.rows} == {"attn_v", "attn_output", "ffn_down"}
    assert len(found.tokens) == 7


@pytest.mark.torch
def test_threads_do_not_change_them_and_they_can_be_kept(source, tmp_path):
    one, three = measured(source), measured(source, threads=3)
    with WorkDirectory(tmp_path / "out.gguf", {}) as work:
        kept = OutputGradients.of(work.arrays_of("gradients", three.arrays))
        assert work.arrays_of("gradients", {}.copy).keys() == three.arrays().keys()
    for mine, theirs in ((one.tokens, kept.tokens), (one.rows, kept.rows)):
        assert mine.keys() == theirs.keys()
        assert all(np.array_equal(mine[name], theirs[name]) for name in mine)


def test_tokens_count_as_in_the_mean_of_what_shares_them():
    sizes = {"a": np.float32([1, 3, 5, 7]), "b": np.float32([3, 3, 3, 11])}
    shared = OutputGradients(sizes, {"a": np.eye(2, dtype=np.float32)}).shared(["a", "b", "c"])
    assert shared.weights("b", 4).tolist() == pytest.approx([2 / 4.5, 3 / 4.5, 4 / 4.5, 9 / 4.5])
    assert shared.weights("c", 2).tolist() == pytest.approx([2 / 3, 4 / 3])  # every second token
    assert shared.weights("a", 3) is None  # two would be every second one
    assert list(shared.rows) == ["a"]
    assert OutputGradients(sizes).shared(["d"]).weights("d", 4) is None


@pytest.mark.torch
@pytest.mark.parametrize("text", ["text.txt", "default"])  # "default": and what the model writes
def test_a_tuned_conversion_is_calibrated_with_them_and_goes_on_to_the_same_bytes(
    tmp_path, monkeypatch, text
):
    require_built()
    if text != "default":
        text = tmp_path / text
        text.write_text("The old man said to the boy that the sea was calm. " * 400)
    model = hf_model(tmp_path / "model", "LlamaForCausalLM", intermediate_size=448)
    options = ConversionOptions(
        type="cb2", pure=True, calibration=Path(text), calibration_tokens=1024, tune=True, tune_tokens=4096,
        device="cpu", threads=1,
    )  # fmt: skip
    before = []

    def copied(path, source, original, output, pieces, known, **_):  # the steps have tests of their own
        before.append(path.read_bytes())
        output.write_bytes(path.read_bytes())

    monkeypatch.setattr(tune, "tune", copied)
    convert(model, options, tmp_path / "whole.gguf")

    encoded, stop = calibrate._encoded, [3]

    def stops(*args):
        if not stop[0]:
            raise KeyboardInterrupt
        stop[0] -= 1
        return encoded(*args)

    monkeypatch.setattr(calibrate, "_encoded", stops)
    with pytest.raises(KeyboardInterrupt):
        convert(model, options, tmp_path / "stopped.gguf")
    stop[0] = 100
    convert(model, options, tmp_path / "stopped.gguf")
    assert before[0] == before[1]

    monkeypatch.setattr(pipeline, "_is_two_sided", lambda *_: False)
    convert(model, options, tmp_path / "one-sided.gguf")
    assert before[2] != before[0]


@pytest.mark.torch
def test_damaged_weights_and_a_full_disk_are_one_line(source, tmp_path):
    original = tune.load(source, torch.device("cpu"))
    original[DOWN][3, 5] = torch.nan
    with pytest.raises(LutraError, match="predictions are not finite"):
        measure(source, original, PIECES, at_once=48, seed=0, threads=2)
    with WorkDirectory(tmp_path / "out.gguf", {}) as work:
        (work.path / "gradients.partial").symlink_to("/dev/full")
        with pytest.raises(LutraError, match="No space left on device; make room"):
            work.arrays_of("gradients", lambda: {"rows x": np.eye(300)})


@pytest.mark.torch
@pytest.mark.parametrize("architecture", ["LlamaForCausalLM", "Qwen2ForCausalLM"])
def test_both_networks_have_the_same(tmp_path, monkeypatch, architecture):
    pytest.importorskip("transformers", reason="the networks are not installed")
    source = open_source(hf_model(tmp_path / "model", architecture, dtype="F32", intermediate_size=448))
    mine = measured(source)
    monkeypatch.setattr(output_gradients, "network_of", TransformersNetwork)
    theirs = measured(source, threads=2)
    for some, others in ((mine.tokens, theirs.tokens), (mine.rows, theirs.rows)):
        assert some.keys() == others.keys()
        for name in some:
            assert np.allclose(some[name], others[name], rtol=1e-2, atol=1e-3 * others[name].max()), name


@pytest.mark.torch
@pytest.mark.parametrize("architecture", BLOCKS)
def test_every_family_has_them(tmp_path, architecture):
    pytest.importorskip("transformers", reason="the networks are not installed")
    config = SMALL | OTHERS.get(architecture, {})
    source = open_source(hf_model(tmp_path / "model", architecture, dtype="F32", **config))
    found = measured(source)
    matrices = {t.name: t for t in source.tensors if len(t.shape) == 2 and t.name.startswith("blk.")}
    assert found.tokens.keys() <= matrices.keys()
    assert len(found.tokens) >= len(matrices) / 2  # routers and experts are no linear modules
    assert "blk.0.attn_output.weight" in found.rows
    for name, rows in found.rows.items():
        assert rows.shape == (matrices[name].shape[0],) * 2
        assert np.linalg.eigvalsh(rows).max() > 0
    assert all(np.isfinite(sizes).all() for sizes in found.tokens.values())


def test_tokens_to_calibrate_with_need_calibration():
    with pytest.raises(LutraError, match="--calibration-tokens: nothing is calibrated"):
        ConversionOptions(type="cb3", calibrate=False, calibration_tokens=4096)
    assert "--calibration-tokens 4096" in ConversionOptions(type="cb3", calibration_tokens=4096).record()
