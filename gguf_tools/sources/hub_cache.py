# SPDX-License-Identifier: MIT
"""The Hugging Face hub's cache: models--ORG--NAME/{refs/main,snapshots/HASH}, whose files are links."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

from gguf_tools.errors import LutraError

_MODEL = re.compile(r"models--(?:.+?--)?(.+)")


def snapshot(path: Path) -> Path:
    """Where a model's files are: ``path``, or of a models--ORG--NAME the main snapshot, else the newest.

    Raises ``LutraError`` when the cache has none.
    """
    snapshots = path / "snapshots"
    if not _MODEL.fullmatch(path.resolve().name) or not snapshots.is_dir():
        return path
    with contextlib.suppress(OSError, UnicodeDecodeError):
        main = snapshots / (path / "refs" / "main").read_text().strip()
        if main.parent == snapshots and main.is_dir():
            return main
    there = [entry for entry in snapshots.iterdir() if entry.is_dir()]
    if not there:
        raise LutraError(f"{path}: no snapshot in this cache of the hub; download the model again")
    return max(there, key=lambda entry: entry.stat().st_mtime_ns)


def model_name(path: Path) -> str:
    """What a model at ``path`` is called: the last part, but in the hub's cache the model's own name.

    A file's is its own, too, where it is a link to a blob.
    """
    path = path.resolve() if path.is_dir() else Path(os.path.abspath(path))
    if path.parent.name == "snapshots" and path.is_dir():
        path = path.parent.parent
    found = _MODEL.fullmatch(path.name)
    return found[1] if found and path.is_dir() else path.name
