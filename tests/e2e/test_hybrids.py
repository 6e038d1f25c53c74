# SPDX-License-Identifier: MIT
"""What is not all products of matrices: short convolutions, recurrent states, tables that are only looked up.

Each model is a small GGUF of random weights, as llama.cpp's converter would name its tensors.
"""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from cli_runner import TINY_CHAT, environment, lutra, require_built
from gguf import GGUFValueType as T
from gguf.gguf_writer import GGUFValue
from gguf_samples import random_model, u32

from gguf_tools.reader import GGUFFile, type_name
from gguf_tools.sources.open import open_source
from lutra.conversion.calibrate import matmul_order
from lutra.runtime.matmul_inputs import Capture, bytes_needed

HIDDEN, FFN, VOCAB = 256, 256, 4096
TEXT = "The old man said to the boy that the sea was calm, and that the night would be long and cold. "


def f32(value):
    return GGUFValue(value, T.FLOAT32)


def blocks(layers, shapes):
    return {f"blk.{i}.{name}": shape for i in layers for name, shape in shapes.items()}


def weights(**shapes):
    return {f"{name}.weight": shape for name, shape in shapes.items()}


NORMS = weights(attn_norm=(HIDDEN,), ffn_norm=(HIDDEN,))
GATED = weights(ffn_gate=(FFN, HIDDEN), ffn_up=(FFN, HIDDEN), ffn_down=(HIDDEN, FFN))
ATTENTION = weights(attn_k=(64, HIDDEN), attn_v=(64, HIDDEN), attn_q_norm=(64,), attn_k_norm=(64,))
QUERIES = weights(attn_q=(HIDDEN, HIDDEN), attn_output=(HIDDEN, HIDDEN))

# Of each architecture: its keys, its tensors beside embeddings and last norm, which matrices are float32.
LFM2 = (
    {
        "attention.head_count_kv": GGUFValue([0, 1], T.ARRAY, T.INT32),
        "shortconv.l_cache": u32(3),
        "rope.freq_base": f32(10000.0),
    },
    {
        "token_embd_norm.weight": (HIDDEN,),
        **blocks((0, 1), NORMS | GATED),
        "blk.0.shortconv.conv.weight": (HIDDEN, 3),
        "blk.0.shortconv.in_proj.weight": (3 * HIDDEN, HIDDEN),
        "blk.0.shortconv.out_proj.weight": (HIDDEN, HIDDEN),
        **blocks((1,), ATTENTION | QUERIES),
    },
    ["blk.0.shortconv.conv.weight"],
)
STATE, VALUE_HEADS, KEY_HEADS = 64, 4, 2
MIXED = (2 * KEY_HEADS + VALUE_HEADS) * STATE
QWEN35 = (
    {
        "attention.head_count_kv": u32(1),
        "attention.key_length": u32(64),
        "attention.value_length": u32(64),
        "full_attention_interval": u32(2),
        "rope.dimension_sections": GGUFValue([4, 4, 8, 0], T.ARRAY, T.INT32),
        "rope.dimension_count": u32(32),
        "ssm.conv_kernel": u32(4),
        "ssm.inner_size": u32(VALUE_HEADS * STATE),
        "ssm.state_size": u32(STATE),
        "ssm.time_step_rank": u32(VALUE_HEADS),
        "ssm.group_count": u32(KEY_HEADS),
    },
    {
        "output_norm.weight": (HIDDEN,),
        **blocks((0, 1), GATED | weights(attn_norm=(HIDDEN,), post_attention_norm=(HIDDEN,))),
        **blocks(
            (0,),
            weights(
                attn_qkv=(MIXED, HIDDEN),
                attn_gate=(VALUE_HEADS * STATE, HIDDEN),
                ssm_conv1d=(MIXED, 4),
                ssm_alpha=(VALUE_HEADS, HIDDEN),
                ssm_beta=(VALUE_HEADS, HIDDEN),
                ssm_norm=(STATE,),
                ssm_out=(HIDDEN, VALUE_HEADS * STATE),
            ),
        ),
        "blk.0.ssm_dt.bias": (VALUE_HEADS,),
        "blk.0.ssm_a": (VALUE_HEADS,),
        **blocks((1,), ATTENTION | QUERIES | weights(attn_q=(2 * HIDDEN, HIDDEN))),
    },
    ["blk.0.ssm_conv1d.weight"],
)
CONTEXT = 128  # of GPT-2, a table of so many positions
GPT2 = (
    {"context_length": u32(CONTEXT), "attention.layer_norm_epsilon": f32(1e-5)},
    {
        "position_embd.weight": (CONTEXT, HIDDEN),
        "output_norm.weight": (HIDDEN,),
        "output_norm.bias": (HIDDEN,),
        **blocks((0,), NORMS | weights(attn_qkv=(3 * HIDDEN, HIDDEN), attn_output=(HIDDEN, HIDDEN))),
        **blocks((0,), weights(ffn_up=(FFN, HIDDEN), ffn_down=(HIDDEN, FFN))),
        **blocks((0,), {"attn_norm.bias": (HIDDEN,), "ffn_norm.bias": (HIDDEN,)}),
        **blocks((0,), {"attn_qkv.bias": (3 * HIDDEN,), "attn_output.bias": (HIDDEN,)}),
        **blocks((0,), {"ffn_up.bias": (FFN,), "ffn_down.bias": (HIDDEN,)}),
    },
    ["position_embd.weight"],
)
PER_LAYER = 128
GEMMA4 = (
    {
        "attention.head_count_kv": u32(1),
        "attention.key_length": u32(64),
        "attention.value_length": u32(64),
        "attention.key_length_swa": u32(64),
        "attention.value_length_swa": u32(64),
        "attention.sliding_window": u32(64),
        "attention.sliding_window_pattern": GGUFValue([True, False], T.ARRAY, T.BOOL),
        "attention.shared_kv_layers": u32(0),
        "embedding_length_per_layer_input": u32(PER_LAYER),
        "rope.freq_base": f32(10000.0),
        "rope.freq_base_swa": f32(10000.0),
        "rope.dimension_count": u32(64),
        "rope.dimension_count_swa": u32(64),
    },
    {
        "per_layer_token_embd.weight": (VOCAB, 2 * PER_LAYER),
        "per_layer_model_proj.weight": (2 * PER_LAYER, HIDDEN),
        "per_layer_proj_norm.weight": (PER_LAYER,),
        "output_norm.weight": (HIDDEN,),
        "rope_freqs.weight": (32,),
        **blocks((0, 1), NORMS | GATED | ATTENTION | QUERIES),
        **blocks((0, 1), weights(post_attention_norm=(HIDDEN,), post_ffw_norm=(HIDDEN,))),
        **blocks(
            (0, 1), weights(inp_gate=(PER_LAYER, HIDDEN), proj=(HIDDEN, PER_LAYER), post_norm=(HIDDEN,))
        ),
    },
    [],
)
MODELS = {"lfm2": LFM2, "qwen35": QWEN35, "gpt2": GPT2, "gemma4": GEMMA4}
NAMES = pytest.mark.parametrize("name", MODELS)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """``model("lfm2")`` is a path: all of it in float32."""
    require_built("llama-perplexity")
    directory = tmp_path_factory.mktemp("hybrids")

    def make(name):
        path = directory / f"{name}.gguf"
        if path.exists():
            return path
        with open_source(TINY_CHAT) as source:
            given = source.metadata
        keys, shapes, _ = MODELS[name]
        metadata = {key: value for key, value in given.items() if key.startswith("tokenizer.")}
        metadata["general.architecture"] = GGUFValue(name, T.STRING)
        common = {
            "context_length": u32(512),
            "embedding_length": u32(HIDDEN),
            "feed_forward_length": u32(FFN),
            "block_count": u32(1 + max(int(n.split(".")[1]) for n in shapes if n.startswith("blk."))),
            "attention.head_count": u32(4),
            "attention.layer_norm_rms_epsilon": f32(1e-5),
        }
        metadata |= {f"{name}.{key}": value for key, value in (common | keys).items()}
        others = {n: np.zeros(shape) for n, shape in shapes.items() if n.endswith(".bias")}
        others |= {n: -np.ones(shape) for n, shape in shapes.items() if n.endswith(".ssm_a")}  # what decays
        return random_model(path, metadata, {"token_embd.weight": (VOCAB, HIDDEN)} | shapes, others)

    return make


@pytest.fixture(scope="module")
def f16(model):
    """``f16("lfm2")``: the same as Lutra's F16 file."""

    def make(name):
        path = model(name).with_suffix(".f16.gguf")
        if not path.exists():
            convert(model(name), "f16", path)
        return path

    return make


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT * 40)
    return path


def convert(source, kind, output, *options):
    done = lutra("convert", source, "--type", kind, "-o", output, *options)
    assert done.returncode == 0, done.stderr
    return done.stderr


def types(path):
    with GGUFFile(path) as file:
        return {name: type_name(info.type) for name, info in file.tensors.items()}


@NAMES
def test_a_calibrated_model_is_computed_and_closer(f16, text, tmp_path, name):
    paths = {"f16": f16(name), **{kind: tmp_path / f"{kind}.gguf" for kind in ("calibrated", "plain")}}
    # The blocks alone: what embeddings and output lose would be most of the divergence.
    options = ["--token-embedding-type", "f16"]
    convert(paths["f16"], "cb3", paths["calibrated"], "--calibration", text, *options)
    convert(paths["f16"], "cb3", paths["plain"], "--no-calibration", *options)
    for path in paths.values():
        assert {n: kind for n, kind in types(path).items() if n in MODELS[name][2]} == dict.fromkeys(
            MODELS[name][2], "F32"
        )
    divergence = {}
    for kind in ("calibrated", "plain"):
        done = lutra(
            "eval", paths[kind], "--text", text, "--base", paths["f16"], "--ctx", CONTEXT, "--chunks", 2,
            "--json",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        divergence[kind] = json.loads(done.stdout)["kld_mean"]
    assert 0 < divergence["calibrated"] < 0.9 * divergence["plain"]


def test_the_rest_of_a_context_is_not_touched_in_calibration(f16, text, tmp_path):
    """Positions beyond the table would end the process."""
    said = convert(f16("gpt2"), "cb4", tmp_path / "o.gguf", "--calibration", text)
    assert "calibrating with " in said
    tokens = int(said.split("calibrating with ")[1].split()[0])
    assert tokens % CONTEXT == 0


def test_a_table_that_is_only_looked_up_becomes_a_codebook_without_a_hessian(f16, text, tmp_path):
    table = "per_layer_token_embd.weight"
    options = ["--calibration", text, "--token-embedding-type", "f16"]
    said = convert(f16("gemma4"), "cb2", tmp_path / "o.gguf", *options)
    assert f"not calibrated, the model does not multiply by them: {table};" in said
    found = types(tmp_path / "o.gguf")
    assert found[table] == "CB2"
    assert found["per_layer_model_proj.weight"] == "F16"
    assert "token_embd.weight" in matmul_order(f16("gemma4"), {table, "token_embd.weight"}, [1, 2], 1)[0]


def test_what_a_model_takes_is_known_before_it_is_loaded(f16):
    """Each sequence's keys, values and recurrent states, and the graph of all of them."""

    def needed(name, sequences):
        return bytes_needed(f16(name), sequences, CONTEXT, predictions=1)

    state = 4 * VALUE_HEADS * STATE * STATE + 4 * 3 * MIXED  # of the one recurrent layer
    cached = 2 * 2 * 64 * 256  # keys and values of the other, in half precision; llama.cpp's least context
    stream = 4 * CONTEXT * (2 * HIDDEN + FFN)  # of the graph, at least
    more = (needed("qwen35", 64) - needed("qwen35", 32)) / 32
    assert state + cached + stream < more < 5 * (state + cached + stream)
    for name in MODELS:
        with Capture(f16(name), [[1] * CONTEXT] * 3, set(), threads=1, predictions=1) as capture:
            assert capture.bytes == needed(name, 3)


COMPUTE = """
import resource, sys
from pathlib import Path
from lutra.runtime.matmul_inputs import Capture

resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[2]),) * 2)
name = "blk.1.ffn_down.weight"
with Capture(Path(sys.argv[1]), [[1] * 256] * 64, {name}, threads=2, predictions=1) as capture:
    print([matrix.inputs.shape for matrix in capture])
"""


def test_many_short_sequences_need_no_graph_of_a_long_one(f16):
    """llama.cpp reserves 22 KB for each of the 40 nodes of a graph that it counts per token."""
    done = subprocess.run(
        [sys.executable, "-c", COMPUTE, f16("qwen35"), str(8 << 30)],
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.stdout == f"[(16384, {FFN})]\n", done.stderr
