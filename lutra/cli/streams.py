# SPDX-License-Identifier: MIT
"""Standard input, output and error as people have them: closed, on a full disk, or without a reader."""

from __future__ import annotations

import contextlib
import os
import sys


def prepare() -> None:
    """Make all three usable. What is no text of this terminal is shown or read as a replacement."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:  # closed, and the next file to be opened would be taken for it
            with contextlib.suppress(OSError):
                os.fstat(number)
                number = -1  # that has happened
            if number >= 0:
                number = os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
            setattr(sys, name, open(os.devnull if number < 0 else number, mode, closefd=number < 0))  # noqa: SIM115
    sys.stdin.reconfigure(errors="replace")  # type: ignore[union-attr]
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]


def drop() -> None:
    """Give up what cannot be written, so that Python does not try at exit."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            with contextlib.suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
