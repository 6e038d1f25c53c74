#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Writes the package that is installed, ``lutra_llm``: the repository's three packages as one.

one_package.py DEST

``lutra`` becomes ``lutra_llm`` itself, ``pyquant`` and ``gguf_tools`` lie in it: an installation takes one
name of its own, and none that another distribution has. Imports follow, nothing else changes, and lines keep
their numbers. CMake calls this when it installs.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NAME = "lutra_llm"
PLACES = {"lutra": NAME, "pyquant": f"{NAME}.pyquant", "gguf_tools": f"{NAME}.gguf_tools"}
SOURCES = (
    "__pycache__/*",
    "*.c",
    "*.h",
    "CMakeLists.txt",
)  # what is compiled; other files are data of the modules

# In docstrings: a line of an example, and how a module is run.
_EXAMPLE = re.compile(r"^( +)import lutra$", re.MULTILINE)
_RUN = re.compile(r"python -m lutra\b")


class PackageError(Exception):
    """A line that cannot be rewritten; the message says where it is and what to write instead."""


def moved(module: str) -> str:
    """The name in the package of a module of the repository, or of any other (which keeps its name)."""
    top, dot, rest = module.partition(".")
    return PLACES.get(top, top) + dot + rest


def rewritten(text: str, where: str) -> str:
    """A module's source with the imports of the package.

    Raises PackageError for ``import pyquant.gptq``, which binds a name that is not there any more, and for a
    string that names a module.
    """
    lines = text.splitlines(keepends=True)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            _replace(lines, node, rf"from(\s+){re.escape(node.module)}\b", rf"from\g<1>{moved(node.module)}")
        elif isinstance(node, ast.Import) and any(moved(name.name) != name.name for name in node.names):
            _replace(lines, node, r".*", _import(node, where))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and _is_module(node.value):
            raise PackageError(
                f'{where}:{node.lineno}: "{node.value}" is called otherwise where it is installed: '
                "begin with __package__ or __name__"
            )
    return _RUN.sub(f"python -m {NAME}", _EXAMPLE.sub(rf"\1import {NAME} as lutra", "".join(lines)))


def _import(node: ast.Import, where: str) -> str:
    (name,) = node.names if len(node.names) == 1 else (None,)
    if name is None or ("." in name.name and not name.asname):
        raise PackageError(f"{where}:{node.lineno}: write 'from ... import ...', one module a line")
    return f"import {moved(name.name)} as {name.asname or name.name}"


def _replace(lines: list[str], node: ast.stmt, pattern: str, by: str) -> None:
    """Replace what the first line of a statement begins with."""
    line = lines[node.lineno - 1].encode()
    before, after = line[: node.col_offset].decode(), line[node.col_offset :].decode()
    lines[node.lineno - 1] = before + re.sub(pattern, by, after, count=1)


def _is_module(text: str) -> bool:
    """Whether a string is the dotted name of a module of the repository, or the beginning of one."""
    parts = text.rstrip(".").split(".")
    path = ROOT.joinpath(*parts)
    return parts[0] in PLACES and len(parts) > 1 and (path.is_dir() or path.with_suffix(".py").is_file())


def write(dest: Path, root: Path = ROOT) -> None:
    """Write the package into the directory ``dest``. Raises what ``rewritten`` raises."""
    for top, place in PLACES.items():
        for path in sorted((root / top).rglob("*")):
            target = dest.joinpath(*place.split("."), path.relative_to(root / top))
            if path.is_dir() or any(path.match(pattern) for pattern in SOURCES):
                continue
            data = path.read_bytes()
            if path.suffix == ".py":
                data = rewritten(data.decode(), str(path.relative_to(root))).encode()
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)


def main() -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dest", type=Path, help=f"the directory in which {NAME} is made")
    try:
        write(parser.parse_args().dest)
    except PackageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
