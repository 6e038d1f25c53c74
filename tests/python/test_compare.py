# SPDX-License-Identifier: MIT
"""``lutra compare``: its parts on known input, and a tiny random model from conversion to picture."""

from __future__ import annotations

import argparse
import json

import pytest
from cli_runner import ROOT, assert_error, lutra, require_built
from gguf import GGUFValueType as T
from gguf.gguf_writer import GGUFValue
from gguf_samples import cb_tensor, hf_model, write_gguf

from gguf_tools.inspect import read_info
from lutra.cli import compare
from lutra.cli.eval import describe
from lutra.measure import tables
from lutra.measure.pareto import Point, frontier

# ---- parts -----------------------------------------------------------------------------------


def point(label: str, size: float, value: float) -> Point:
    return Point(label, size, value, 0.0, False)


def test_the_frontier_is_what_nothing_beats():
    points = [point(*p) for p in (("c", 3, 5), ("a", 1, 9), ("d", 4, 1), ("worse", 3.5, 6), ("same", 5, 1))]
    assert [p.label for p in frontier(points)] == ["a", "c", "d"]
    assert [p.label for p in frontier([point("y", 1, 3), point("x", 1, 2)])] == ["x"]
    assert frontier([]) == []


@pytest.mark.parametrize(
    ("files", "model", "labels"),
    [
        (["d/m-1-cb4.gguf", "e/m-1-f16.gguf"], "m-1", ["cb4", "f16"]),
        (["m-iq2_xs.gguf", "m-iq2_xxs.gguf"], "m", ["iq2_xs", "iq2_xxs"]),
        (["m.cb2.gguf", "m.cb3-x.gguf"], "m", ["cb2", "cb3-x"]),
        (["m.gguf", "m-cb3.gguf"], "m-cb3", ["m", "m-cb3"]),
        (["a/m.gguf", "b/m.gguf"], "Comparison", ["a/m.gguf", "b/m.gguf"]),
        (["m-7.gguf"], "m-7", ["m-7"]),
    ],
)
def test_labels_are_what_differs_in_the_names(files, model, labels):
    assert tables.names(files) == (model, labels)


@pytest.mark.parametrize(
    ("value", "error", "shown"),
    [
        (0.056119, 0.00123, "0.0561 ± 0.0012"),
        (79.123, 0.85, "79.12 ± 0.85"),
        (2190.4, 124.2, "2190 ± 124"),
        (0.0000004, 0.00000001, "0.000000 ± 0.000000"),
        (12.5, 0.0, "12.50 ± 0.00"),
    ],
)
def test_numbers_have_as_many_digits_as_their_error_allows(value, error, shown):
    assert tables.plus_minus(value, error) == shown


def results(**measured) -> dict:
    row = {"options": None, "codebook": True, "bytes": 3 << 20, "bpw": 3.3125} | measured
    base = {"options": "--type f16 --seed 0", "codebook": False, "bytes": 16 << 20, "bpw": 16.0}
    return {
        "model": "m",
        "base": "d/m-f16.gguf",
        "machine": {"cpu": "a CPU", "kernels": "ref", "version": "1", "threads": 1},
        "files": [
            {"label": "cb3", "file": "m-cb3.gguf"} | row,
            {"label": "f16", "file": "d/m-f16.gguf"} | base,
        ],
    }


def test_the_table_has_what_was_measured():
    size, divergence = results(), results(kld_mean=0.12345, kld_error=0.0021, same_top=81.27)
    assert tables.table(size).splitlines() == [
        "| model | size, MiB | bits per weight |",
        "|-------|----------:|----------------:|",
        "| cb3   |       3.0 |            3.31 |",
        "| f16   |      16.0 |           16.00 |",
    ]
    assert tables.table(divergence).splitlines()[2:] == [
        "| cb3   |       3.0 |            3.31 | 0.1235 ± 0.0021 |         81.3 % |",
        "| f16   |      16.0 |           16.00 |                 |                |",
    ]


def test_a_huge_perplexity_is_readable():
    huge = {"ppl": 1.2344e75, "ppl_error": 3.21e74, "tokens": 9}
    assert describe(huge) == "perplexity      1.234e+75 ± 3.210e+74 over 9 tokens"
    assert describe(huge | {"ppl": 9.87654, "ppl_error": 0.1}).endswith("9.8765 ± 0.1000 over 9 tokens")
    assert "| 1.234e+75 ± 3.210e+74 |" in tables.table(results(**huge))


def test_the_conditions_can_be_published():
    shown = results(tokens=126, ppl=9.0)
    shown["text"] = {"file": "/home/me/t.txt", "ctx": 128, "chunks": 2}
    assert tables.conditions(shown).splitlines() == [
        "- text: t.txt, 2 chunks of 128, 126 predicted tokens; KL divergence and same top token against "
        "m-f16.gguf; ± standard error",
        "- f16: lutra convert --seed 0",
        "- machine: a CPU, 1 thread, lutra 1, kernels ref",
    ]


def test_the_picture_leaves_out_what_has_no_place_on_it():
    divergence, perplexity = tables.panels(results(ppl=9.0, ppl_error=1.0, kld_mean=0.1, kld_error=0.01))
    assert [(p.label, p.size, p.value, p.error) for p in divergence.points] == [("cb3", 3, 0.1, 0.01)]
    assert [(p.label, p.value, p.error) for p in perplexity.points] == [("cb3", 9.0, 0)]
    assert tables.panels(results(kld_mean=0.0, kld_error=0.0)) == []


# ---- the command -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "fragment"),
    [
        (["missing.gguf"], "missing.gguf: no such file"),
        (["."], "--types"),
        (["a.gguf", "--pure"], "--pure is for converting, and needs --types"),
        (["a.gguf", "--plot", "p.png"], "--plot draws"),
        (["a.gguf", "--text", "/etc/passwd", "--plot", "nowhere/p.png"], "nowhere: no such directory"),
        (["a.gguf", "--base", "a.gguf"], "--base needs --text"),
        (["a.gguf", "b.gguf", "--types", "cb4"], "--types converts one model"),
        (["a.gguf", "--types", ","], "no type in the list"),
    ],
)
def test_wrong_usage_is_one_line(args, fragment, tmp_path):
    assert_error(lutra("compare", *args, cwd=tmp_path), fragment)
    assert list(tmp_path.iterdir()) == []


def test_files_of_different_models_are_refused(tmp_path):
    files = []
    for name, word in (("a", "and"), ("b", "but")):
        tokens = GGUFValue(["the", word], T.ARRAY, T.STRING)
        tensors = {"blk.0.ffn_up.weight": cb_tensor(404, 8, 256)}
        files.append(write_gguf(tmp_path / f"{name}.gguf", tensors, {"tokenizer.ggml.tokens": tokens}))
    assert_error(lutra("compare", *files, "--no-speed"), "a.gguf", "b.gguf", "different vocabularies")


def test_without_matplotlib_it_says_so_at_once(tmp_path):
    (tmp_path / "matplotlib.py").write_text("raise ImportError")
    (tmp_path / "t.txt").write_text("a text")
    done = lutra(
        "compare", "m.gguf", "--text", "t.txt", "--plot", "p.png",
        cwd=tmp_path, env={"PYTHONPATH": f"{ROOT}:{tmp_path}"},
    )  # fmt: skip
    assert_error(done, "matplotlib", 'pip install "lutra-llm[plot]"')


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A directory with a tiny random model, a text, a question, and the comparison of two types."""
    require_built("llama-perplexity", "llama-quantize", "llama-bench")
    directory = tmp_path_factory.mktemp("compare")
    hf_model(directory / "qwen")
    (directory / "t.txt").write_text("all work and no play makes a dull text\n" * 20)
    (directory / "q.jsonl").write_text('{"question": "a", "answer": "no model says this"}\n')
    return directory


CONVERT = ("qwen", "--types", "q8_0,cb2", "--out-dir", "files", "--no-calibration")
TEXT = ("--text", "t.txt", "--ctx", 64, "--chunks", 4, "--threads", 1)


def test_types_of_a_model(model):
    done = lutra("compare", *CONVERT, *TEXT, "--questions", "q.jsonl", "--json", "--no-speed", cwd=model)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert set(found) == {"model", "base", "machine", "text", "questions", "files", "failed"}
    assert (found["model"], found["base"]) == ("qwen", "files/qwen-f16.gguf")
    assert (found["text"]["chunks"], found["questions"]["total"], found["failed"]) == (4, 1, {})
    assert [row["label"] for row in found["files"]] == ["cb2", "q8_0", "f16"]
    cb2, q8_0, f16 = found["files"]
    assert 0 <= q8_0["kld_mean"] < cb2["kld_mean"]
    assert cb2["same_top"] <= q8_0["same_top"] <= 100
    assert set(cb2) - set(f16) == {"kld_mean", "kld_error", "same_top"}
    assert (cb2["exact"], cb2["total"], cb2["tokens"]) == (0, 1, 4 * 31)
    assert [row["codebook"] for row in found["files"]] == [True, False, False]
    info = read_info(model / "files" / "qwen-cb2.gguf")
    assert (cb2["bytes"], cb2["bpw"]) == (info.bytes, pytest.approx(info.bpw))


def test_what_is_for_codebooks_does_not_concern_other_types():
    parser = argparse.ArgumentParser()
    compare.add_arguments(parser)
    args = parser.parse_args(["m", "--types", "cb4,q4_k,f16", "--codebook", "bipolar", "--two-planes", "x"])
    made = [compare._options(args, kind) for kind in args.types]
    assert [o.is_bipolar for o in made] == [True, False, False]
    assert [o.two_planes for o in made] == ["x", None, None]


def test_files_are_used_again_and_one_that_fails_does_not_stop_the_others(model):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    made = {path: path.stat().st_mtime_ns for path in (model / "files").iterdir()}
    (model / "cut.gguf").write_bytes((model / "files" / "qwen-cb2.gguf").read_bytes()[:50_000])
    done = lutra(
        "compare", "cut.gguf", "files/qwen-cb2.gguf", "--base", "files/qwen-f16.gguf", *TEXT,
        "--no-speed", "--plot", "p.png", cwd=model,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "lutra: error: failed, see above: cut.gguf"
    assert [line.split("|")[1].strip() for line in done.stdout.splitlines()[-2:]] == ["cb2", "f16"]
    assert (model / "p.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")

    done = lutra("compare", *CONVERT, "--no-speed", cwd=model)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("already there") == 3
    assert {path: path.stat().st_mtime_ns for path in (model / "files").iterdir()} == made


def test_files_made_otherwise_are_not_taken_for_these(model):
    done = lutra("compare", *CONVERT, "--pure", "--no-speed", cwd=model)
    assert done.returncode == 1
    assert "qwen-f16.gguf: is there, but was not made with '--type f16" in done.stderr
    assert "--pure'" in done.stderr
    newer = model / "qwen" / "model.safetensors"
    newer.touch()
    done = lutra("compare", *CONVERT, "--no-speed", cwd=model)
    assert "is older than qwen/model.safetensors" in done.stderr


def test_too_little_text_is_refused_before_hours_of_work(model):
    options = ("--text", "t.txt", "--ctx", 64, "--chunks", 3, "--threads", 1, "--no-speed")
    done = lutra("compare", "files/qwen-cb2.gguf", "--base", "files/qwen-f16.gguf", *options, cwd=model)
    assert done.returncode == 1
    assert done.stdout == ""
    assert "t.txt: 93 predicted tokens are too few" in done.stderr


def test_speed(model):
    done = lutra("compare", "files/qwen-cb2.gguf", "--threads", 1, "--json", cwd=model)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)["files"]
    assert row["generation_tps"] > 0
    assert row["prompt_tps"] > 0
    assert row["prompt_sd"] >= 0
    assert "ppl" not in row
