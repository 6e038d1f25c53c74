# SPDX-License-Identifier: MIT
"""The commands of the documents are understood; the published tables are as scripts/reproduce makes them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import commands
import pytest
from cli_runner import ROOT
from gguf import MODEL_ARCH_NAMES
from test_repository import DOCUMENTS, headings

from gguf_tools.sources.families import FAMILIES

INPUTS = {
    "quality": ["--model", "main-88m", "--text", "wikitext.txt"],
    "files": ["--model", "main-88m", "--text", "wikitext.txt"],
    "answers": ["--model", "main-88m", "--questions", "questions.jsonl"],
    "bakeoff": ["--model", "main-88m", "--text", "wikitext.txt"],
    "mixes": ["--model", "main-88m"],
    "targets": ["--model", "main-88m", "--text", "wikitext.txt"],
    "calibration": ["--model", "main-88m"],
    "activations": ["--model", "tiny-chat", "--text", "books.txt"],
    "speed": ["--model", "main-88m"],
    "kernels": [],
    "arm": [],
    "layers": [],
}


def reproduce(*arguments: str | Path) -> str:
    command = [sys.executable, str(ROOT / "scripts/reproduce"), *map(str, arguments)]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_command_of_a_document_is_understood(document: str) -> None:
    text = (ROOT / document).read_text()
    found = [commands.problem(words) for words in commands.in_blocks(text)]
    found += [commands.problem(words, whole=False) for words in commands.inline(text)]
    assert not list(filter(None, found))


def test_the_readme_shows_commands() -> None:
    shown = [" ".join(words[:2]) for words in commands.in_blocks((ROOT / "README.md").read_text())]
    assert {"scripts/demo", "lutra convert", "lutra bench", "lutra verify"} <= set(shown)
    assert shown[1:3] == [".venv/bin/lutra convert", ".venv/bin/lutra chat"]


@pytest.mark.parametrize(
    ("line", "fragment"),
    [
        ("lutra convert m --type cb4 --no-such", "--no-such"),
        ("lutra convert m", "required"),
        ("X=1 .venv/bin/lutra chat m.gguf --no-such | head", "--no-such"),
        ("lutra show m.gguf", "no verb show"),
        ("scripts/nowhere", "no file"),
        ("scripts/bench_kernels --no-such", "--no-such"),
    ],
)
def test_a_wrong_command_is_found(line: str, fragment: str) -> None:
    (words,) = commands.in_blocks(f"```sh\n{line}  # why\n```\n")
    assert fragment in str(commands.problem(words))


# ---- scripts/reproduce ---------------------------------------------------------------------


def test_the_list_has_every_table_and_pages_that_exist() -> None:
    listed = reproduce()
    assert set(re.findall(r"^  ([a-z]+)  ", listed, re.MULTILINE)) == {
        "picture",
        "pages",
        "families",
        *INPUTS,
    }
    for page, heading in re.findall(r"(docs/\w+\.md)#([\w-]+)", listed):
        assert heading in headings(ROOT / page)


def test_the_pages_have_the_figures_of_the_results() -> None:
    reproduce("pages", "--check")


def test_the_table_of_families_has_those_that_are_read_directly() -> None:
    rows = json.loads((ROOT / "docs/results/families.json").read_text("utf-8"))["families"].values()
    found = {row["architecture"] for row in rows if row.get("direct")}
    assert {MODEL_ARCH_NAMES[family.arch] for family in FAMILIES} <= found


@pytest.mark.parametrize("table", INPUTS)
def test_the_commands_of_a_table_are_understood(table: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    printed = reproduce(table, *INPUTS[table], *(["--out", out] if table != "kernels" else []), "--dry-run")
    lines = [line.removeprefix("$ ") for line in printed.splitlines() if line.startswith("$ ")]
    assert lines
    for line in lines:
        for words in commands.ours(line):
            assert commands.problem(words) is None
    assert not out.exists()


def test_the_picture_is_drawn_from_the_results(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    results = ROOT / "docs/results/quality-smollm2-135m.json"
    labels = [file["label"] for file in json.loads(results.read_text())["files"]]
    drawn = tmp_path / "picture.svg"
    reproduce("picture", "--output", drawn)
    # Letters are outlines; each label is a comment before its own.
    assert [label for label in labels if f"<!-- {label} -->" not in drawn.read_text()] == []
    published = (ROOT / "docs/size-quality.svg").read_text()
    assert [label for label in labels if f"<!-- {label} -->" not in published] == []


def test_an_input_that_is_missing_is_one_line(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "scripts/reproduce"), "mixes", "--model", str(tmp_path / "no")]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 1
    assert done.stderr == f"error: {tmp_path / 'no'}: no such file or directory\n"
