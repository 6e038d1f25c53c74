# SPDX-License-Identifier: MIT
"""Model families whose tensors take other ways through the kernels, with random weights."""

from __future__ import annotations

import json

import numpy as np
import pytest
from cli_runner import TINY_CHAT, lutra, require_built
from gguf_samples import F32, hf_model, random_model, u32, write_gguf

from gguf_tools.formats import codebook
from gguf_tools.formats.family import CB_FORMATS
from gguf_tools.inspect import read_info
from gguf_tools.reader import GGUFFile
from gguf_tools.sources.open import open_source

EXPERTS, USED, LAYERS, HIDDEN, FFN = 4, 2, 2, 256, 512


@pytest.fixture(scope="module")
def mixture(tmp_path_factory):
    """A mixture of experts (MUL_MAT_ID) with tiny-chat's vocabulary."""
    metadata = open_source(TINY_CHAT).metadata | {
        "llama.block_count": u32(LAYERS),
        "llama.feed_forward_length": u32(FFN),
        "llama.expert_count": u32(EXPERTS),
        "llama.expert_used_count": u32(USED),
    }
    layer = {
        "attn_norm": (HIDDEN,),
        "ffn_norm": (HIDDEN,),
        "attn_q": (HIDDEN, HIDDEN),
        "attn_k": (HIDDEN // 2, HIDDEN),
        "attn_v": (HIDDEN // 2, HIDDEN),
        "attn_output": (HIDDEN, HIDDEN),
        "ffn_gate_inp": (EXPERTS, HIDDEN),
        "ffn_gate_exps": (EXPERTS, FFN, HIDDEN),
        "ffn_up_exps": (EXPERTS, FFN, HIDDEN),
        "ffn_down_exps": (EXPERTS, HIDDEN, FFN),
    }
    shapes = {f"blk.{i}.{name}.weight": shape for i in range(LAYERS) for name, shape in layer.items()}
    shapes |= {
        "token_embd.weight": (4096, HIDDEN),
        "output.weight": (4096, HIDDEN),
        "output_norm.weight": (HIDDEN,),
    }
    return random_model(tmp_path_factory.mktemp("moe") / "moe-f32.gguf", metadata, shapes)


def dequantized(path, output):
    """The same model with its codebook tensors written out as F32."""
    file = GGUFFile(path)
    tensors = {}
    for t in file.tensors.values():
        if fmt := CB_FORMATS.get(t.type):
            rows = int(np.prod(t.shape[:-1]))
            w = codebook.dequantize(file.data(t), rows, t.shape[-1], fmt)
            tensors[t.name] = (F32, t.shape, np.ascontiguousarray(w, np.float32))
        else:
            tensors[t.name] = (t.type, t.shape, file.data(t))
    metadata = {k: v for k, v in file.metadata.items() if not k.startswith("lutra.")}
    return write_gguf(output, tensors, metadata)


def divergence(model, base, tmp_path) -> float:
    text = tmp_path / "text.txt"
    text.write_text("The old man said to the boy that the sea was calm and the night was long. " * 60)
    done = lutra("eval", model, "--text", text, "--base", base, "--ctx", 128, "--chunks", 4, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["kld_mean"]


@pytest.mark.parametrize("kind", ["cb2", "cb4"])
def test_a_mixture_of_experts_matches_its_dequantized_weights(kind, mixture, tmp_path):
    require_built("llama-perplexity")
    path = tmp_path / "moe.gguf"
    done = lutra("convert", mixture, "--type", kind, "-o", path, "--pure", "--no-calibration")
    assert done.returncode == 0, done.stderr
    kinds = {t["name"]: t["type"] for t in read_info(path).to_json()["tensors"]}
    assert kinds["blk.0.ffn_gate_exps.weight"] == kind.upper()
    assert kinds["blk.0.ffn_gate_inp.weight"] == "F32"
    same = divergence(path, dequantized(path, tmp_path / "dequantized.gguf"), tmp_path)
    changed = divergence(path, mixture, tmp_path)
    # What is left is the rounding of the activations to 8 bits, and what it does to close decisions of the
    # router; the operation alone is compared to float accuracy in tests/overlay.
    assert same < 0.1 * changed, (same, changed)


def test_a_qwen2_model_of_odd_sizes(tmp_path):
    require_built("llama-perplexity")
    origin = open_source(hf_model(tmp_path / "qwen"))
    shapes = {tensor.name: tensor.shape for tensor in origin.tensors}
    source = random_model(tmp_path / "qwen.gguf", origin.metadata, shapes)
    kld = {}
    for kind in ("f16", "cb4", "iq4_nl"):
        done = lutra("convert", source, "--type", kind, "--no-calibration", "-o", tmp_path / f"{kind}.gguf")
        assert done.returncode == 0, done.stderr
    tensors = read_info(tmp_path / "cb4.gguf").tensors
    in_cb = sum(t.weights for t in tensors if t.type in CB_FORMATS)
    assert in_cb > 0.9 * sum(t.weights for t in tensors)
    for kind in ("cb4", "iq4_nl"):
        kld[kind] = divergence(tmp_path / f"{kind}.gguf", tmp_path / "f16.gguf", tmp_path)
    assert 0 < kld["cb4"] < kld["iq4_nl"]
