# SPDX-License-Identifier: MIT
"""Applies the edits to the files of llama.cpp, and knows the version they were made for.

Everything works on contents in memory, so that applying twice, or to a tree that is already edited,
gives the same files.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from edits import HOOKS, Edit
from fixes import FIXES

EDITS = (*HOOKS, *(edit for fix in FIXES for edit in fix.edits))
"""Every change that Lutra makes to llama.cpp."""

LOCK = Path(__file__).with_name("lock.json")


class OverlayError(Exception):
    """An edit that cannot be applied; the message names its file and its anchor."""


@dataclass(frozen=True)
class Lock:
    """The upstream release that the edits were made for.

    ``sha256`` is of the sdist, ``files`` maps each edited file to its SHA-256 before the edits.
    """

    package: str
    version: str
    sha256: str
    files: dict[str, str]

    @staticmethod
    def read(path: Path = LOCK) -> Lock:
        """Reads a lock file."""
        return Lock(**json.loads(path.read_text()))

    def write(self, path: Path = LOCK) -> None:
        """Writes a lock file."""
        path.write_text(json.dumps(asdict(self), indent=2) + "\n")


def sha256(data: bytes) -> str:
    """SHA-256 of ``data`` in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def enclosing(lines: list[str], at: int) -> str:
    """The line that opens the definition around line ``at``; "" if that stands at the top level.

    Indentation tells: going up from a line, one that begins with a letter and is indented less than
    all between encloses it. The outermost of these opens the definition, namespaces and
    ``extern "C"`` left out of account, as are labels. A line that opens a definition encloses itself.
    """
    found = ""
    depth = _indentation(lines[at])
    for i in range(at, -1, -1):
        text = lines[i].lstrip()
        encloses = i == at or _indentation(lines[i]) < depth
        if encloses and re.match(r"[A-Za-z_]", text) and not re.match(r"\w+:$", text):
            depth = _indentation(lines[i])
            if not text.startswith(("namespace", 'extern "C"')):
                found = text
    return found


def _indentation(line: str) -> int:
    return len(line) - len(line.lstrip())


def apply_edit(lines: list[str], edit: Edit) -> list[str]:
    """The lines of a file after one edit; unchanged if it has been applied before.

    Raises OverlayError unless the anchor matches exactly one line and lies where the edit says.
    """
    new = edit.text.splitlines()
    anchors = [i for i, line in enumerate(lines) if line.strip() == edit.anchor]
    applied = False
    if edit.place == "instead" and not anchors:
        anchors = [i for i in range(len(lines)) if lines[i : i + len(new)] == new]
        applied = len(anchors) == 1
    if len(anchors) != 1:
        raise OverlayError(f"{edit.file}: the anchor matches {len(anchors)} lines, not 1: {edit.anchor}")
    at = anchors[0]
    place = enclosing(lines, at)
    if not (place.startswith(edit.inside) if edit.inside else place == ""):
        top = "the top level"
        raise OverlayError(
            f"{edit.file}: the anchor lies in {place or top}, not in {edit.inside or top}: {edit.anchor}"
        )
    start, end = {"before": (at, at), "instead": (at, at + 1), "after": (at + 1, at + 1)}[edit.place]
    if edit.place == "after":
        applied = lines[end : end + len(new)] == new
    elif edit.place == "before":
        applied = lines[max(start - len(new), 0) : start] == new
    return lines if applied else lines[:start] + new + lines[end:]


def apply_edits(files: dict[str, bytes], edits: Iterable[Edit] = EDITS) -> dict[str, bytes]:
    """``files`` (path to contents) with all edits applied.

    Raises OverlayError with one line per edit that has no file, no unique anchor or another place.
    """
    result = dict(files)
    errors = []
    for edit in edits:
        try:
            if edit.file not in result:
                raise OverlayError(f"{edit.file}: no such file; wanted for the anchor: {edit.anchor}")
            lines = apply_edit(result[edit.file].decode().splitlines(), edit)
            result[edit.file] = ("\n".join(lines) + "\n").encode()
        except OverlayError as error:
            errors.append(str(error))
    if errors:
        raise OverlayError("\n".join(errors))
    return result


def file_hashes(files: dict[str, bytes], edits: Iterable[Edit] = EDITS) -> dict[str, str]:
    """SHA-256 of each file that the edits touch, in the order of the edits."""
    return {e.file: sha256(files[e.file]) for e in edits if e.file in files}


def drift(files: dict[str, bytes], lock: Lock) -> list[str]:
    """The edited files that differ from those of the locked release."""
    hashes = file_hashes(files)
    return [name for name, digest in lock.files.items() if hashes.get(name) != digest]
