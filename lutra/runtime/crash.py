# SPDX-License-Identifier: MIT
"""The last line of the command where native code ends it: cpu_kernels/ggml/crash.cpp.

llama.cpp checks much of a model with assertions, and those end the process. A command must say what happened
then, and leave no temporary files of a model's size behind. A program that uses lutra as a library is its own
master: nothing is installed there unless it calls ``arm``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import ctypes

_armed = False
_base: ctypes.CDLL | None = None  # libggml-base, once it is loaded and the line is installed
_models: list[tuple[Path, str]] = []  # open now, with what to do when they crash
_kept = ""
_doomed: dict[int, bytes] = {}  # by place
_alive: list[bytes] = []  # all that C was ever told


def arm() -> None:
    """Install the line as soon as native code is loaded."""
    global _armed
    _armed = True


def loaded(base: ctypes.CDLL) -> None:
    """Called once libggml-base is loaded."""
    global _base
    if not _armed or not hasattr(base, "lutra_on_crash"):  # some other ggml, which will be refused
        return
    import ctypes  # not for a command that loads nothing

    base.lutra_on_crash.argtypes = (ctypes.c_char_p, ctypes.c_char_p)
    base.lutra_on_crash_remove.argtypes = (ctypes.c_int, ctypes.c_char_p)
    base.lutra_on_crash.restype = base.lutra_on_crash_remove.restype = None
    _base = base
    _tell()
    for place, path in _doomed.items():
        base.lutra_on_crash_remove(place, path)


def opened(path: Path, advice: str) -> None:
    """A model is in use; ``advice`` is what to do when it crashes."""
    _models.append((path, advice))
    _tell()


def closed(path: Path, advice: str) -> None:
    """A model is not in use any more."""
    _models.remove((path, advice))
    _tell()


def kept(what: str) -> None:
    """The line tells of ``what`` is left behind and how to go on; "" for nothing."""
    global _kept
    text = f" ({what})" if what else ""
    if text != _kept:
        _kept = text
        _tell()


@contextmanager
def removing(path: Path) -> Iterator[None]:
    """Within, a crash removes ``path``: a file, or a directory that is empty once later paths are gone."""
    place = next(i for i in range(len(_doomed) + 1) if i not in _doomed)
    _doomed[place] = _kept_alive(os.fsencode(path.absolute()))
    if _base:
        _base.lutra_on_crash_remove(place, _doomed[place])
    try:
        yield
    finally:
        if _base:
            _base.lutra_on_crash_remove(place, None)
        del _doomed[place]


def _tell() -> None:
    if _base:
        before, after = (f"{_models[-1][0]}: ", f"; {_models[-1][1]}") if _models else ("", "")
        _base.lutra_on_crash(*(_kept_alive(os.fsencode(text)) for text in (before, after + _kept)))


def _kept_alive(text: bytes) -> bytes:
    _alive.append(text)
    return text
