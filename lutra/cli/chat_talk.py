# SPDX-License-Identifier: MIT
"""A conversation at a terminal, or through a pipe: messages are answered, /commands are followed."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields
from pathlib import Path

from gguf_tools.errors import LutraError
from lutra.cli.chat_input import unquoted
from lutra.cli.chat_screen import Screen
from lutra.console import say, warn
from lutra.runtime.conversation import Conversation
from lutra.runtime.sampling import Sampling
from lutra.runtime.session import Sessions

_LIMIT = "n"  # a setting beside those of the sampling


class Talk:
    """Says to the model what is typed, and shows what comes back."""

    def __init__(self, conversation: Conversation, screen: Screen) -> None:
        self._conversation = conversation
        self._screen = screen
        conversation.on_reading = screen.reading
        self._sessions = Sessions()
        self._attached = ""  # goes along with the next message

    def go_on(self, messages: Iterable[str]) -> None:
        """Answer every message and follow every command, until one leaves."""
        for typed in messages:
            name, _, rest = typed.rstrip().partition(" ")
            if name in ("/exit", "/bye"):
                return
            try:
                if name in _COMMANDS:
                    _COMMANDS[name][1](self, rest.strip())
                elif name.startswith("/") and name[1:].isalpha():
                    raise LutraError(f"no command {name}; /help lists them, a space before it sends it")
                elif message := unquoted(typed):
                    self.ask(self._attached + message)
            except LutraError as error:
                print(f"lutra: error: {error}", file=sys.stderr)

    def ask(self, message: str) -> None:
        """Answer one message."""
        self._show(self._conversation.say(message))
        self._attached = ""

    def resume(self, name: str, system: str | None) -> None:
        """Go on with a session, if there is one; ``system``, if given, is its system message from now on."""
        if name in self._sessions:
            self._load(name)
            self._conversation.script.system = system or self._conversation.script.system

    def keep(self, name: str) -> None:
        """Save a session."""
        if self._conversation.script.turns:
            self._save(name)

    def completions(self, line: str) -> Iterator[str]:
        """What ``line`` may become: commands, and what can stand after them."""
        name, space, begun = line.partition(" ")
        if not space:
            yield from (f"{command} " for command in _COMMANDS if command.startswith(name) and name)
        elif name in ("/load", "/save"):
            yield from (
                f"{name} {session}" for session in self._sessions.names() if session.startswith(begun)
            )
        elif name == "/set":
            yield from (f"{name} {setting} " for setting in self._settings() if setting.startswith(begun))
        elif name == "/read":
            path = Path(begun).expanduser()
            directory, start = (path, "") if begun.endswith("/") else (path.parent, path.name)
            with contextlib.suppress(OSError):
                for entry in sorted(directory.iterdir()):
                    if entry.name.startswith(start) and (start or not entry.name.startswith(".")):
                        yield f"{name} {entry}" + ("/" if entry.is_dir() else "")

    # ---- answers ---------------------------------------------------------------------------

    def _show(self, pieces: Iterator[tuple[str, bool]]) -> None:
        with contextlib.closing(pieces):  # type: ignore[type-var]
            self._screen.show(pieces)
        answer = self._conversation.answer
        if answer.dropped:
            warn(f"the context is full: the {answer.dropped} oldest turns were dropped; see --ctx")
        if answer.loop:
            warn(
                f"the answer was ended: it only repeated its last {answer.loop} tokens. A higher --temp or a "
                "--dry-multiplier of 0.8 helps; --stop-loop 0 lets it go on"
            )
        if answer.full:
            warn("the answer was ended: the context is full; see --ctx")
        if answer.only_thought:
            warn("the answer ended within its thought; --no-think or a larger -n or --ctx may help")
        self._screen.speed(answer)

    # ---- commands --------------------------------------------------------------------------

    def _help(self, _: str) -> None:
        """This list."""
        rows = [(usage, command.__doc__ or "") for usage, command in _COMMANDS.values()]
        rows.append(("/exit, /bye", "Leave, as Ctrl-D does."))
        self._screen.tell("\n".join(f"  {usage:<18}{text}" for usage, text in rows))
        self._screen.tell('A message of several lines is pasted, or put between two lines of """.')

    def _clear(self, _: str) -> None:
        """Begin a new conversation."""
        self._conversation.clear()
        self._attached = ""

    def _again(self, _: str) -> None:
        """Another answer to the last message."""
        if self._conversation.sampling.temp == 0:
            self._screen.tell(
                "(the temperature is 0, so it will be the same one; /set temp 0.7 changes that)"
            )
        self._show(self._conversation.say_again())

    def _system(self, text: str) -> None:
        """Give the model a system message; '-' takes it away, nothing shows it."""
        if text:
            self._conversation.script.system = None if text == "-" else text
        else:
            self._screen.tell(self._conversation.script.system or "(no system message)")

    def _set(self, text: str) -> None:
        """Change a setting of the sampling, or -n; without one, show them."""
        name, _, value = text.partition(" ")
        name = name.lstrip("-").replace("-", "_")
        if not name:
            self._screen.tell("\n".join(f"  {key:<20}{now}" for key, now in self._settings().items()))
        elif name == _LIMIT:
            if not value.strip().isdigit():
                raise LutraError(f"n is a number of tokens, 0 for as many as it takes, not '{value}'")
            self._conversation.limit = int(value) or None
        else:
            sampling = self._conversation.sampling
            self._conversation.sampling = sampling.with_texts({name: value.strip()})

    def _settings(self) -> dict[str, str]:
        sampling = self._conversation.sampling
        values = {setting.name: f"{getattr(sampling, setting.name):g}" for setting in fields(Sampling)}
        return {_LIMIT: str(self._conversation.limit or 0), **values}

    def _read(self, name: str) -> None:
        """Put a text file in front of the next message."""
        if not name:
            raise LutraError("which file? /read FILE")
        path = Path(name.strip("\"'")).expanduser()
        try:
            text = path.read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            raise LutraError(f"{path}: {error.strerror}") from None
        self._attached += f"{path.name}:\n{text}\n\n"
        self._screen.tell(f"({path}: {len(text)} characters go with your next message)")

    def _save(self, name: str) -> None:
        """Keep the conversation, and what the model has read of it."""
        self._require_name(name, "/save NAME")
        replaces = name in self._sessions
        problem = self._sessions.save(name, self._conversation)
        if problem:
            warn(f"{name}: saved what was said, which the model will have to read again: {problem}")
        else:
            say(f"{name}: saved{', in place of what was there' if replaces else ''}")

    def _load(self, name: str) -> None:
        """Go on with a conversation that was kept."""
        self._require_name(name, "/load NAME")
        problem = self._sessions.load(name, self._conversation)
        self._attached = ""
        script = self._conversation.script
        if problem:
            warn(f"{name}: {len(script.turns)} messages, which the model has to read again: {problem}")
        else:
            say(f"{name}: {len(script.turns)} messages, {len(script.tokens)} tokens that need no reading")

    def _require_name(self, name: str, usage: str) -> None:
        if not name:
            there = ", ".join(self._sessions.names()) or "none"
            raise LutraError(f"which one? {usage}; there are: {there}")


_COMMANDS: dict[str, tuple[str, Callable[[Talk, str], None]]] = {
    usage.split()[0]: (usage, command)
    for usage, command in (
        ("/help", Talk._help),
        ("/clear", Talk._clear),
        ("/regen", Talk._again),
        ("/system TEXT", Talk._system),
        ("/set KEY VALUE", Talk._set),
        ("/read FILE", Talk._read),
        ("/save NAME", Talk._save),
        ("/load NAME", Talk._load),
    )
}
