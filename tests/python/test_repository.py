# SPDX-License-Identifier: MIT
"""What the documents say about the repository is so: files, versions, licence lines."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml

import lutra

ROOT = Path(__file__).resolve().parents[2]
TRACKED = subprocess.run(
    ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
).stdout.splitlines()
DOCUMENTS = [name for name in TRACKED if name.endswith(".md")]


def existing(pattern: str) -> list[str]:
    """The files and directories that a document means: `a/<set>/*.c` stands for any that fit."""
    return [str(p.relative_to(ROOT)) for p in ROOT.glob(re.sub(r"<\w+>", "*", pattern))]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_path_that_a_document_names_exists(document: str) -> None:
    top = "|".join(sorted({re.escape(name.split("/")[0]) for name in TRACKED if "/" in name}))
    text = (ROOT / document).read_text()
    named = re.findall(rf"`((?:{top})/[\w./<>*-]*)`", text)
    wrong = [name for name in named if not existing(name.rstrip("/"))]
    assert not wrong


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_link_of_a_document_leads_somewhere(document: str) -> None:
    wrong = []
    for link in re.findall(r"\]\(([^)\s]+)\)", (ROOT / document).read_text()):
        name, _, heading = link.partition("#")
        target = (ROOT / document).parent / name if name else ROOT / document
        if "://" not in link and not (target.exists() and (not heading or heading in headings(target))):
            wrong.append(link)
    assert not wrong


def headings(document: Path) -> set[str]:
    """The headings of a document, as links name them."""
    titles = re.findall(r"^#+ (.+)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title).lower().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("workflow", [name for name in TRACKED if name.startswith(".github/workflows/")])
def test_a_workflow_can_be_read_and_runs_what_is_there(workflow: str) -> None:
    jobs = yaml.safe_load((ROOT / workflow).read_text())["jobs"]
    commands = [step.get("run", "") for job in jobs.values() for step in job["steps"]]
    ours = re.findall(r"(?:^|[ ;&])((?:scripts|tests|\.ci)/[\w./]+)", "\n".join(commands), re.MULTILINE)
    assert ours
    assert all(os.access(ROOT / name, os.X_OK) for name in ours)


def test_one_version_everywhere() -> None:
    patterns = {
        "pyproject.toml": r'^version = "(.+)"',
        "CITATION.cff": r"^version: (.+)",
        "CHANGELOG.md": r"^## \[(\d.+?)\]",
    }
    for name, pattern in patterns.items():
        found = re.search(pattern, (ROOT / name).read_text(), re.MULTILINE)
        assert found, name
        assert found[1] == lutra.__version__, name
