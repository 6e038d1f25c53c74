# SPDX-License-Identifier: MIT
"""The embedded model: converted, asked, measured."""

from __future__ import annotations

import json
import signal

import pytest
from cli_runner import lutra, signalled

from lutra.runtime import kernels
from lutra.runtime.tools import run_tool

FRANCE = "What is the capital of France?"
TEXT = "It was the best of times, it was the worst of times, said the old man to the boy.\n"


@pytest.mark.parametrize("kind", ["cb4", "cb3"])
def test_paris(kind, tiny_chat):
    done = lutra("chat", tiny_chat(kind), "-p", FRANCE)
    assert done.returncode == 0, done.stderr
    assert "Paris" in done.stdout
    assert done.stdout.count("\n") == 1
    assert done.stderr.startswith(f"lutra: {kind.upper()}: ")  # type, number of tensors, kernels


def test_every_set_says_the_same(tiny_chat):
    path = tiny_chat("cb4")
    sets = kernels.sets()["supported"]
    assert "ref" in sets
    answers = {
        name: lutra(
            "chat", path, "-p", "Tell me about the sea.", "-n", 40, env={"LUTRA_KERNELS": name}
        ).stdout
        for name in sets
    }
    assert len(set(answers.values())) == 1, answers
    assert len(answers["ref"]) > 20


def test_conversation_remembers(tiny_chat):
    lines = f"{FRANCE}\n\nWhat do you get if you add 36 and 44?\n/exit\nnever read\n"
    done = lutra("chat", tiny_chat("cb4"), "--temp", 0, input=lines)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert "Paris" in first
    assert "80" in second


def test_a_small_context_drops_old_turns(tiny_chat):
    done = lutra("chat", tiny_chat("cb4"), "--ctx", 96, "--temp", 0, "-n", 20, input=f"{FRANCE}\n" * 6)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 6
    assert "oldest turns were dropped" in done.stderr


def test_a_prompt_larger_than_the_context_is_refused(tiny_chat):
    done = lutra("chat", tiny_chat("cb4"), "--ctx", 64, "-p", "word " * 200)
    assert done.returncode == 1
    assert "--ctx" in done.stderr.splitlines()[-1]


def test_interrupt_stops_the_answer_and_not_the_program(tiny_chat):
    chat = ["chat", tiny_chat("cb4"), "--temp", "1.5", "--seed", "1"]
    lines = f"Tell me a very long story.\n{FRANCE}\n"
    whole = lutra(*chat, input=lines).stdout.splitlines()[0]
    done = signalled(signal.SIGINT, "lutra.runtime.model:Sampler.sample", *chat, nth=5, input=lines)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    stopped, next_answer = done.stdout.splitlines()
    assert stopped.endswith(" [stopped]")
    assert whole.startswith(stopped.removesuffix(" [stopped]"))
    assert next_answer


def test_limit_of_tokens(tiny_chat):
    path = tiny_chat("cb4")
    short = lutra("chat", path, "-p", FRANCE, "-n", 3).stdout
    longer = lutra("chat", path, "-p", FRANCE).stdout
    assert 0 < len(short) < len(longer)
    assert longer.startswith(short.rstrip("\n"))


def test_eval_text(tiny_chat, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text(TEXT * 80)
    options = ["--text", text, "--ctx", 128, "--chunks", 4, "--json"]
    results = {}
    for kind in ("cb4", "cb2"):
        done = lutra("eval", tiny_chat(kind), *options, "--base", tiny_chat("f16"))
        assert done.returncode == 0, done.stderr
        results[kind] = json.loads(done.stdout)
        assert set(results[kind]) == {"ppl", "ppl_error", "kld_mean", "kld_error", "same_top", "tokens"}
        assert results[kind]["tokens"] == 4 * 63
    assert 0 < results["cb4"]["kld_mean"] < results["cb2"]["kld_mean"]
    assert 50 < results["cb2"]["same_top"] < results["cb4"]["same_top"] <= 100
    alone = json.loads(lutra("eval", tiny_chat("cb4"), *options).stdout)
    assert set(alone) == {"ppl", "ppl_error", "tokens"}
    assert alone["ppl"] == pytest.approx(results["cb4"]["ppl"], rel=1e-3)


def test_an_importance_matrix_is_used_for_every_type(tiny_chat, tmp_path):
    text, matrix = tmp_path / "text.txt", tmp_path / "tiny.imatrix"
    text.write_text(TEXT * 80)
    run_tool("llama-imatrix", ["-m", str(tiny_chat("f16")), "-f", str(text), "-o", str(matrix), "-c", "128"])
    made = {}
    for kind in ("cb2", "iq2_xxs"):
        made[kind] = tmp_path / f"{kind}.gguf"
        done = lutra("convert", tiny_chat("f16"), "--type", kind, "--imatrix", matrix, "-o", made[kind])
        assert done.returncode == 0, done.stderr
        assert made[kind].exists()
        assert ("token_embd.weight" in done.stderr) == (kind == "cb2")  # not covered: a warning that says so
    options = ["--text", text, "--base", tiny_chat("f16"), "--ctx", 128, "--chunks", 4, "--json"]
    weighted, plain = (
        json.loads(lutra("eval", path, *options).stdout)["kld_mean"]
        for path in (made["cb2"], tiny_chat("cb2"))
    )
    assert weighted < plain


def test_an_importance_matrix_of_another_model_is_refused(tiny_chat, tmp_path):
    matrix = tmp_path / "wrong.imatrix"
    matrix.write_text("this is no matrix")
    done = lutra("convert", tiny_chat("f16"), "--type", "cb4", "--imatrix", matrix, "-o", tmp_path / "x.gguf")
    assert done.returncode == 1
    assert "wrong.imatrix" in done.stderr
    assert not (tmp_path / "x.gguf").exists()


def test_eval_refuses_what_cannot_be_compared(tiny_chat, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("short")
    done = lutra("eval", tiny_chat("cb4"), "--text", text)
    assert done.returncode == 1
    assert "tokens" in done.stderr
    assert done.stdout == ""


def test_eval_questions(tiny_chat, tmp_path):
    questions = tmp_path / "q.jsonl"
    entries = [
        {"question": FRANCE, "answer": "The capital of France is Paris.", "category": "capital"},
        {"question": "What do you get if you add 36 and 44?", "answer": "36 + 44 = 80."},
        {"question": FRANCE, "answer": "The capital of France is Parish."},
        {"question": FRANCE, "answer": "The capital"},
    ]
    questions.write_text("\n".join(map(json.dumps, entries)))
    done = lutra("eval", tiny_chat("f16"), "--questions", questions, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"exact": 2, "total": 4}
    assert "2 of 4 (50.0%)" in lutra("eval", tiny_chat("f16"), "--questions", questions).stdout


def test_bench_passes_everything_through(tiny_chat):
    done = lutra("bench", tiny_chat("cb4"), tiny_chat("f16"), "-p", 16, "-n", 4, "-r", 1, "-o", "json")
    assert done.returncode == 0, done.stderr
    assert [r["model_filename"] for r in json.loads(done.stdout)[::2]] == [
        str(tiny_chat(k)) for k in ("cb4", "f16")
    ]
