# SPDX-License-Identifier: MIT
"""The families of Hugging Face models: what each says is what llama.cpp has, and one module adds one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf_samples import BLOCKS, hf_model, read_hf, stored_names, write_safetensors

import gguf_tools
from gguf_tools.errors import LutraError
from gguf_tools.sources import huggingface, llama_converter
from gguf_tools.sources.config import read_config
from gguf_tools.sources.families import BY_ARCHITECTURE, FAMILIES, llama
from gguf_tools.sources.open import keeps_f32, open_source

LONG = {"type": "longrope", "long_factor": [1.0] * 24, "short_factor": [1.0] * 24}

YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}

ARCHITECTURES = pytest.mark.parametrize("architecture", BLOCKS)


def values(source):
    return {key: value.value for key, value in source.metadata.items()}


def config_of(model, family, architecture):
    raw = json.loads((model / "config.json").read_text())
    return read_config(model / "config.json", raw, architecture, family.architectures[architecture])


def test_no_two_families_serve_one_architecture():
    names = [name for family in FAMILIES for name in family.architectures]
    assert len(names) == len(set(names)) == len(BY_ARCHITECTURE)


def test_each_family_has_a_sample():
    assert {*BLOCKS, "Gemma3ForConditionalGeneration"} == set(BY_ARCHITECTURE)


@ARCHITECTURES
def test_llama_cpp_knows_the_tensors_of_a_block(tmp_path, architecture):
    family = BY_ARCHITECTURE[architecture]
    config = config_of(hf_model(tmp_path / "m", architecture), family, architecture)
    known = {gguf.TENSOR_NAMES[tensor].format(bid=0) for tensor in gguf.MODEL_TENSORS[family.arch]}
    matrices = [name for shared in family.matrices(config) for name in shared.rows]
    names = [*family.vectors(config), *matrices]
    assert {f"blk.0.{name}" for name in names} <= known
    assert len(names) == len(set(names))


@ARCHITECTURES
def test_rows_are_reordered_within_their_tensor(tmp_path, architecture):
    family = BY_ARCHITECTURE[architecture]
    config = config_of(hf_model(tmp_path / "m", architecture), family, architecture)
    for shared in family.matrices(config):
        for name, rows in shared.rows.items():
            order = family.row_order(name, config)
            assert order is None or sorted(order) == list(range(rows))


@ARCHITECTURES
def test_vectors_and_routers_stay_f32(tmp_path, architecture):
    """As llama.cpp's converter writes these families."""
    for tensor in open_source(hf_model(tmp_path / "m", architecture)).tensors:
        assert tensor.keeps_f32 == keeps_f32(tensor.name, tensor.shape)


@pytest.mark.parametrize(
    ("architecture", "context"),
    [("LlamaForCausalLM", 2048), ("MistralForCausalLM", 131072), ("Qwen2ForCausalLM", 32768)],
)
def test_defaults_are_those_of_transformers(tmp_path, architecture, context):
    model = hf_model(tmp_path / "m", architecture, max_position_embeddings=None)
    found = values(open_source(model))
    arch = found["general.architecture"]
    assert found[f"{arch}.context_length"] == context
    assert (f"{arch}.attention.key_length" in found) == (arch == "llama")


@pytest.mark.parametrize(
    ("architecture", "name"),
    [
        ("LlamaForCausalLM", "llama-bpe"),
        ("Olmo2ForCausalLM", "dbrx"),
        ("Phi3ForCausalLM", "dbrx"),
        ("GraniteForCausalLM", "dbrx"),
    ],
)
def test_a_family_has_names_of_its_own_for_pre_tokenizers(tmp_path, architecture, name):
    """llama-bpe would look for whole words before it merges."""
    found = values(open_source(hf_model(tmp_path / "m", architecture)))
    assert found["tokenizer.ggml.pre"] == name


@pytest.mark.parametrize(
    "config",
    [
        {"layer_types": ["mamba", "attention"]},
        {"layer_types": None},
        {"num_local_experts": 8, "num_experts_per_tok": 2},
        {"position_embedding_type": "nope"},
        {"shared_intermediate_size": 608},
    ],
)
def test_a_hybrid_of_granite_is_not_taken_for_its_dense_form(tmp_path, monkeypatch, config):
    """Nothing is installed here that could convert it, so the error says what would."""
    monkeypatch.setattr(llama_converter.importlib.util, "find_spec", lambda name: None)
    sound = hf_model(tmp_path / "sound", "GraniteMoeHybridForCausalLM")
    assert huggingface.require_readable(sound)
    path = hf_model(tmp_path / "other", "GraniteMoeHybridForCausalLM") / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    with pytest.raises(
        LutraError, match=r"GraniteMoeHybridForCausalLM is not read directly.*lutra-llm\[hf\]"
    ):
        open_source(path.parent)


@pytest.mark.parametrize("says", [True, None])
def test_granites_vocabulary_has_no_bos(tmp_path, monkeypatch, says):
    """In a Llama of its size, whatever tokenizer_config.json says."""
    model = hf_model(tmp_path / "m", "LlamaForCausalLM")
    path = model / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "add_bos_token": says}))
    (model / "tokenizer.json").write_text(
        json.dumps({**json.loads((model / "tokenizer.json").read_text()), "post_processor": None})
    )
    assert values(open_source(model)).get("tokenizer.ggml.add_bos_token") is says
    monkeypatch.setattr(llama, "_NO_BOS", 264)
    found = values(open_source(model))
    assert found["tokenizer.ggml.add_bos_token"] is False
    assert list(found)[-1] == "tokenizer.ggml.add_bos_token"


@pytest.mark.parametrize(
    ("architecture", "config", "words"),
    [
        ("Qwen3ForCausalLM", {"use_sliding_window": True, "sliding_window": 128}, "sliding_window is 128"),
        ("SmolLM3ForCausalLM", {"use_sliding_window": True, "sliding_window": 128}, "sliding_window is 128"),
        ("SmolLM3ForCausalLM", {"no_rope_layers": [1, 1, 1, 1]}, "no_rope_layers"),
        ("SmolLM3ForCausalLM", {"no_rope_layer_interval": 2}, "no_rope_layers"),
        ("Qwen3MoeForCausalLM", {"norm_topk_prob": None}, "norm_topk_prob is False"),
        ("Qwen3MoeForCausalLM", {"decoder_sparse_step": 2}, "decoder_sparse_step is 2"),
        ("Qwen3MoeForCausalLM", {"mlp_only_layers": [0]}, "mlp_only_layers"),
        ("MixtralForCausalLM", {"sliding_window": 128}, "sliding_window is 128"),
        ("MixtralForCausalLM", {"num_experts_per_tok": 0}, "num_experts_per_tok"),
        ("GraniteForCausalLM", {"head_dim": 32}, "heads of head_dim 32"),
        ("GraniteForCausalLM", {"logits_scaling": None}, "'logits_scaling' is None"),
        (
            "OlmoeForCausalLM",
            {"num_key_value_heads": 1},
            "num_key_value_heads is 1, but llama.cpp computes with 3",
        ),
        ("OlmoeForCausalLM", {"rms_norm_eps": 1e-6}, "rms_norm_eps is 1e-06"),
        ("Olmo3ForCausalLM", {"rope_theta": 1000000.0}, "rope_theta is 500000 in layers with a window"),
        ("Olmo3ForCausalLM", {"layer_types": ["full_attention"]}, "1 layer_types for 4 layers"),
        ("Phi3ForCausalLM", {"rope_scaling": {"type": "yarn", "factor": 4.0}}, "rope type 'yarn'"),
        (
            "Phi3ForCausalLM",
            {"rope_scaling": {**LONG, "attention_factor": 2.0}},
            "attention_factor is not 1.1",
        ),
        ("Phi3ForCausalLM", {"rope_scaling": {**LONG, "long_factor": [1.0]}}, "long_factor is no list of 24"),
        ("Phi3ForCausalLM", {"rope_scaling": {**LONG, "long_factor": [0.0] * 24}}, "long_factor has 0.0"),
        ("Phi3ForCausalLM", {"partial_rotary_factor": 1.5}, "partial_rotary_factor is 1.5"),
        (
            "SmolLM3ForCausalLM",
            {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}},
            "rope type 'llama3'",
        ),
        ("LlamaForCausalLM", {"rope_scaling": {**YARN, "truncate": False}}, "truncate false"),
        ("Gemma3ForCausalLM", {"query_pre_attn_scalar": 64}, "query_pre_attn_scalar is 64"),
        ("Gemma3ForCausalLM", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ("Gemma3ForCausalLM", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
        ("Gemma3ForCausalLM", {"hidden_activation": "silu"}, "'silu'"),
        ("Gemma3ForCausalLM", {"sliding_window": None}, "'sliding_window' is None"),
        ("Gemma2ForCausalLM", {"attn_logit_softcapping": None}, "'attn_logit_softcapping' is None"),
        ("Gemma2ForCausalLM", {"rope_theta": 20000.0}, "rope"),
    ],
)
def test_what_the_graph_does_not_compute_is_refused(tmp_path, architecture, config, words):
    with pytest.raises(LutraError, match=words):
        open_source(hf_model(tmp_path / "m", architecture, **config))


@pytest.mark.parametrize("shards", [1, 3])
def test_experts_are_stacked_while_they_are_read(tmp_path, shards):
    model = hf_model(tmp_path / "m", "MixtralForCausalLM")
    stored = {
        (wid, i): read_hf(model, f"model.layers.1.block_sparse_moe.experts.{i}.{wid}.weight")
        for wid in ("w1", "w2", "w3")
        for i in range(4)
    }
    with open_source(hf_model(tmp_path / "s", "MixtralForCausalLM", shards=shards)) as source:
        tensors = {t.name: t for t in source.tensors}
        for name, wid in (("ffn_gate", "w1"), ("ffn_down", "w2"), ("ffn_up", "w3")):
            tensor = tensors[f"blk.1.{name}_exps.weight"]
            expected = np.concatenate([stored[wid, i] for i in range(4)])
            rows = len(expected) // 4
            assert tensor.shape == (4, rows, expected.shape[1])
            assert np.array_equal(tensor.read(), expected)
            for part in ((0, 1), (rows - 1, rows + 1), (rows, 2 * rows), (rows + 3, 4 * rows - 2), (7, 7)):
                assert np.array_equal(tensor.read(*part), expected[slice(*part)]), part


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda tensors, name: tensors.pop(name), "w1.weight of expert 2 is missing"),
        (lambda tensors, name: tensors.update({name: tensors[name][:-1]}), "has the shape"),
        (lambda tensors, name: tensors.update({name: tensors[name][None]}), "has the shape"),
        (
            lambda tensors, name: tensors.update({name.replace(".2.", ".4."): tensors[name]}),
            "more than 4 experts",
        ),
        (
            lambda tensors, name: tensors.update({name.replace("w1", "w4"): tensors[name]}),
            "w4.weight of expert 0 is missing",
        ),
    ],
)
def test_damaged_experts_are_named(tmp_path, change, words):
    model = hf_model(tmp_path / "m", "MixtralForCausalLM")
    tensors = {name: read_hf(model, name) for name in stored_names(model)}
    change(tensors, "model.layers.1.block_sparse_moe.experts.2.w1.weight")
    write_safetensors(model / "model.safetensors", tensors)
    with pytest.raises(LutraError, match=words):
        open_source(model)


def test_the_text_of_a_model_that_sees(tmp_path):
    """Gemma 3 as published: the decoder's settings and tensors have names of their own."""
    model = hf_model(tmp_path / "m", "Gemma3ForCausalLM")
    with open_source(model) as source:
        expected = {t.name: t.read() for t in source.tensors}
        metadata = source.metadata
    path = model / "config.json"
    text = json.loads(path.read_text())
    del text["architectures"]
    config = {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "model_type": "gemma3",
        "text_config": text,
    }
    path.write_text(json.dumps(config))
    stored = {name: read_hf(model, name) for name in stored_names(model)}
    for before, vision in (("language_model.model.", ""), ("model.language_model.", "model.")):
        tensors = {name.replace("model.", before, 1): tensor for name, tensor in stored.items()}
        tensors[f"{vision}vision_tower.embeddings.weight"] = np.ones((4, 4), np.float32)
        tensors[f"{vision}multi_modal_projector.mm_soft_emb_norm.weight"] = np.ones(4, np.float32)
        write_safetensors(model / "model.safetensors", tensors)
        with open_source(model) as source:
            assert source.metadata == metadata
            found = {t.name: t.read() for t in source.tensors}
        assert list(found) == list(expected)
        assert all(np.array_equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("kinds", "window", "pattern"),
    [
        ("ssssss", 64, [True] * 6),
        ("sssssf", 64, None),
        ("ffffff", None, None),
        ("sfsfsf", 64, [True, False] * 3),
    ],
)
def test_layers_with_a_window(tmp_path, kinds, window, pattern):
    names = {"s": "sliding_attention", "f": "full_attention"}
    config = {"layer_types": [names[kind] for kind in kinds]}
    found = values(open_source(hf_model(tmp_path / "m", "Gemma3ForCausalLM", **config)))
    assert found.get("gemma3.attention.sliding_window") == window
    assert found.get("gemma3.attention.sliding_window_pattern") == pattern


@pytest.mark.parametrize(
    ("architecture", "config"),
    [
        ("Phi3ForCausalLM", {}),
        ("MistralForCausalLM", {}),
        ("Qwen2ForCausalLM", {"use_sliding_window": True}),
    ],
)
def test_a_window_that_llama_cpp_ignores(tmp_path, caplog, architecture, config):
    """These convert all the same, as everywhere else."""
    open_source(hf_model(tmp_path / "m", architecture, sliding_window=512, **config))
    assert not caplog.text
    open_source(hf_model(tmp_path / "w", architecture, sliding_window=64, **config))
    assert "sliding_window is 64, which llama.cpp ignores" in caplog.text


@pytest.mark.parametrize(
    ("architecture", "config"),
    [
        ("LlamaForCausalLM", {"sliding_window": 64}),
        ("MistralForCausalLM", {"sliding_window": None}),
        ("Qwen2ForCausalLM", {"sliding_window": 64, "use_sliding_window": False}),
        ("Qwen3ForCausalLM", {"sliding_window": 64, "use_sliding_window": False}),
        ("MixtralForCausalLM", {"sliding_window": None}),
    ],
)
def test_no_window(tmp_path, caplog, architecture, config):
    """What transformers takes for none."""
    open_source(hf_model(tmp_path / "m", architecture, max_position_embeddings=32768, **config))
    assert not caplog.text


@pytest.mark.parametrize(
    ("scaling", "factor"),
    [
        ({}, None),
        ({"attention_factor": 0.1 * np.log(4) + 1}, None),
        ({"attention_factor": 1.0}, 1 / (0.1 * np.log(4) + 1)),
        ({"mscale": 2.0, "mscale_all_dim": 1.0}, (0.2 * np.log(4) + 1) / (0.1 * np.log(4) + 1) ** 2),
    ],
)
def test_yarn_with_another_factor_of_attention(tmp_path, scaling, factor):
    """llama.cpp computes its own, which this one comes on top of."""
    found = values(
        open_source(hf_model(tmp_path / "m", "LlamaForCausalLM", rope_scaling={**YARN, **scaling}))
    )
    assert found.get("llama.rope.scaling.attn_factor") == (factor and pytest.approx(factor))


def test_a_window_beyond_the_context_is_none(tmp_path):
    config = {"use_sliding_window": True, "sliding_window": 512}
    open_source(hf_model(tmp_path / "m", "Qwen3ForCausalLM", **config))


def test_a_bias_is_reordered_with_its_rows(tmp_path, monkeypatch):
    """Qwen2's biases, in Llama's order."""
    family = BY_ARCHITECTURE["Qwen2ForCausalLM"]
    reordered = replace(family, row_order=BY_ARCHITECTURE["LlamaForCausalLM"].row_order)
    monkeypatch.setitem(BY_ARCHITECTURE, "Qwen2ForCausalLM", reordered)
    source = open_source(hf_model(tmp_path / "m"))
    tensors = {t.name: t.read() for t in source.tensors}
    bias = read_hf(source.path, "model.layers.0.self_attn.k_proj.bias")
    assert np.array_equal(tensors["blk.0.attn_k.bias"], bias.reshape(2, 32).T.reshape(1, -1))


MADE_UP = """
from dataclasses import replace

import gguf

from gguf_tools.sources.families import qwen2
from gguf_tools.sources.family import norms_before


def vectors(config):
    return norms_before(config) | {"attn_q_norm": config.head_dim, "attn_k_norm": config.head_dim}


FAMILY = replace(
    qwen2.FAMILY,
    arch=gguf.MODEL_ARCH.QWEN3,
    architectures={"MadeUpForCausalLM": {"head_dim": 64}},
    vectors=vectors,
)
"""

# Prints architecture, length of a head and names of tensors of a model.
OPEN = """
import sys

from gguf_tools.sources.open import open_source

with open_source(sys.argv[1]) as source:
    length = source.metadata["qwen3.attention.key_length"].value
    print(source.architecture, length, *(t.name for t in source.tensors))
"""


def test_one_module_adds_a_family(tmp_path):
    """A copy of gguf_tools in which a module is new reads a model that it did not know."""
    package = tmp_path / "gguf_tools"
    shutil.copytree(Path(gguf_tools.__file__).parent, package)
    model = hf_model(tmp_path / "m")
    names = [t.name for t in open_source(model).tensors]
    stored = {name: read_hf(model, name) for name in stored_names(model)}
    norms = {f"model.layers.0.self_attn.{x}_norm.weight": np.ones(64, np.float32) for x in "qk"}
    write_safetensors(model / "model.safetensors", stored | norms)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "architectures": ["MadeUpForCausalLM"]}))

    def read():
        command = [sys.executable, "-c", OPEN, str(model)]
        environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
        return subprocess.run(command, cwd=tmp_path, env=environment, text=True, capture_output=True)

    assert "MadeUpForCausalLM is not read directly" in read().stderr
    (package / "sources" / "families" / "made_up.py").write_text(MADE_UP)
    done = read()
    assert done.returncode == 0, done.stderr
    arch, length, *found = done.stdout.split()
    assert (arch, length) == ("qwen3", "64")
    assert sorted(found) == sorted([*names, "blk.0.attn_q_norm.weight", "blk.0.attn_k_norm.weight"])
