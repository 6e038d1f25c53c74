# SPDX-License-Identifier: MIT
"""What a conversation shows: answers on standard output, and on a terminal what else there is to tell."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lutra.runtime.conversation import Answer

_DIM, _PLAIN = "\x1b[2m", "\x1b[0m"
_MANY = 64  # tokens
_CONTROL = {code: "\ufffd" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


def is_terminal() -> bool:
    """Whether lines can be edited here."""
    return sys.stdin.isatty() and sys.stdout.isatty() and _is_capable()


def _is_capable() -> bool:
    return os.environ.get("TERM", "") not in ("", "dumb", "unknown")


class Screen:
    """Standard output and error. ``thoughts``: whether a terminal shows them; elsewhere they never are."""

    def __init__(self, thoughts: bool) -> None:
        self._live = sys.stdout.isatty()
        self._thoughts = thoughts and self._live
        dims = self._live and _is_capable() and not os.environ.get("NO_COLOR")
        self._before, self._after = (_DIM, f"{_PLAIN}\n\n") if dims else ("(thinking)\n", "\n\n")
        self._end = _PLAIN if dims else ""
        self._erase = "\r\x1b[2K" if dims else ""
        self._is_reading = False  # a line that goes away says so

    def reading(self, tokens: int) -> None:
        """Say that the model reads, where that may take a while, until the answer comes."""
        if self._erase and tokens >= _MANY:
            print(f"{_DIM}(reading {tokens} tokens){_PLAIN}", end="", flush=True)
            self._is_reading = True

    def _has_read(self) -> None:
        if self._is_reading:
            print(self._erase, end="")
        self._is_reading = False

    def show(self, pieces: Iterator[tuple[str, bool]]) -> None:
        """An answer as it comes. It ends with a line break; " [stopped]" is before it after Ctrl-C."""
        within, waiting = False, False
        try:
            for piece, is_thought in pieces:
                self._has_read()
                if is_thought and not self._thoughts:
                    if self._live and not waiting:
                        self.tell("(thinking)")
                    waiting = True
                    continue
                if is_thought != within:
                    print(self._before if is_thought else self._after, end="")
                    within = is_thought
                print(piece.translate(_CONTROL) if self._live else piece, end="", flush=True)
        except KeyboardInterrupt:
            self._has_read()
            print(" [stopped]", end="")
        finally:
            self._has_read()
            print(self._end if within else "", flush=True)

    def tell(self, line: str) -> None:
        """Something that is no answer: beside it on a terminal, else on standard error."""
        print(line, file=sys.stdout if self._live else sys.stderr, flush=True)

    def speed(self, answer: Answer) -> None:
        """How fast the answer came, where a person looks at standard error."""
        if sys.stderr.isatty() and answer.tokens:
            read = f"{answer.read} tokens read, {answer.read / max(answer.reading, 1e-9):.1f} per second; "
            written = answer.tokens - 1  # the first is there once the prompt is read
            speed = f", {written / answer.writing:.1f} per second" if written and answer.writing else ""
            print(f"({read}{answer.tokens} written{speed})", file=sys.stderr)
