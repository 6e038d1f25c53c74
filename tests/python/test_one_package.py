# SPDX-License-Identifier: MIT
"""What is installed: the three packages as one, under a name that nobody else has, with the same code."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

from one_package import NAME, PLACES, ROOT, PackageError, rewritten, write


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The directory that a program finds the package in."""
    site = tmp_path_factory.mktemp("site")
    write(site)
    return site


def run(installed, *arguments):
    env = os.environ | {"PYTHONPATH": str(installed), "PYTHONSAFEPATH": "1"}
    return subprocess.run(
        [sys.executable, *arguments], env=env, capture_output=True, text=True, cwd=installed
    )


def test_one_name_is_taken(installed):
    assert [path.name for path in installed.iterdir()] == [NAME]


def test_every_module_and_what_it_reads_is_there(installed):
    for top, place in PLACES.items():
        for path in (ROOT / top).rglob("*"):
            moved = installed.joinpath(*place.split("."), path.relative_to(ROOT / top))
            wanted = path.is_file() and path.suffix not in (".c", ".h", ".pyc", ".txt")
            assert moved.is_file() == wanted, path


def test_nothing_but_imports_and_examples_changes(installed):
    for top, place in PLACES.items():
        for path in (ROOT / top).rglob("*.py"):
            before = path.read_text().splitlines()
            after = (
                installed.joinpath(*place.split("."), path.relative_to(ROOT / top)).read_text().splitlines()
            )
            assert len(before) == len(after)
            changed = [(old, new) for old, new in zip(before, after, strict=True) if old != new]
            assert all("import" in old or "python -m" in old for old, _ in changed), changed


def test_no_import_of_an_old_name_is_left(installed):
    for path in installed.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module]
            assert not {name.split(".")[0] for name in names} & PLACES.keys(), path


def test_every_module_can_be_imported(installed):
    code = f"""
import importlib, pkgutil, sys, {NAME}
for module in pkgutil.walk_packages({NAME}.__path__, "{NAME}."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
print(sorted({{name.split(".")[0] for name in sys.modules}} & {set(PLACES)!r}), {NAME}.__path__[0])
"""
    done = run(installed, "-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"[] {installed / NAME}"


def test_it_runs_as_a_module_and_says_lutra(installed):
    done = run(installed, "-m", NAME, "verify", "missing.gguf")
    assert done.returncode == 1
    assert done.stderr.startswith("lutra: error: missing.gguf: ")
    assert run(installed, "-m", NAME, "--help").stdout.startswith("usage: lutra VERB")


def test_its_example_can_be_followed(installed):
    done = run(installed, "-c", f"import {NAME}; print({NAME}.__doc__)")
    assert f"    import {NAME} as lutra\n" in done.stdout


@pytest.mark.parametrize(
    ("line", "rewrite"),
    [
        ("import lutra", "import lutra_llm as lutra"),
        ("import pyquant as quant", "import lutra_llm.pyquant as quant"),
        ("import lutra.cli.chat as chat  # why", "import lutra_llm.cli.chat as chat"),
        ("from lutra import Model", "from lutra_llm import Model"),
        (
            "from gguf_tools.errors import LutraError, warn",
            "from lutra_llm.gguf_tools.errors import LutraError, warn",
        ),
        ("if True: from pyquant import gptq", "if True: from lutra_llm.pyquant import gptq"),
        ('x = "ä"; import pyquant', 'x = "ä"; import lutra_llm.pyquant as pyquant'),
        ("from . import lutra", "from . import lutra"),
        ("import lutra_other, os", "import lutra_other, os"),
        ('print("lutra.convert.options", "import lutra")', 'print("lutra.convert.options", "import lutra")'),
    ],
)
def test_a_line(line, rewrite):
    assert rewritten(f"{line}\n", "a.py") == f"{rewrite}\n"


@pytest.mark.parametrize(
    "line",
    [
        "import lutra.cli",
        "import os, pyquant",
        'find("lutra.cli.main")',
        'find(f"lutra.cli.{verb}")',
        'find("gguf_tools.errors")',
    ],
)
def test_what_cannot_be_rewritten_is_refused(line):
    with pytest.raises(PackageError, match=r"^a\.py:2: "):
        rewritten(f"import os\n{line}\n", "a.py")
