"""Calibration: what the observer sees, what replacing weights does, and what it is good for."""

from __future__ import annotations

import json

import numpy as np
import pytest
from cli_runner import TINY_CHAT, lutra, require_built

from gguf_tools.source import open_source
from lutra.observe import Observer

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


@pytest.fixture(scope="module")
def f16(tmp_path_factory):
    require_built("llama-perplexity")
    path = tmp_path_factory.mktemp("f16") / "f16.gguf"
    done = lutra("convert", TINY_CHAT, "--type", "f16", "-o", path)
    assert done.returncode == 0, done.stderr
    return path


def observe(path, names, weights=None):
    """Inputs by name; ``weights`` replace matrices on the way."""
    observer = Observer(path, PIECES, set(names), threads=1, predictions=1 << 20)
    seen = {}
    for stop in observer:
        seen[stop.name] = None if stop.inputs is None else stop.inputs.copy()
        if weights and stop.name in weights:
            stop.replace(weights[stop.name])
    observer.close()
    return seen


def test_inputs_are_what_the_model_computes(f16):
    tensors = {t.name: t for t in open_source(f16).tensors}
    rows = tensors["token_embd.weight"].read()[np.concatenate(PIECES)]
    norm = rows / np.sqrt((rows**2).mean(axis=1, keepdims=True) + 1e-5)
    expected = norm * tensors["blk.0.attn_norm.weight"].read()
    seen = observe(
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
    zeros = np.zeros((256, 768), np.float32)
    before = observe(f16, [name, "blk.1.attn_q.weight"])
    after = observe(f16, [name, "blk.1.attn_q.weight"], {name: zeros})
    again = observe(f16, [name, "blk.1.attn_q.weight"])
    assert np.array_equal(before[name], after[name])
    assert not np.allclose(before["blk.1.attn_q.weight"], after["blk.1.attn_q.weight"], atol=1e-2)
    assert np.array_equal(before["blk.1.attn_q.weight"], again["blk.1.attn_q.weight"])


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


def test_too_little_text(tmp_path):
    short = tmp_path / "short.txt"
    short.write_text("Only a few words.")
    done = lutra("convert", TINY_CHAT, "--type", "cb3", "--calibration", short, "-o", tmp_path / "o.gguf")
    assert done.returncode == 1
    assert "calibration needs 256" in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["short.txt"]
