# SPDX-License-Identifier: MIT
"""What is read directly against llama.cpp's own converter, which needs torch: the same files."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cli_runner import lutra, require_built
from gguf_samples import BLOCKS, F16, F32, hf_model, read_hf, to_bf16, write_gguf, write_stored
from quantized_samples import E2M1, FORMS, Form, quantized_model

from gguf_tools.reader import GGUFFile
from gguf_tools.sources import huggingface, llama_converter
from gguf_tools.sources.llama_converter import Scratch
from gguf_tools.sources.open import open_source

TINY_CHAT = Path(__file__).parents[2] / "models" / "tiny-chat"

# What llama.cpp's converter takes no other tokenizer for.
SENTENCEPIECE_ONLY = ("BitNetForCausalLM", "Gemma2ForCausalLM", "Phi3ForCausalLM")
# And for BitNet none that it has: the converter knows the first one's, and rounds weights that are rounded.
BYTE_LEVEL_ONLY = (
    "BitNetForCausalLM",
    "Qwen3MoeForCausalLM",
    "Olmo2ForCausalLM",
    "Olmo3ForCausalLM",
    "OlmoeForCausalLM",
)

# The converter knows tokenizers by what they make of a text; those of the samples are not among them.
CONVERT = """
import runpy, sys
from pathlib import Path

pre, script, *arguments = sys.argv[1:]
sys.path.insert(0, str(Path(script).parent))
from conversion.base import TextModel

TextModel.get_vocab_base_pre = lambda self, tokenizer: pre
sys.argv = [script, *arguments]
runpy.run_path(script, run_name="__main__")
"""


def convert(model, output, pre):
    """The F16 file that llama.cpp's converter writes."""
    script = llama_converter.script_path()
    assert script.is_file(), "LUTRA_CONVERTER_DIR has to name the folder of llama.cpp's converter"
    command = [sys.executable, "-c", CONVERT, pre, script, model, "--outtype", "f16", "--outfile", output]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    return output


def write(source, output):
    """The F16 file of what is read directly."""
    tensors = {}
    for t in source.tensors:
        kind, dtype = (F32, "<f4") if t.keeps_f32 else (F16, "<f2")
        tensors[t.name] = kind, t.shape, t.read().astype(dtype)
    return write_gguf(output, tensors, source.metadata)


@pytest.mark.torch
@pytest.mark.parametrize("architecture", [a for a in BLOCKS if a not in SENTENCEPIECE_ONLY])
def test_a_family_is_what_upstream_makes_of_it(tmp_path, architecture):
    compare(hf_model(tmp_path / "Tiny-Model-Instruct", architecture))


@pytest.mark.torch
@pytest.mark.parametrize("architecture", [a for a in BLOCKS if a not in BYTE_LEVEL_ONLY])
def test_a_family_with_sentencepiece_is_what_upstream_makes_of_it(tmp_path, architecture):
    model = hf_model(tmp_path / "Tiny-Model-Instruct", architecture, vocab_size=4096)
    for name in ("tokenizer.model", "tokenizer_config.json"):
        shutil.copy(TINY_CHAT / name, model / name)
    (model / "tokenizer.json").unlink()
    compare(model)


@pytest.mark.torch
@pytest.mark.parametrize("name", ["fp8 blocks", "packed with zero points", "gptq 2"])
def test_quantized_weights_are_what_upstream_makes_of_them(tmp_path, name):
    model, _ = quantized_model(tmp_path, FORMS[name].settings, FORMS[name].make)
    upstream = GGUFFile(convert(model, model / "upstream.gguf", "qwen2"))
    with open_source(model) as source:
        assert {t.name for t in source.tensors} == set(upstream.tensors)
        for t in source.tensors:
            u = upstream.tensors[t.name]
            found = t.read().astype("<f4" if t.keeps_f32 else "<f2")
            assert (u.shape, upstream.data(u).tobytes()) == (t.shape, found.tobytes()), t.name


@pytest.mark.torch
def test_a_recommended_sampling_is_what_upstream_makes_of_it(tmp_path):
    model = hf_model(tmp_path / "Tiny-Model-Instruct")
    said = {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95, "min_p": 0.01}
    said |= {"repetition_penalty": 1.05, "xtc_probability": 0.5, "xtc_threshold": 0.1, "penalty_last_n": -1}
    (model / "generation_config.json").write_text(json.dumps(said))
    compare(model)
    assert GGUFFile(model / "ours.gguf").metadata["general.sampling.penalty_repeat"].value > 1.04


def as_it_is(rng, rows, k):
    """Weights that nothing was done to."""
    weights = (rng.standard_normal((rows, k)) * 0.05).astype(np.float32)
    return {"weight": ("F32", weights)}, weights


@pytest.mark.torch
@pytest.mark.parametrize("name", ["awq", "left over"])
def test_what_the_converter_reads_is_dequantized_too(tmp_path, name):
    """As here, in ways that it does not know itself."""
    form = FORMS.get(name, Form({"quant_method": "bitsandbytes"}, as_it_is))
    model, plain = quantized_model(tmp_path, form.settings, form.make)
    with (
        huggingface._open_converted(model, "m", "", Scratch(tmp_path / "m.gguf")) as source,
        open_source(plain) as expected,
    ):
        found = {t.name: t.read() for t in source.tensors}
        assert found.keys() == {t.name for t in expected.tensors}
        for t in expected.tensors:
            assert np.array_equal(found[t.name], t.read() if t.keeps_f32 else t.read().astype("<f2")), t.name


def gpt_oss(directory, rng):
    """A small gpt-oss as published, its experts in MXFP4, and what they stand for, by GGUF's names."""
    hidden, ffn, experts = 64, 96, 4
    config = {
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "num_local_experts": experts,
        "num_experts_per_tok": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "sliding_window": 32,
        "layer_types": ["sliding_attention"],
        "architectures": ["GptOssForCausalLM"],
        "model_type": "gpt_oss",
        "quantization_config": {"quant_method": "mxfp4"},
    }
    model = hf_model(directory, "LlamaForCausalLM", **config)
    kept = ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight")
    layer = "model.layers.0."
    shapes = {name: read_hf(model, name).shape for name in kept}
    shapes |= {f"{layer}{name}_layernorm.weight": (hidden,) for name in ("input", "post_attention")}
    for name, shape in {"q": (64, hidden), "k": (32, hidden), "v": (32, hidden), "o": (hidden, 64)}.items():
        shapes |= {f"{layer}self_attn.{name}_proj.{x}": shape[:n] for x, n in (("weight", 2), ("bias", 1))}
    shapes |= {f"{layer}self_attn.sinks": (4,)}
    shapes |= {f"{layer}mlp.router.weight": (experts, hidden), f"{layer}mlp.router.bias": (experts,)}
    shapes |= {f"{layer}mlp.experts.gate_up_proj_bias": (experts, 2 * ffn)}
    shapes |= {f"{layer}mlp.experts.down_proj_bias": (experts, hidden)}
    stored = {name: ("BF16", to_bf16(rng.standard_normal(shape) * 0.05)) for name, shape in shapes.items()}
    weights = {}
    for name, rows, k in (("gate_up_proj", 2 * ffn, hidden), ("down_proj", hidden, ffn)):
        codes = rng.integers(0, 16, (experts, rows, k), np.uint8)
        scales = rng.integers(115, 125, (experts, rows, k // 32), np.uint8)
        blocks = (codes[..., ::2] | codes[..., 1::2] << 4).reshape(experts, rows, k // 32, 16)
        stored |= {f"{layer}mlp.experts.{name}_blocks": ("U8", blocks)}
        stored |= {f"{layer}mlp.experts.{name}_scales": ("U8", scales)}
        weights[name] = E2M1[codes] * np.repeat(2.0 ** (scales - 127.0), 32, axis=2).astype(np.float32)
    write_stored(model / "model.safetensors", dict(sorted(stored.items())))
    gate_up = weights["gate_up_proj"]
    return model, {"gate": gate_up[:, ::2], "up": gate_up[:, 1::2], "down": weights["down_proj"]}


@pytest.mark.torch
def test_gpt_oss_as_published(tmp_path):
    """The converter leaves its experts in MXFP4, which become any type of ours and of llama.cpp.

    As CB4 they lose nothing: they are exact where the powers of two allow it, or stay what they are.
    """
    require_built("llama-quantize")
    model, expected = gpt_oss(tmp_path / "gpt-oss", np.random.default_rng(0))
    for kind in ("f16", "q8_0", "cb4"):
        output = tmp_path / f"{kind}.gguf"
        done = lutra("convert", model, "--type", kind, "--no-calibration", "-o", output)
        assert done.returncode == 0, done.stderr
        with open_source(output, requantize=True) as source:
            tensors = {t.name: t for t in source.tensors}
            for name, weights in expected.items():
                found = tensors[f"blk.0.ffn_{name}_exps.weight"]
                assert found.shape == weights.shape
                error = np.linalg.norm(found.read() - weights.reshape(-1, weights.shape[-1]))
                assert error <= {"f16": 0, "q8_0": 0.01, "cb4": 0}[kind] * np.linalg.norm(weights), name


def compare(model):
    """Keys, values and tensors, and the order of both, here and there."""
    with open_source(model) as source:
        ours = GGUFFile(write(source, model / "ours.gguf"))
        pre = source.metadata["tokenizer.ggml.pre"].value
    upstream = GGUFFile(convert(model, model / "upstream.gguf", pre))
    del ours.metadata["general.alignment"]  # of our writer
    assert list(ours.metadata.items()) == list(upstream.metadata.items())
    assert list(ours.tensors) == list(upstream.tensors)
    for t, u in zip(ours.tensors.values(), upstream.tensors.values(), strict=True):
        assert (t.type, t.shape, ours.data(t).tobytes()) == (u.type, u.shape, upstream.data(u).tobytes()), (
            t.name
        )
