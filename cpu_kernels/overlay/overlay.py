"""Applies the edits of ``edits.py`` to the files of llama.cpp, and knows the version they were made for.

Everything works on contents in memory, so that applying twice, or to a tree that is already edited,
gives the same files.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from edits import EDITS, Edit

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


def apply_edit(lines: list[str], edit: Edit) -> list[str]:
    """The lines of a file after one edit; unchanged if it has been applied before.

    Raises OverlayError unless the anchor matches exactly one line.
    """
    new = edit.text.splitlines()
    anchors = [i for i, line in enumerate(lines) if line.strip() == edit.anchor]
    if edit.place == "instead":
        if not anchors and sum(lines[i : i + len(new)] == new for i in range(len(lines))) == 1:
            return lines
    elif len(anchors) == 1:
        at = anchors[0]
        there = (
            lines[at + 1 : at + 1 + len(new)] if edit.place == "after" else lines[max(at - len(new), 0) : at]
        )
        if there == new:
            return lines
    if len(anchors) != 1:
        raise OverlayError(f"{edit.file}: the anchor matches {len(anchors)} lines, not 1: {edit.anchor}")
    at = anchors[0]
    start, end = {"before": (at, at), "instead": (at, at + 1), "after": (at + 1, at + 1)}[edit.place]
    return lines[:start] + new + lines[end:]


def apply_edits(files: dict[str, bytes], edits: Iterable[Edit] = EDITS) -> dict[str, bytes]:
    """``files`` (path to contents) with all edits applied.

    Raises OverlayError with one line per edit that has no file or no unique anchor.
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
