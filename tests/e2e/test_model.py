# SPDX-License-Identifier: MIT
"""lutra.runtime.model.Model: what Python programs chat with, and what it leaves behind."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from cli_runner import environment

from gguf_tools.errors import LutraError
from lutra import Model
from lutra.runtime.paths import lib_dir
from lutra.runtime.sampling import Sampling

QUESTION = "What is the capital of France?"
ANSWER = "The capital of France is Paris."


@pytest.fixture
def model(tiny_chat):
    with Model(tiny_chat("cb4"), threads=1) as model:
        yield model


def is_mapped(path: Path) -> bool:
    return str(path) in Path("/proc/self/maps").read_text()


def test_chat(model):
    assert model.chat(QUESTION) == ANSWER
    turns = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}]
    turns.append({"role": "user", "content": "What is the capital of Norway?"})
    assert "Oslo" in model.chat(turns)


def test_stream_in_pieces(model):
    pieces = list(model.stream(QUESTION, max_tokens=4))
    assert 1 < len(pieces) <= 4
    assert ANSWER.startswith("".join(pieces))


def test_temperature_and_seed(model):
    told = [model.chat("Tell me a story.", max_tokens=20, temperature=5.0, seed=s) for s in (1, 2, 3, 1)]
    assert len(set(told)) > 1
    assert told[0] == told[-1]


def test_an_answer_that_is_left_early(model):
    for _ in model.stream(QUESTION):
        break
    assert model.chat(QUESTION) == ANSWER


def test_an_answer_does_not_go_on_in_another_conversation(model):
    first = model.stream("Tell me a story.")
    assert next(first)
    assert model.chat(QUESTION) == ANSWER
    with pytest.raises(LutraError, match="cut short by another"):
        next(first)


def test_numbers_that_would_end_the_process_are_refused(model):
    for use in (
        lambda: model.piece(model.n_vocab),
        lambda: model.piece(-1),
        lambda: model.logits([1] * (model.n_ctx + 1)),
        lambda: Model(model.path, n_ctx=-1),
        lambda: Model(model.path, n_ctx=1 << 32),
        lambda: Model(model.path, threads=-1),
    ):
        with pytest.raises(LutraError, match=r"no token|at once|no context|-1 threads"):
            use()
    with Model(model.path, threads=1, weights=False) as tokenizer:
        assert tokenizer.tokenize(QUESTION)
        with pytest.raises(LutraError, match="only the header was read"):
            tokenizer.chat(QUESTION)


def test_tokens_and_back(model):
    text = "naïve café, 東京"
    tokens = model.tokenize(text)
    assert all(0 <= token < model.n_vocab for token in tokens)
    assert "".join(model.text(iter(tokens))).strip() == text


def test_close(tiny_chat):
    path = tiny_chat("cb4")
    model = Model(path, threads=1)
    assert is_mapped(path)
    sampler = model.sampler(Sampling(temp=0))
    model.close()
    model.close()
    assert not is_mapped(path)
    for use in (
        lambda: model.chat(QUESTION),
        lambda: model.tokenize(QUESTION),
        lambda: model.logits([1]),
        lambda: model.chat_template,
    ):
        with pytest.raises(LutraError, match=f"{path}: the model is closed"):
            use()
    sampler.close()
    sampler.close()
    with pytest.raises(LutraError, match="closed"):
        sampler.sample(None)


def test_a_model_that_fails_is_not_kept(tiny_chat):
    path, limits = tiny_chat("cb4"), resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (8 << 30, limits[1]))  # of the 16 GiB that it would take
    try:
        with pytest.raises(LutraError, match=f"no context of {1 << 22} tokens"):
            Model(path, threads=1, n_ctx=1 << 22)
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, limits)
    assert not is_mapped(path)


def test_verbs_close_what_they_open(tiny_chat):
    from lutra.measure.questions import ask

    for path in (tiny_chat("cb4"), tiny_chat("cb3")):
        assert ask(path, [(QUESTION, ANSWER)] * 3, threads=2)["total"] == 3
        assert not is_mapped(path)


def test_models_do_not_hear_each_other(tiny_chat, tmp_path, capfd):
    """One shows llama.cpp's log, a silent one is loaded later, and a broken one has its own reason."""
    path, broken = tiny_chat("cb4"), tmp_path / "broken.gguf"
    broken.write_bytes(path.read_bytes()[:100000])
    with Model(path, threads=1, verbose=True):
        assert "llama_model_loader" in capfd.readouterr().err
        with Model(path, threads=1) as silent:
            assert silent.chat(QUESTION) == ANSWER
        assert {line[:7] for line in capfd.readouterr().err.splitlines()} == {"lutra: "}  # a line per type
        with pytest.raises(LutraError, match=r"broken\.gguf: (?!llama\.cpp gave no reason)"):
            Model(broken, threads=1, probe=False)
        assert capfd.readouterr().err == ""


PACKAGE = """
import os
from llama_cpp import Llama
llm = Llama({path!r}, verbose=False, n_ctx=64, n_threads=1)
assert llm.tokenize(b"hello"), "llama_cpp"
"""
OURS = """
import os, sys
from lutra.runtime.model import Model
before = dict(os.environ)
loaded = "llama_cpp" in sys.modules
with Model({path!r}, threads=1) as model:
    assert model.chat({question!r}) == {answer!r}
assert dict(os.environ) == before
assert ("llama_cpp" in sys.modules) == loaded
"""


@pytest.mark.parametrize("order", [(OURS, PACKAGE), (PACKAGE, OURS)], ids=["ours first", "ours later"])
def test_llama_cpp_is_importable_as_usual(order, tiny_chat):
    values = {"path": os.fspath(tiny_chat("cb4")), "question": QUESTION, "answer": ANSWER}
    done = subprocess.run(
        [sys.executable, "-c", "".join(order).format(**values)],
        env=environment({"LLAMA_CPP_LIB_PATH": str(lib_dir())}),
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
