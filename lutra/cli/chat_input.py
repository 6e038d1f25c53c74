# SPDX-License-Identifier: MIT
"""What a person types, or a program pipes in: one message after the other."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from lutra.cli.chat_screen import is_terminal
from lutra.console import warn
from lutra.runtime.paths import state_dir

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.history import History

PROMPT = "> "
QUOTES = '"""'  # a message of several lines is between two of these
TERMINAL_LINE = 4095  # bytes of a line, at most, where the terminal edits it
LEAVE = "(Ctrl-C again, Ctrl-D or /exit leaves)"

Complete = Callable[[str], Iterable[str]]  # what a line may become


def messages(complete: Complete, *, history: bool) -> Iterator[str]:
    """Messages until the end of the input, as they were typed. ``history``: keep them for the next time."""
    return _edited(complete, history) if is_terminal() else _lines()


def unquoted(text: str) -> str:
    """A message without the quotes around its lines."""
    text = text.strip()
    if not text.startswith(QUOTES):
        return text
    return text.removeprefix(QUOTES).removesuffix(QUOTES if len(text) > len(QUOTES) else "").strip("\n")


def is_open(text: str) -> bool:
    """Whether a message has begun with quotes that are not closed."""
    text = text.strip()
    return text.startswith(QUOTES) and not (len(text) >= 2 * len(QUOTES) and text.endswith(QUOTES))


def _lines() -> Iterator[str]:
    """From a pipe, or a terminal that cannot edit."""
    text, again = "", False
    while True:
        try:
            if sys.stdin.isatty():
                print(
                    "" if text else PROMPT,
                    end="",
                    file=sys.stdout if sys.stdout.isatty() else sys.stderr,
                    flush=True,
                )
            line = sys.stdin.readline()
        except KeyboardInterrupt:
            if again and not text:
                return
            print(f"\n{LEAVE}", file=sys.stderr)
            text, again = "", True
            continue
        again = False
        if sys.stdin.isatty() and len(line.encode(errors="replace")) > TERMINAL_LINE:
            warn(f"the terminal passes on {TERMINAL_LINE} bytes of a line; the rest of this one is lost")
        text += line
        if not line or not is_open(text):
            if text:
                yield text
            if not line:
                return
            text = ""


def _edited(complete: Complete, history: bool) -> Iterator[str]:
    """From a terminal that can edit."""
    session = _session(complete, history)
    again = False
    while True:
        try:
            yield session.prompt(PROMPT)
            again = False
        except EOFError:
            return
        except KeyboardInterrupt:
            if again and not session.default_buffer.text:
                return
            print(LEAVE)
            again = True


def _session(complete: Complete, history: bool) -> PromptSession[str]:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import CompleteEvent, Completer, Completion
    from prompt_toolkit.document import Document
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
    from prompt_toolkit.output.vt100 import Vt100_Output
    from prompt_toolkit.shortcuts import CompleteStyle

    keys = KeyBindings()

    @keys.add("enter")
    def _(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if is_open(buffer.text):
            buffer.newline(copy_margin=False)
        else:
            buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.newline(copy_margin=False)

    class Commands(Completer):
        def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterator[Completion]:
            line = document.text_before_cursor
            for whole in complete(line):
                yield Completion(whole, start_position=-len(line), display=whole.split()[-1])

    # Terminals that are asked where the cursor is, and do not answer, are waited for.
    output = Vt100_Output.from_pty(sys.stdout, term=os.environ.get("TERM"))
    output.enable_cpr = False
    return PromptSession(
        multiline=True,
        prompt_continuation="",
        key_bindings=keys,
        completer=Commands(),
        complete_while_typing=False,
        complete_style=CompleteStyle.READLINE_LIKE,
        enable_open_in_editor=True,
        enable_suspend=True,
        history=_history(state_dir() / "chat_history") if history else None,
        output=output,
    )


def _history(path: Path) -> History | None:
    """What was typed before, in a file that only its owner can read; None where there can be none."""
    from prompt_toolkit.history import FileHistory

    class Readable(FileHistory):
        def store_string(self, string: str) -> None:
            """Text that may have bytes that are no UTF-8."""
            try:
                super().store_string(string.encode(errors="replace").decode())
            except OSError as error:
                warn(f"{path}: {error.strerror}; what is typed is not kept")

    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.touch(0o600)
        with open(path, "r+b"):
            pass
    except OSError as error:
        warn(f"{path}: {error.strerror}; what is typed is not kept")
        return None
    return Readable(path)
