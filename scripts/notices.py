# SPDX-License-Identifier: MIT
"""The licence notices of llama.cpp and of everything that it brings along and we compile in.

They are gathered from its sources when it is fetched and go into the package (``licenses``), so
that a new release cannot bring a component without its notice.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import PurePosixPath

SOURCES = (".c", ".h", ".cpp", ".hpp", ".inc", ".py")
LICENSE = re.compile(r"(LICEN[CS]E|COPYING|NOTICE)([-.].*)?")
ELSEWHERE = {"nlohmann": ("licenses/LICENSE-jsonhpp",)}
"""Licence files that are not in the directory of their component (a name of ``components``)."""

_COMMENT = re.compile(rb"/\*[\s\S]*?\*/|(?:^[ \t]*//[^\n]*\n)+", re.MULTILINE)
_TERMS = re.compile(
    rb"permission is hereby granted|redistribution and use|licensed under|public domain", re.IGNORECASE
)
_NOTICE = re.compile(rb"copyright|public domain|unlicense|\bMIT license|SPDX-", re.IGNORECASE)


class NoticeError(Exception):
    """A component without a licence; the message names it and what to do."""


def components(files: Iterable[str]) -> dict[str, list[str]]:
    """Component to its files: llama.cpp, gguf-py, the bindings, and each innermost directory of ``vendor/``.

    A directory of ``vendor/`` that holds components itself is llama.cpp's wrapper around them.
    """
    files = sorted(files)
    directories = {str(PurePosixPath(f).parent) for f in files if f.startswith("vendor/")} - {"vendor"}
    found: dict[str, list[str]] = {"llama.cpp": [], "gguf-py": [], "llama-cpp-python": []}
    for directory in sorted(directories):
        if not any(d.startswith(directory + "/") for d in directories):
            found[directory.removeprefix("vendor/").replace("/", "-")] = []
    for name in files:
        directory = str(PurePosixPath(name).parent)
        component = directory.removeprefix("vendor/").replace("/", "-")
        if name.startswith("gguf-py/"):
            component = "gguf-py"
        elif name.startswith("bindings/"):
            component = "llama-cpp-python"
        elif not name.startswith("vendor/") or component not in found:
            component = "llama.cpp"
        found[component].append(name)
    return {name: members for name, members in found.items() if members}


def notices(files: dict[str, bytes]) -> dict[str, bytes]:
    """The notice of each component of llama.cpp's ``files`` (path to contents).

    It consists of the component's licence files and of every comment in its sources that speaks of
    copyright or a licence, which is where single files from elsewhere (and whole libraries of one
    header) have theirs. Raises NoticeError for a component that has neither.
    """
    result = {}
    for component, members in components(files).items():
        texts = {f: files[f] for f in ELSEWHERE.get(component, ()) if f in files}
        texts |= {f: files[f] for f in members if LICENSE.fullmatch(PurePosixPath(f).name)}
        for name in members:
            if name.endswith(SOURCES):
                comments = dict.fromkeys(c for c in _COMMENT.findall(files[name]) if _NOTICE.search(c))
                if comments:
                    texts[name] = b"\n\n".join(c.strip() for c in comments) + b"\n"
        notice = b"\n".join(f"==== {name}\n\n".encode() + text for name, text in texts.items())
        if not _TERMS.search(notice):
            raise NoticeError(
                f"{component} (in vendor/) has no licence notice: "
                "name the file that has one in ELSEWHERE of scripts/notices.py"
            )
        result[component] = notice
    return result
