# SPDX-License-Identifier: MIT
"""Ctrl-C and ``kill`` as exceptions that never cut tidying up short.

Python turns a signal into an exception between any two of its instructions, so also in the first line of an
``__exit__``, whose work is then left undone. A ``shielded`` function is left whole: a signal that comes from
its call to its end is raised when it is through.
"""

from __future__ import annotations

import functools
import signal
import sys
import threading
from collections.abc import Callable
from types import CodeType, FrameType
from typing import NoReturn, ParamSpec, TypeVar

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_P = ParamSpec("_P")
_R = TypeVar("_R")

_waiting: list[int] = []  # signals that came while a shielded function ran
_shield: CodeType  # of the wrapper that ``shielded`` makes


def raise_signals() -> None:
    """From now on SIGINT raises KeyboardInterrupt, SIGTERM and SIGHUP raise SystemExit, in the main thread.

    A signal that is ignored (``nohup``, a job in the background) stays ignored.
    """
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _arrived)


def shielded(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Decorator: no signal is raised in ``function``, but after it. Needs ``raise_signals``."""

    def run(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            return function(*args, **kwargs)
        finally:
            if _waiting and _is_outermost():  # nothing is called before a return without a signal
                _raise(_waiting.pop())

    global _shield
    _shield = run.__code__  # the same for all
    return functools.wraps(function)(run)


def can_wait() -> bool:
    """Whether a signal that comes in a ``shielded`` function of this thread is known to ``is_waiting``."""
    return (
        threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is _arrived
    )


def is_waiting() -> bool:
    """Whether a signal has come that is raised once the ``shielded`` function is through."""
    return bool(_waiting)


@shielded
def ignore_signals() -> None:
    """For the last words of a program that was interrupted and has tidied up."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    _waiting.clear()


def _arrived(number: int, frame: FrameType | None) -> None:
    if _is_shielded(frame):
        _waiting.append(number)
    else:
        _raise(number)


def _is_shielded(frame: FrameType | None) -> bool:
    while frame and frame.f_code is not _shield:
        frame = frame.f_back
    return frame is not None


def _is_outermost() -> bool:
    """Whether signals may be raised when the calling wrapper is through."""
    caller = sys._getframe(2)
    return threading.current_thread() is threading.main_thread() and not _is_shielded(caller)


def _raise(number: int) -> NoReturn:
    _waiting.clear()
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + number)
