# SPDX-License-Identifier: MIT
"""Calibration: what is captured, what replacing weights does, and what it is good for."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import numpy as np
import pytest
from cli_runner import TINY_CHAT, lutra, require_built, signalled
from gguf_samples import random_model, u32

from gguf_tools.errors import LutraError
from gguf_tools.formats.family import CB_FORMATS
from gguf_tools.reader import GGUFFile
from gguf_tools.sources.open import open_source
from lutra.conversion.calibrate import matmul_order
from lutra.runtime.matmul_inputs import Capture

PIECES = [[1, 40, 41, 42, 43, 44, 45, 46], [1, 300, 301, 302, 303, 304, 305, 306]]
QUESTIONS = {
    "What is the capital of France?": "The capital of France is Paris.",
    "What is the capital of Denmark?": "The capital of Denmark is Copenhagen.",
    "What is the capital of Norway?": "The capital of Norway is Oslo.",
    "What is 2 + 3?": "2 + 3 = 5.",
    "What is 7 x 2?": "7 x 2 = 14.",
    "What is the opposite of hot?": "The opposite of hot is cold.",
    "Which is smaller, 81 or 74?": "74 is smaller.",
    "What is the plural of dog?": "The plural of dog is dogs.",
}


def capture(path, names, weights=None):
    """Inputs by name; ``weights`` replace matrices on the way."""
    seen = {}
    with Capture(path, PIECES, set(names), threads=1, predictions=1 << 20) as matrices:
        for matrix in matrices:
            seen[matrix.name] = None if matrix.inputs is None else matrix.inputs.copy()
            if weights and matrix.name in weights:
                matrix.replace(weights[matrix.name])
    return seen


def test_inputs_are_what_the_model_computes(f16):
    tensors = {t.name: t for t in open_source(f16).tensors}
    rows = tensors["token_embd.weight"].read()[np.concatenate(PIECES)]
    norm = rows / np.sqrt((rows**2).mean(axis=1, keepdims=True) + 1e-5)
    expected = norm * tensors["blk.0.attn_norm.weight"].read()
    seen = capture(
        f16, ["token_embd.weight", "blk.0.attn_q.weight", "blk.0.attn_v.weight", "blk.7.ffn_down.weight"]
    )
    assert list(seen) == [
        "token_embd.weight",
        "blk.0.attn_q.weight",
        "blk.0.attn_v.weight",
        "blk.7.ffn_down.weight",
    ]
    assert seen["token_embd.weight"] is None
    assert np.allclose(seen["blk.0.attn_q.weight"], expected, rtol=1e-4, atol=1e-5)
    assert np.array_equal(seen["blk.0.attn_q.weight"], seen["blk.0.attn_v.weight"])
    assert seen["blk.7.ffn_down.weight"].shape == (16, 768)  # the last layer's, for all tokens


def test_replaced_weights_count_and_only_once(f16):
    name = "blk.0.ffn_down.weight"
    zeros = np.zeros((256, 768), np.float16)
    before = capture(f16, [name, "blk.1.attn_q.weight"])
    after = capture(f16, [name, "blk.1.attn_q.weight"], {name: zeros})
    again = capture(f16, [name, "blk.1.attn_q.weight"])
    assert np.array_equal(before[name], after[name])
    assert not np.allclose(before["blk.1.attn_q.weight"], after["blk.1.attn_q.weight"], atol=1e-2)
    assert np.array_equal(before["blk.1.attn_q.weight"], again["blk.1.attn_q.weight"])


def test_the_order_has_what_shares_its_inputs_together(f16):
    names = ["attn_v", "attn_q", "attn_output", "ffn_up", "ffn_gate", "ffn_down"]
    order = matmul_order(f16, {f"blk.3.{name}.weight" for name in names}, PIECES[0], 1)
    assert [sorted(name.split(".")[2] for name in group) for group in order] == [
        ["attn_q", "attn_v"],
        ["attn_output"],
        ["ffn_gate", "ffn_up"],
        ["ffn_down"],
    ]


def test_a_capture_that_is_left_or_closed(f16):
    name = "blk.0.attn_q.weight"
    with Capture(f16, PIECES, {name}, threads=1, predictions=1 << 20) as left:
        matrix = next(iter(left))
        matrix.replace(np.zeros((256, 256), np.float16))
        with pytest.raises(LutraError, match="computed already"):
            next(iter(left))
    left.close()
    assert str(f16) not in Path("/proc/self/maps").read_text()
    with pytest.raises(LutraError, match="closed"):
        next(iter(left))


def test_two_bits_that_answer(tmp_path, tiny_chat):
    """The same size, several times the right answers."""
    questions = tmp_path / "questions.jsonl"
    questions.write_text(
        "".join(json.dumps({"question": q, "answer": a}) + "\n" for q, a in QUESTIONS.items())
    )
    path = tmp_path / "calibrated.gguf"
    done = lutra("convert", TINY_CHAT, "--type", "cb2", "-o", path)
    assert done.returncode == 0, done.stderr
    assert "tokens of" in done.stderr
    assert list(tmp_path.glob(".*")) == []
    right = [
        json.loads(lutra("eval", model, "--questions", questions, "--json").stdout)["exact"]
        for model in (tiny_chat("cb2"), path)
    ]
    assert right[1] >= len(QUESTIONS) // 2 > 2 * right[0]


# ---- a mixture of experts with random weights, one of which is never asked -----------------------

EXPERTS, HIDDEN = 5, 256
TEXT = "The old man said to the boy that the sea was calm, and that the night would be long and cold. "
ROUTER = "blk.0.ffn_gate_inp.weight"


@pytest.fixture(scope="module")
def mixture(tmp_path_factory):
    """One layer; the rows of the router are u, -u, v, -v and 0: two of the first four win."""
    require_built("llama-perplexity")
    metadata = open_source(TINY_CHAT).metadata | {
        "llama.block_count": u32(1),
        "llama.feed_forward_length": u32(HIDDEN),
        "llama.expert_count": u32(EXPERTS),
        "llama.expert_used_count": u32(2),
    }
    names = ["attn_q", "attn_k", "attn_v", "attn_output"]
    shapes = {
        "token_embd.weight": (4096, HIDDEN),
        "output_norm.weight": (HIDDEN,),
        "blk.0.attn_norm.weight": (HIDDEN,),
        "blk.0.ffn_norm.weight": (HIDDEN,),
        ROUTER: (EXPERTS, HIDDEN),
        **{f"blk.0.{name}.weight": (HIDDEN // (2 if name in names[1:3] else 1), HIDDEN) for name in names},
        **{f"blk.0.ffn_{name}_exps.weight": (EXPERTS, HIDDEN, HIDDEN) for name in ("gate", "up", "down")},
    }
    u, v = np.random.default_rng(1).standard_normal((2, HIDDEN))
    router = {ROUTER: np.stack([u, -u, v, -v, 0 * u])}
    return random_model(tmp_path_factory.mktemp("mixture") / "mixture.gguf", metadata, shapes, router)


@pytest.fixture(scope="module")
def options(mixture):
    """What the conversions have in common: the blocks are codebooks, calibrated with a short text."""
    text = mixture.with_name("text.txt")
    text.write_text(TEXT * 40)
    return [mixture, "--type", "f16", "--tensor-type", "blk=cb3", "--calibration", text]


@pytest.fixture(scope="module")
def calibrated(options):
    path, report = (options[0].with_name(name) for name in ("calibrated.gguf", "report.json"))
    done = lutra("convert", *options, "--threads", 1, "--report", report, "-o", path)
    assert done.returncode == 0, done.stderr
    losses = {tensor["name"]: tensor["loss"] for tensor in json.loads(report.read_text())["tensors"]}
    codebooks = {t.name for t in GGUFFile(path).tensors.values() if t.type in CB_FORMATS}
    assert {name for name, loss in losses.items() if loss is not None} == codebooks
    assert all(0 < losses[name] < 0.1 for name in codebooks)
    (warning,) = (line for line in done.stderr.splitlines() if "warning" in line)
    assert warning.endswith(
        "experts that no token reached, calibrated with the tokens of all: blk.0.ffn_gate_exps.weight 4, "
        "blk.0.ffn_up_exps.weight 4, blk.0.ffn_down_exps.weight 4"
    )
    return path


def test_experts_get_the_tokens_of_the_router(mixture, tmp_path):
    f16 = tmp_path / "f16.gguf"
    assert lutra("convert", mixture, "--type", "f16", "-o", f16).returncode == 0
    router = {t.name: t for t in open_source(mixture).tensors}[ROUTER].read()
    gate, down = "blk.0.ffn_gate_exps.weight", "blk.0.ffn_down_exps.weight"
    with Capture(f16, PIECES, {gate, down}, threads=1, predictions=1 << 20) as matrices:
        seen = {matrix.name: (matrix.inputs.copy(), matrix.experts.copy()) for matrix in matrices}
    inputs, experts = seen[gate]
    assert inputs.shape == (16, HIDDEN)
    assert np.array_equal(np.sort(experts), np.sort(np.argsort(inputs @ router.T)[:, -2:]))
    assert seen[down][0].shape == (32, HIDDEN)  # one row for each token and expert
    assert np.array_equal(seen[down][1], experts)


def test_calibrated_experts_are_better(options, calibrated, tmp_path):
    plain, f16 = tmp_path / "plain.gguf", tmp_path / "f16.gguf"
    for arguments in ([*options[:-2], "--no-calibration", "-o", plain], [*options[:3], "-o", f16]):
        assert lutra("convert", *arguments).returncode == 0
    divergence = [
        json.loads(done.stdout)["kld_mean"]
        for done in (
            lutra("eval", path, "--text", options[-1], "--base", f16, "--ctx", 128, "--chunks", 4, "--json")
            for path in (calibrated, plain)
        )
    ]
    assert divergence[0] < 0.7 * divergence[1]


def test_a_killed_calibration_goes_on(options, calibrated, tmp_path):
    output = tmp_path / "resumed.gguf"
    arguments = [*options, "--threads", 2, "-o", output]
    save = "lutra.conversion.workdir:WorkDirectory.save"
    done = signalled(signal.SIGKILL, save, "convert", *arguments, nth=5)
    assert done.returncode == -signal.SIGKILL
    done = lutra("convert", *arguments)
    assert done.returncode == 0, done.stderr
    assert "going on: " in done.stderr
    assert output.read_bytes() == calibrated.read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == [output.name]


def test_a_cluster_gives_the_same_file(options, calibrated, tmp_path):
    distributed = pytest.importorskip("distributed", reason="no Dask here; pip install distributed")
    output = tmp_path / "cluster.gguf"
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        done = lutra(
            "convert", *options, "--cluster", cluster.scheduler_address, "--threads", 1, "-o", output
        )
        assert done.returncode == 0, done.stderr
    assert output.read_bytes() == calibrated.read_bytes()


# ---- a matrix per head (multi-head latent attention), with random weights --------------------------

HEADS, NOPE, ROPE, LATENT = 4, 64, 32, 128


@pytest.fixture(scope="module")
def latent(tmp_path_factory):
    """DeepSeek-V2 in small: attn_k_b and attn_v_b are stacks that meet permuted inputs."""
    require_built("llama-perplexity")
    given = open_source(TINY_CHAT).metadata
    numbers = {
        "context_length": 512,
        "embedding_length": HIDDEN,
        "feed_forward_length": 512,
        "block_count": 1,
        "leading_dense_block_count": 1,
        "expert_feed_forward_length": 64,
        "expert_shared_count": 0,
        "attention.head_count": HEADS,
        "attention.head_count_kv": 1,
        "attention.q_lora_rank": 0,
        "attention.kv_lora_rank": LATENT,
        "attention.key_length": LATENT + ROPE,
        "attention.value_length": LATENT,
        "attention.key_length_mla": NOPE + ROPE,
        "attention.value_length_mla": NOPE,
        "rope.dimension_count": ROPE,
    }
    metadata = {key: value for key, value in given.items() if key.startswith("tokenizer.")}
    metadata |= {f"deepseek2.{key}": u32(value) for key, value in numbers.items()}
    name = given["general.architecture"]
    metadata |= {
        "general.architecture": type(name)("deepseek2", name.type),
        "deepseek2.attention.layer_norm_rms_epsilon": given["llama.attention.layer_norm_rms_epsilon"],
    }
    shapes = {
        "token_embd.weight": (4096, HIDDEN),
        "output_norm.weight": (HIDDEN,),
        "blk.0.attn_norm.weight": (HIDDEN,),
        "blk.0.attn_q.weight": (HEADS * (NOPE + ROPE), HIDDEN),
        "blk.0.attn_kv_a_mqa.weight": (LATENT + ROPE, HIDDEN),
        "blk.0.attn_kv_a_norm.weight": (LATENT,),
        "blk.0.attn_k_b.weight": (HEADS, LATENT, NOPE),
        "blk.0.attn_v_b.weight": (HEADS, NOPE, LATENT),
        "blk.0.attn_output.weight": (HIDDEN, HEADS * NOPE),
        "blk.0.ffn_norm.weight": (HIDDEN,),
        "blk.0.ffn_gate.weight": (512, HIDDEN),
        "blk.0.ffn_up.weight": (512, HIDDEN),
        "blk.0.ffn_down.weight": (HIDDEN, 512),
    }
    source = random_model(tmp_path_factory.mktemp("latent") / "latent.gguf", metadata, shapes)
    path = source.with_name("latent-f16.gguf")
    done = lutra("convert", source, "--type", "f16", "-o", path)
    assert done.returncode == 0, done.stderr
    return path


def test_permuted_inputs_are_those_of_each_head(latent):
    q, k_b, v_b, output = (f"blk.0.attn_{name}.weight" for name in ("q", "k_b", "v_b", "output"))
    weights = {t.name: t.read().reshape(t.shape) for t in open_source(latent).tensors}
    tokens = np.concatenate(PIECES)
    with Capture(latent, PIECES, {q, k_b, v_b, output}, threads=1, predictions=1 << 20) as matrices:
        seen = {m.name: (m.inputs.copy(), m.experts) for m in matrices}
    queries = (seen[q][0] @ weights[q].T).reshape(len(tokens), HEADS, NOPE + ROPE)
    inputs, heads = seen[k_b]
    assert np.allclose(inputs, queries[:, :, :NOPE].swapaxes(0, 1).reshape(-1, NOPE), atol=0.01)
    assert heads[:, 0].tolist() == [head for head in range(HEADS) for _ in tokens]
    # Each row by its own head's matrix is what the next matrix gets; here, sequence after sequence.
    inputs, heads = seen[v_b]
    values = np.einsum("rk,rnk->rn", inputs, weights[v_b][heads[:, 0]])
    by_token = values.reshape(len(PIECES), HEADS, -1, NOPE).swapaxes(1, 2).reshape(len(tokens), -1)
    assert np.allclose(by_token, seen[output][0], atol=0.01)


def test_a_matrix_per_head_is_calibrated(latent, tmp_path):
    text, report = tmp_path / "text.txt", tmp_path / "report.json"
    text.write_text(TEXT * 40)
    done = lutra(
        "convert", latent, "--type", "f16", "--tensor-type", "attn_._b=cb4", "--calibration", text,
        "--report", report, "-o", tmp_path / "out.gguf",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr
    losses = {tensor["name"]: tensor["loss"] for tensor in json.loads(report.read_text())["tensors"]}
    assert all(0 < losses[f"blk.0.attn_{name}.weight"] < 0.02 for name in ("k_b", "v_b"))


# ---- what cannot be done -----------------------------------------------------------------------


def test_too_little_text(tmp_path):
    short = tmp_path / "short.txt"
    short.write_text("Only a few words.")
    done = lutra("convert", TINY_CHAT, "--type", "cb3", "--calibration", short, "-o", tmp_path / "o.gguf")
    assert done.returncode == 1
    assert "calibration needs 256" in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["short.txt"]
