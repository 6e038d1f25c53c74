# SPDX-License-Identifier: MIT
"""Imports go one way: the contracts of pyproject.toml hold, and they would notice if not."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("lutra", "pyquant", "gguf_tools")


def lint(directory: Path) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-c",
        "from importlinter.cli import lint_imports_command; lint_imports_command()",
    ]
    return subprocess.run(
        [*command, "--no-cache"], cwd=directory, capture_output=True, text=True, timeout=600
    )


def test_imports_go_one_way():
    done = lint(ROOT)
    assert done.returncode == 0, done.stdout
    assert "0 broken" in done.stdout


@pytest.mark.parametrize(
    ("module", "line", "broken"),
    [
        ("gguf_tools/reader.py", "import lutra.console", "gguf_tools.reader -> lutra.console"),
        (
            "gguf_tools/formats/floats.py",
            "import gguf_tools.reader",
            "gguf_tools.formats.floats -> gguf_tools.reader",
        ),
        ("lutra/runtime/threads.py", "import lutra.cli.main", "lutra.runtime.threads -> lutra.cli.main"),
        (
            "lutra/conversion/plan.py",
            "import lutra.measure.speed",
            "lutra.conversion.plan -> lutra.measure.speed",
        ),
        ("pyquant/codebook.py", "import lutra.runtime.paths", "pyquant.codebook -> lutra.runtime.paths"),
        ("lutra/conversion/plan.py", "import lutra.conversion.options", "No circles BROKEN"),
    ],
)
def test_a_planted_import_is_found(module, line, broken, tmp_path):
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("*.so", "native"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    planted = tmp_path / module
    planted.write_text(planted.read_text() + f"\n{line}\n")
    done = lint(tmp_path)
    assert done.returncode == 1
    assert broken in done.stdout


def test_the_package_loads_nothing_until_asked():
    loaded = (
        "import sys, lutra; print(sorted({'numpy', 'gguf', 'ctypes', 'lutra.conversion'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", loaded], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
    every = "import lutra; print(all(callable(getattr(lutra, name)) for name in lutra.__all__))"
    done = subprocess.run([sys.executable, "-c", every], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"
