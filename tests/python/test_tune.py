# SPDX-License-Identifier: MIT
"""Tuning: torch computes what the model computes, only what is continuous changes, and for the better."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from cli_runner import TINY_CHAT, assert_error, lutra, require_built
from gguf_samples import hf_model, write_gguf

from gguf_tools.errors import LutraError
from gguf_tools.formats import codebook
from gguf_tools.formats.catalog import TYPES
from gguf_tools.formats.family import CB_FORMATS
from gguf_tools.reader import GGUFFile
from gguf_tools.sources.open import keeps_f32, open_source
from lutra.conversion import tune

try:
    import torch
except ImportError:
    torch = None

LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
MODELS = {
    "qwen2": ("Qwen2ForCausalLM", {}),
    "llama, tied": ("LlamaForCausalLM", {}),
    "llama 3": ("LlamaForCausalLM", {"rope_scaling": LLAMA3, "head_dim": 32}),
}


def pieces(n: int, length: int, seed: int = 0) -> list[list[int]]:
    return np.random.default_rng(seed).integers(0, 264, (n, length)).tolist()


@pytest.fixture
def source(tmp_path):
    return open_source(hf_model(tmp_path / "model", dtype="F32"))


@pytest.fixture
def quantized(tmp_path, source):
    """``source`` in CB2, its embeddings in CB4, its output unchanged."""
    require_built()
    from pyquant import encode, learn

    tensors = {}
    for t in source.tensors:
        w = t.read()
        kind = "cb4" if t.name == "token_embd.weight" else "cb2"
        kept = keeps_f32(t.name, t.shape) or t.name == "output.weight"
        fmt = None if kept else CB_FORMATS.get(TYPES[kind].id_for(t.shape))
        if not fmt:
            tensors[t.name] = (0, t.shape, w)
        else:
            library = learn(w, fmt)
            data = np.concatenate([encode(w, library, fmt), library.view(np.uint8).reshape(-1)])
            tensors[t.name] = (fmt.type, t.shape, data)
    return write_gguf(tmp_path / "quantized.gguf", tensors, source.metadata)


def divergence(source, path) -> float:
    """On tokens that nothing was tuned with."""
    network, file = tune.Network.of(source), GGUFFile(path)
    original = {t.name: torch.from_numpy(t.read().reshape(t.shape)) for t in source.tensors}
    weights = {}
    for name, info in file.tensors.items():
        fmt = CB_FORMATS.get(info.type)
        data = file.data(info)
        w = codebook.dequantize(data, *info.shape, fmt) if fmt else data.view(np.float32).reshape(info.shape)
        weights[name] = torch.from_numpy(w.copy())
    tokens = torch.tensor(pieces(4, 32, seed=1))
    p, q = (network.forward(w, tokens).log_softmax(-1) for w in (original, weights))
    return float((p.exp() * (p - q)).sum(-1).mean())


@pytest.mark.torch
@pytest.mark.parametrize("model", MODELS)
def test_network_computes_what_transformers_does(tmp_path, model):
    transformers = pytest.importorskip("transformers", reason="the reference is not installed")
    architecture, config = MODELS[model]
    directory = hf_model(tmp_path / "model", architecture, dtype="F32", **config)
    source = open_source(directory)
    weights = {t.name: torch.from_numpy(t.read().reshape(t.shape)) for t in source.tensors}
    tokens = torch.tensor(pieces(2, 100))
    kind = getattr(transformers, architecture)
    reference = kind.from_pretrained(directory, dtype=torch.float32)
    if "tied" in model:
        source = replace(source, tensors=[t for t in source.tensors if t.name != "output.weight"])
        reference.lm_head.weight = reference.model.embed_tokens.weight
    with torch.no_grad():
        expected = reference(tokens).logits
    logits = tune.Network.of(source).forward(weights, tokens)
    assert expected.std() > 1e-3
    torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-3 * float(expected.std()))


@pytest.mark.torch
def test_gradients_are_those_of_the_weights(quantized):
    file = GGUFFile(quantized)
    codebook = tune._open(file, file.tensors["blk.0.attn_k.weight"])
    entries, ratio = (p for p, _ in codebook.parameters())
    direction = torch.randn(file.tensors["blk.0.attn_k.weight"].shape, generator=torch.manual_seed(0))
    for parameter, gradient in zip((entries, ratio), codebook.reduce(direction), strict=True):
        change = torch.randn(parameter.shape, generator=torch.manual_seed(1)) * 1e-3
        before = codebook.weights()
        parameter += change
        difference = float(((codebook.weights() - before) * direction).sum())
        parameter -= change
        assert difference == pytest.approx(float((gradient * change).sum()), rel=2e-2)


@pytest.mark.torch
def test_only_what_is_continuous_changes_and_divergence_falls(tmp_path, source, quantized, monkeypatch):
    monkeypatch.setattr(tune, "BATCH", 64)
    monkeypatch.setattr(tune, "TABLE_RATE", 1.0)  # in few steps far enough for another int8
    outputs = [tmp_path / f"tuned-{threads}.gguf" for threads in (1, 3)]
    for threads, output in zip((1, 3), outputs, strict=True):
        tune.tune(quantized, source, output, pieces(16, 32), seed=0, threads=threads)
    assert outputs[0].read_bytes() == outputs[1].read_bytes()
    assert divergence(source, outputs[0]) < 0.95 * divergence(source, quantized)
    before, after = GGUFFile(quantized), GGUFFile(outputs[0])
    assert list(before.tensors) == list(after.tensors)
    changed = []
    for name, info in before.tensors.items():
        old, new = before.data(info), after.data(after.tensors[name])
        if fmt := CB_FORMATS.get(info.type):
            codes, selectors, d, library = codebook.unpack(old, *info.shape, fmt)
            tuned = codebook.unpack(new, *info.shape, fmt)
            assert np.array_equal(codes, tuned[0]), name
            assert np.array_equal(selectors, tuned[1]), name
            changed += [not np.array_equal(d, tuned[2]), not np.array_equal(library, tuned[3])]
        else:
            assert np.array_equal(old, new) == (not name.endswith("_norm.weight")), name
    assert any(changed[::2])
    assert any(changed[1::2])


@pytest.mark.torch
def test_nothing_is_left_of_a_tuning_that_fails(tmp_path, source, quantized):
    output = tmp_path / "out" / "tuned.gguf"
    output.parent.mkdir()
    with pytest.raises(IndexError):
        tune.tune(quantized, source, output, [[264] * 8], seed=0, threads=1)  # no such token
    assert list(output.parent.iterdir()) == []


@pytest.mark.torch
def test_what_it_cannot_compute_is_refused(source):
    tune.require(source)
    with pytest.raises(LutraError, match=r"'gemma3'.*convert without"):
        tune.require(replace(source, architecture="gemma3"))
    extra = replace(source.tensors[0], name="blk.0.attn_q_norm.weight")
    with pytest.raises(LutraError, match=r"blk\.0\.attn_q_norm\.weight"):
        tune.require(replace(source, tensors=[*source.tensors, extra]))


def test_without_torch_it_says_what_to_install(source, monkeypatch):
    monkeypatch.setattr(tune.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(LutraError, match="pip install torch"):
        tune.require(source)


@pytest.mark.parametrize("options", [["--type", "q4_k"], ["--type", "cb2", "--no-calibration"]])
def test_it_needs_codebooks_and_a_text(tmp_path, options):
    done = lutra("convert", TINY_CHAT, *options, "--tune", "-o", tmp_path / "out.gguf")
    assert_error(done, "--tune needs codebooks and a text", "--calibration default")
    assert list(tmp_path.iterdir()) == []
