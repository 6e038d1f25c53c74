# SPDX-License-Identifier: MIT
"""What llama.cpp says: one callback for the process, which knows what call each thread is in."""

from __future__ import annotations

import functools
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lutra.runtime.native import llama

_ERROR = 4  # GGML_LOG_LEVEL_ERROR


class _Call(threading.local):
    """The call into llama.cpp that a thread is in."""

    verbose = False
    errors: list[str] | None = None
    lines: list[str] | None = None


_call = _Call()


@contextmanager
def listening(verbose: bool = False, lines: list[str] | None = None) -> Iterator[list[str]]:
    """For one call of this thread: the errors in its log. ``verbose`` shows all of the log on stderr.

    Lutra's own lines are always shown, the rest never; all of them are added to ``lines``.
    """
    before = _call.verbose, _call.errors, _call.lines
    _call.verbose, _call.errors, _call.lines = verbose, [], lines
    try:
        yield _call.errors
    finally:
        _call.verbose, _call.errors, _call.lines = before


def install() -> None:
    """Hear llama.cpp from now on, whoever heard it before."""
    llama().llama_log_set(_callback(), None)


def reason(errors: list[str]) -> str:
    """Why a call failed: the first of its ``errors``, without the name of the function that it is from."""
    message = errors[0].strip() if errors else "llama.cpp gave no reason"
    return re.sub(r"^[A-Za-z_0-9:~]+: (error loading model: )?", "", message)


@functools.cache  # llama.cpp keeps a pointer to it
def _callback() -> Any:
    return llama().llama_log_callback(_on_line)


def _on_line(level: int, text: bytes, _: object) -> None:
    line = text.decode("utf-8", "replace")
    if _call.verbose or line.startswith("lutra:"):
        sys.stderr.write(line)
        sys.stderr.flush()
    if _call.lines is not None:
        _call.lines.append(line)
    if level == _ERROR and _call.errors is not None:
        _call.errors.append(line)
