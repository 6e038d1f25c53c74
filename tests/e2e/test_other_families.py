# SPDX-License-Identifier: MIT
"""Families that are read by way of llama.cpp's converter: small random models of transformers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from cli_runner import lutra, require_built
from gguf_samples import LLAMA3_WORDS, byte_level_tokenizer
from hub_server import serve

from gguf_tools.formats.family import CB_FORMATS
from gguf_tools.formats.keys import END_TOKENS_KEY
from gguf_tools.inspect import read_info
from gguf_tools.sources.open import Scratch, open_source
from lutra.runtime.model import Model

pytestmark = pytest.mark.torch

SIZES = {
    "vocab_size": 320,
    "num_hidden_layers": 2,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 512,
    "bos_token_id": None,
    "eos_token_id": 259,
    "pad_token_id": 258,
}
DEEPSEEK3 = {
    "q_lora_rank": 64,
    "kv_lora_rank": 64,
    "qk_rope_head_dim": 32,
    "qk_nope_head_dim": 32,
    "v_head_dim": 32,
    "n_routed_experts": 8,
    "n_group": 2,
    "topk_group": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 64,
    "first_k_dense_replace": 1,
}
LINEAR = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 32,
}


def saved(directory: Path, config: str, **values) -> Path:
    """A model as transformers saves it, with a tokenizer that llama.cpp's converter has not on its list."""
    import torch
    import transformers

    torch.manual_seed(0)
    shape = getattr(transformers, config)(**SIZES | values)
    model = transformers.AutoModelForCausalLM.from_config(shape).to(torch.bfloat16)
    for weights in model.parameters():
        if weights.dim() > 1:
            torch.nn.init.normal_(weights, std=0.06)
    model.save_pretrained(directory)
    tokenizer, tokens = byte_level_tokenizer(LLAMA3_WORDS)
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer))
    (directory / "tokenizer_config.json").write_text(json.dumps(tokens))
    return directory


@pytest.mark.parametrize(
    ("config", "values"), [("Cohere2Config", {"sliding_window": 64}), ("DeepseekV3Config", DEEPSEEK3)]
)
def test_logits_are_those_of_transformers(tmp_path, config, values):
    """Although config.json, as transformers 5 writes it, says less than the converter wants to know."""
    import torch
    from transformers import AutoModelForCausalLM

    require_built()
    directory, path = saved(tmp_path / "m", config, **values), tmp_path / "m.gguf"
    done = lutra("convert", directory, "--type", "f16", "-o", path)
    assert done.returncode == 0, done.stderr
    tokens = np.random.default_rng(0).integers(0, 256, 200).tolist()
    reference = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    with torch.no_grad():
        expected = reference(torch.tensor([tokens])).logits[0].numpy()
    with Model(path, threads=1) as model:
        found = np.ctypeslib.as_array(model.logits(tokens), expected.shape).copy()
    difference = np.abs(found - expected).max(axis=1) / expected.std(axis=1)
    assert np.median(difference) < 0.01, difference


def test_a_model_of_the_hub_is_calibrated(tmp_path):
    require_built()
    model = saved(tmp_path / "hub" / "Tiny-Cohere", "Cohere2Config", sliding_window=64)
    (model / "generation_config.json").write_text(json.dumps({"eos_token_id": [259, 97, 98, 99]}))
    text = tmp_path / "text.txt"
    text.write_text("The old man said to the boy that the sea was calm. " * 12)
    with serve({"org/Tiny-Cohere": tmp_path / "hub" / "Tiny-Cohere"}) as hub:
        env = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "0", "HF_TOKEN": ""}
        options = ("--type", "cb4", "--calibration", text)
        done = lutra("convert", "org/Tiny-Cohere", *options, cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    info = read_info(tmp_path / "Tiny-Cohere-cb4.gguf")
    assert info.metadata["general.name"].value == "Tiny-Cohere"
    assert info.metadata["tokenizer.ggml.eot_token_id"].value == 97
    assert info.metadata[END_TOKENS_KEY].value == "99"  # 98 is its eom
    assert sum(t.weights for t in info.tensors if t.type in CB_FORMATS) > 0.85 * sum(
        t.weights for t in info.tensors
    )
    assert "calibrated" in done.stderr
    assert not list(tmp_path.glob(".*"))


def test_a_model_without_the_layers_that_predict_several_tokens(tmp_path):
    """transformers drops them from Qwen3.5, whose converter asks for them."""
    directory = saved(
        tmp_path / "m",
        "Qwen3_5TextConfig",
        head_dim=64,
        layer_types=["linear_attention", "full_attention"],
        **LINEAR,
    )
    with open_source(directory, Scratch(tmp_path / "x.gguf")) as source:
        assert source.architecture == "qwen35"
        assert source.metadata["qwen35.block_count"].value == 2
