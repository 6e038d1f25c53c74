# SPDX-License-Identifier: MIT
"""Families against the graph that the runtime computes, and against what transformers computes."""

from __future__ import annotations

import json

import numpy as np
import pytest
from cli_runner import lutra, require_built
from gguf_samples import BLOCKS, hf_model

from gguf_tools.formats.family import CB_FORMATS
from gguf_tools.inspect import read_info
from gguf_tools.sources.config import read_config
from gguf_tools.sources.families import BY_ARCHITECTURE
from lutra.conversion.calibrate import matmul_order
from lutra.runtime.model import Model

ARCHITECTURES = pytest.mark.parametrize("architecture", BLOCKS)


def converted(model, kind, *options):
    path = model.with_suffix(f".{kind}.gguf")
    done = lutra("convert", model, "--type", kind, "-o", path, *options)
    assert done.returncode == 0, done.stderr
    return path


@ARCHITECTURES
def test_matrices_share_their_inputs_in_the_graph_too(tmp_path, architecture):
    require_built("llama-perplexity")
    family = BY_ARCHITECTURE[architecture]
    path = hf_model(tmp_path / "m", architecture) / "config.json"
    config = read_config(path, json.loads(path.read_text()), architecture, family.architectures[architecture])
    shared = [
        {f"blk.{i}.{name}.weight" for name in inputs.rows}
        for i in range(config.layers)
        for inputs in family.matrices(config)
    ]
    model = converted(path.parent, "f16")
    groups = matmul_order(model, set().union(*shared), [1, 2, 3], threads=1)
    assert [set(group) for group in groups] == shared


@ARCHITECTURES
def test_a_calibrated_model_is_computed(tmp_path, architecture):
    require_built("llama-perplexity")
    text = tmp_path / "text.txt"
    text.write_text("The old man said to the boy that the sea was calm. " * 12)
    path = converted(hf_model(tmp_path / "m", architecture), "cb4", "--calibration", text)
    tensors = read_info(path).tensors
    assert sum(t.weights for t in tensors if t.type in CB_FORMATS) > 0.75 * sum(t.weights for t in tensors)
    done = lutra("eval", path, "--text", text, "--ctx", 128, "--chunks", 1, "--json")
    assert done.returncode == 0, done.stderr
    assert 1 < json.loads(done.stdout)["ppl"] < 1e9


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LONGROPE = {
    "rope_type": "longrope",
    "factor": 4.0,
    "original_max_position_embeddings": 64,
    "long_factor": [1 + 0.3 * i for i in range(32)],
    "short_factor": [1 + 0.1 * i for i in range(32)],
}
OTHERS = [
    ("LlamaForCausalLM", {"rope_scaling": LONGROPE}),
    ("LlamaForCausalLM", {"rope_scaling": {**YARN, "attention_factor": 1.0}}),
    ("Qwen3ForCausalLM", {"rope_scaling": {**YARN, "mscale": 1.0, "mscale_all_dim": 0.5}}),
    (
        "Olmo3ForCausalLM",
        {"rope_scaling": {**YARN, "attention_factor": 1.2, "beta_fast": 32, "beta_slow": 1}},
    ),
    ("GraniteForCausalLM", {"rope_scaling": LLAMA3}),
    (
        "Gemma3ForCausalLM",
        {
            "layer_types": ["sliding_attention", "full_attention"] * 3,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
            "rope_local_base_freq": 5000.0,
            "final_logit_softcapping": 30.0,
        },
    ),
    ("Gemma2ForCausalLM", {"layer_types": ["full_attention", "sliding_attention"]}),
    ("Phi3ForCausalLM", {"rope_scaling": None}),
]


@pytest.mark.torch
@pytest.mark.parametrize(("architecture", "config"), [*((name, {}) for name in BLOCKS), *OTHERS])
def test_logits_are_those_of_transformers(tmp_path, architecture, config):
    """Up to the rounding of weights and activations to F16, in units of the logits' standard deviation."""
    import torch
    from transformers import AutoModelForCausalLM

    tokens = np.random.default_rng(0).integers(0, 256, 200).tolist()
    # Of norms around 1, or what comes out does not depend on where a token is.
    gain = 1 - BY_ARCHITECTURE[architecture].norm_offset
    directory = hf_model(tmp_path / "m", architecture, gain=gain, **config)
    reference = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    with torch.no_grad():
        expected = reference(torch.tensor([tokens])).logits[0].numpy()
    with Model(converted(directory, "f16"), threads=1) as model:
        found = np.ctypeslib.as_array(model.logits(tokens), expected.shape).copy()
    difference = np.abs(found - expected).max(axis=1) / expected.std(axis=1)
    assert np.median(difference) < 0.01, difference
