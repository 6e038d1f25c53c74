# SPDX-License-Identifier: MIT
"""What is left out fails where nothing may be left out (tests/conftest.py)."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = Path(__file__).parents[1] / "conftest.py"
TESTS = {
    "test_a.py": """
import pytest

def test_passes():
    pass

@pytest.mark.skipif(True, reason="this CPU has no AVX-512 VNNI")
def test_impossible():
    pass

@pytest.mark.parametrize("how", ["skip", "importorskip"])
def test_left_out(how):
    pytest.skip("not built") if how == "skip" else pytest.importorskip("no_such_module")

@pytest.fixture
def library():
    pytest.skip("not built")

def test_without_its_fixture(library):
    pass

@pytest.mark.xfail(reason="known")
def test_expected_to_fail():
    assert False
""",
    "test_b.py": 'import pytest\n\npytest.skip("not built", allow_module_level=True)\n',
}


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, {"passed": 1, "skipped": 5, "xfailed": 1}),
        ({"CI": "false", "LUTRA_STRICT": "0"}, {"passed": 1, "skipped": 5, "xfailed": 1}),
        ({"CI": "true"}, {"failed": 2, "passed": 1, "skipped": 1, "xfailed": 1, "errors": 2}),
        ({"LUTRA_STRICT": "1"}, {"failed": 2, "passed": 1, "skipped": 1, "xfailed": 1, "errors": 2}),
    ],
)
def test_what_is_left_out(tmp_path, variables, expected):
    shutil.copy(CONFTEST, tmp_path)
    for name, text in TESTS.items():
        (tmp_path / name).write_text(text)
    environment = {k: v for k, v in os.environ.items() if k not in ("CI", "LUTRA_STRICT")} | variables
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--continue-on-collection-errors",
    ]
    done = subprocess.run(
        [*command, str(tmp_path)], env=environment, cwd=tmp_path, capture_output=True, text=True
    )
    last = done.stdout.splitlines()[-1]
    assert {word: int(n) for n, word in re.findall(r"(\d+) ([a-z]+)", last.partition(" in ")[0])} == expected
    assert done.returncode == (1 if "failed" in expected else 0)
    if "failed" in expected:
        assert "left out, and nothing may be here: not built" in done.stdout
