# SPDX-License-Identifier: MIT
"""scripts/check_spdx: which files get a licence line, and where."""

from __future__ import annotations

import subprocess
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "check_spdx"
_spec = spec_from_loader("check_spdx", SourceFileLoader("check_spdx", str(SCRIPT)))
assert _spec is not None
assert _spec.loader is not None
check_spdx = module_from_spec(_spec)
_spec.loader.exec_module(check_spdx)

MIT = "SPDX-License-" + "Identifier: MIT"


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("a.py", '"""Text."""\n', f'# {MIT}\n"""Text."""\n'),
        ("a.h", "#pragma once\n", f"// {MIT}\n#pragma once\n"),
        ("a.cpp", "// What it is.\n", f"// {MIT}\n// What it is.\n"),
        ("CMakeLists.txt", "project(a)\n", f"# {MIT}\nproject(a)\n"),
        ("script", "#!/bin/sh\necho\n", f"#!/bin/sh\n# {MIT}\necho\n"),
        ("a.py", "#!/usr/bin/env python3\n", f"#!/usr/bin/env python3\n# {MIT}\n"),
        ("a.py", "", ""),
        ("a.md", "# Title\n", "# Title\n"),
        ("LICENSE", "MIT License\n", "MIT License\n"),
        ("a.c", "// Written by a.py; do not edit.\nint x;\n", "// Written by a.py; do not edit.\nint x;\n"),
    ],
)
def test_the_line_comes_first_and_once(name: str, before: str, after: str) -> None:
    assert check_spdx.with_line(Path(name), before) == after
    assert check_spdx.with_line(Path(name), after) == after


def test_another_licence_is_not_taken_for_ours() -> None:
    other = "// SPDX-License-" + "Identifier: GPL-3.0-only\n"
    assert check_spdx.with_line(Path("a.c"), other) == f"// {MIT}\n{other}"


def test_every_source_of_the_repository_has_it() -> None:
    done = subprocess.run([SCRIPT], capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("", 0)
