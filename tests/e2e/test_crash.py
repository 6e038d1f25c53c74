# SPDX-License-Identifier: MIT
"""Models that llama.cpp aborts on: one line, exit code 1, and no file of a model's size left behind."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from cli_runner import TINY_CHAT, assert_error, environment, lutra, require_built
from gguf.gguf_writer import GGUFValue
from gguf_samples import random_model, u32

from gguf_tools.sources.open import open_source

HIDDEN, FFN, TRAINED = 256, 512, 100
LONG = "The old man said to the boy that the sea was calm, and that the night would be long. " * 20


TOO_LONG = """
import sys
from lutra.conversion import text
text.piece_length = lambda model: 128
from lutra.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


def gpt2(path, metadata):
    """A GPT-2 with TRAINED positions, of which ggml aborts to look up another one while it computes."""
    layer = {
        "attn_norm": (HIDDEN,),
        "attn_qkv": (3 * HIDDEN, HIDDEN),
        "attn_output": (HIDDEN, HIDDEN),
        "ffn_norm": (HIDDEN,),
        "ffn_up": (FFN, HIDDEN),
        "ffn_down": (HIDDEN, FFN),
    }
    vocabulary = len(metadata["tokenizer.ggml.tokens"].value)
    shapes = {
        "token_embd.weight": (vocabulary, HIDDEN),
        "position_embd.weight": (TRAINED, HIDDEN),
        "output_norm.weight": (HIDDEN,),
        "output_norm.bias": (HIDDEN,),
    }
    for name, shape in layer.items():
        shapes |= {f"blk.0.{name}.weight": shape, f"blk.0.{name}.bias": shape[:1]}
    own = {
        "general.architecture": GGUFValue("gpt2", metadata["general.architecture"].type),
        "gpt2.context_length": u32(TRAINED),
        "gpt2.embedding_length": u32(HIDDEN),
        "gpt2.feed_forward_length": u32(FFN),
        "gpt2.block_count": u32(1),
        "gpt2.attention.head_count": u32(4),
        "gpt2.attention.layer_norm_epsilon": metadata["llama.attention.layer_norm_rms_epsilon"],
    }
    tokenizer = {key: value for key, value in metadata.items() if key.startswith("tokenizer.")}
    biases = {name: np.zeros(shape) for name, shape in shapes.items() if name.endswith("bias")}
    return random_model(path, own | tokenizer, shapes, biases)


@pytest.fixture(scope="module")
def short_sighted(tmp_path_factory):
    require_built("llama-perplexity")
    return gpt2(tmp_path_factory.mktemp("gpt2") / "gpt2-f32.gguf", open_source(TINY_CHAT).metadata)


@pytest.fixture(scope="module")
def with_a_token_twice(tmp_path_factory):
    """llama.cpp counts the texts of a vocabulary and aborts when one is there twice."""
    require_built("llama-perplexity")
    metadata = open_source(TINY_CHAT).metadata
    key = "tokenizer.ggml.tokens"
    tokens = list(metadata[key].value)
    tokens[400] = tokens[401]
    twice = GGUFValue(tokens, metadata[key].type, metadata[key].sub_type)
    return gpt2(tmp_path_factory.mktemp("twice") / "twice-f32.gguf", metadata | {key: twice})


def test_chat_with_a_vocabulary_that_aborts(with_a_token_twice):
    assert_error(
        lutra("chat", with_a_token_twice, "-p", "hello"), str(with_a_token_twice), "crashes on this file"
    )


@pytest.mark.parametrize("target", [("--type", "cb4"), ("--target-bpw", "6")], ids=["calibrated", "measured"])
def test_convert_a_vocabulary_that_would_abort(target, with_a_token_twice, tmp_path):
    done = lutra("convert", with_a_token_twice, *target, "-o", tmp_path / "out.gguf")
    assert_error(done, "tokens 400 and 401 are both")
    assert list(tmp_path.iterdir()) == []


def test_chat_that_aborts_in_the_graph(short_sighted):
    done = lutra("chat", short_sighted, "-p", LONG, "--ctx", 1024)
    assert_error(done, str(short_sighted), "GGML_ASSERT", "lutra verify")
    assert "/ggml/src/" not in done.stderr


@pytest.mark.parametrize("target", [("--type", "cb4"), ("--target-bpw", "6")], ids=["calibrated", "measured"])
def test_convert_a_model_of_few_positions(target, short_sighted, tmp_path):
    """As many short sequences as make up the calibration text are more than llama.cpp computes at once."""
    done = lutra("convert", short_sighted, *target, "-o", tmp_path / "out.gguf")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out.gguf").exists()


@pytest.mark.parametrize("target", [("--type", "cb4"), ("--target-bpw", "6")], ids=["calibrated", "measured"])
def test_convert_that_aborts_in_the_graph(target, short_sighted, tmp_path):
    """With sequences that are longer than the model's context, which a conversion avoids."""
    words = [sys.executable, "-c", TOO_LONG, "convert", short_sighted, *target, "-o", tmp_path / "out.gguf"]
    done = subprocess.run(
        list(map(str, words)), env=environment(), capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 1, done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("lutra: error: ")
    assert "GGML_ASSERT" in last
    assert "ggml_" not in done.stderr  # a backtrace
    assert list(tmp_path.iterdir()) == []


def test_eval_that_aborts_in_the_graph(short_sighted, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text(LONG * 4)
    done = lutra("eval", short_sighted, "--text", text, "--ctx", 512)
    assert_error(done, str(short_sighted), ".cpp:", "GGML_ASSERT(")
    assert "/ggml/src/" not in done.stderr


SCRIPT = """
import ctypes, sys, threading
from pathlib import Path
import numpy as np
from lutra.conversion.workdir import WorkDirectory
from lutra.runtime import crash
from lutra.runtime.native import load

def abort():
    load("ggml-base").ggml_abort(b"/there/file.c", 7, b"GGML_ASSERT(%s) failed", b"x")

armed, finished = sys.argv[2:]
if armed == "armed":
    crash.arm()
with WorkDirectory(Path(sys.argv[1]), {"seed": 0}) as work:
    work.temporary("f16.gguf").write_bytes(bytes(1000))
    if finished == "finished":
        work.save("a", [np.zeros(3, np.uint8)], 0.0)
    thread = threading.Thread(target=abort)
    thread.start()
    thread.join()
"""


def crash_at_work(output, *how):
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, str(output), *how],
        env=environment({"GGML_NO_BACKTRACE": "1"}),
        capture_output=True,
        text=True,
        timeout=600,
    )


def test_finished_tensors_are_kept_and_named(tmp_path):
    done = crash_at_work(tmp_path / "out.gguf", "armed", "finished")
    work = tmp_path / ".out.gguf.lutra-work"
    assert_error(done, "file.c:7: GGML_ASSERT(x) failed", f"finished tensors are kept in {work}")
    assert sorted(path.name for path in work.iterdir()) == ["a.tensor", "fingerprint.json"]


def test_a_work_directory_without_tensors_goes(tmp_path):
    assert_error(crash_at_work(tmp_path / "out.gguf", "armed", "nothing"), "file.c:7: GGML_ASSERT(x) failed")
    assert list(tmp_path.iterdir()) == []


def test_a_library_leaves_its_program_alone(tmp_path):
    done = crash_at_work(tmp_path / "out.gguf", "unarmed", "nothing")
    assert done.returncode == -6
    assert "lutra: error" not in done.stderr
