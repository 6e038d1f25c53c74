# SPDX-License-Identifier: MIT
"""The last lines of scripts/test: nothing that failed or was left out gets lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "test_report.py"
SUITE = '<testsuites><testsuite tests="10" failures="{}" errors="1" skipped="2"/></testsuites>'


def report(tmp_path, parts, *xml, ci="false"):
    (tmp_path / "parts.tsv").write_text("".join("\t".join(map(str, part)) + "\n" for part in parts))
    paths = []
    for i, text in enumerate(xml):
        paths.append(tmp_path / f"{i}.xml")
        paths[-1].write_text(text)
    files = [tmp_path / "parts.tsv", tmp_path / "times.json", 64, *paths, tmp_path / "none.xml"]
    return subprocess.run(
        [sys.executable, SCRIPT, *map(str, files)],
        env=os.environ | {"CI": ci, "LUTRA_STRICT": "0"}, capture_output=True, text=True,
    )  # fmt: skip


def test_the_sum_is_the_last_line(tmp_path):
    parts = [("style", "passed", 3, ""), ("python", "FAILED", 61, "")]
    done = report(tmp_path, parts, SUITE.format(1), SUITE.format(0))
    assert done.stdout.splitlines()[-2:] == [
        "FAILED in 64 s",
        f"{1 + 6 + 7} passed, {1 + 2 + 1} failed, 4 skipped",
    ]
    assert done.returncode == 1
    assert json.loads((tmp_path / "times.json").read_text()) == {"style": 3, "python": 61, "all": 64}


@pytest.mark.parametrize(
    ("ci", "code", "last"),
    [
        ("false", 0, ["all passed in 64 s", "1 passed, 0 failed, 1 skipped"]),
        ("true", 1, ["FAILED in 64 s", "1 passed, 1 failed, 0 skipped"]),
    ],
)
def test_a_part_left_out_is_named_and_fails_under_ci(ci, code, last, tmp_path):
    parts = [("style", "passed", 3, ""), ("aarch64", "left out", 0, "no emulator")]
    done = report(tmp_path, parts, ci=ci)
    assert done.stdout.splitlines()[-2:] == last
    assert "left out: no emulator" in done.stdout
    assert done.returncode == code
