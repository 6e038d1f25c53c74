# SPDX-License-Identifier: MIT
"""A conversation with a model: what was said, what the model has read of it, the next answer."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING

from gguf_tools.errors import LutraError
from lutra.runtime.model import Model
from lutra.runtime.sampling import Loop, Sampling
from lutra.runtime.thinking import Thoughts, marks

if TYPE_CHECKING:
    from lutra.runtime.template import Message

ROOM = 32  # tokens of context that an answer must have left


@dataclass
class Answer:
    """How an answer came about, and how it ended.

    ``read``: tokens of the prompt that were computed for it, in ``reading`` seconds. ``tokens`` were written
    in ``writing`` seconds. ``dropped``: turns, the oldest, that the context had no room for. ``loop``: tokens
    that it came to repeat and was ended for, else 0. ``full``: whether the context ended it.
    ``only_thought``: whether it ended within a thought.
    """

    read: int = 0
    reading: float = 0.0
    tokens: int = 0
    writing: float = 0.0
    dropped: int = 0
    loop: int = 0
    full: bool = False
    only_thought: bool = False


@dataclass
class Script:
    """What was said, and so all that it takes to go on.

    ``tokens`` are what the model has read and written, and ``rendered`` is their text; both are empty where
    that is not known. ``started`` is the time that templates tell the model: always the same, or all that
    was read would have to be read again.
    """

    system: str | None = None
    turns: list[Message] = field(default_factory=list)
    started: datetime = field(default_factory=lambda: datetime.now().replace(microsecond=0))
    rendered: str = ""
    tokens: list[int] = field(default_factory=list)


class Conversation:
    """A model, what was said to it, and how it answers. The settings may be changed between answers.

    ``limit``: tokens of an answer at most, None for no limit. ``thinking``: see ``ChatTemplate.render``.
    ``on_reading`` is told how many tokens are read before an answer comes.
    Raises LutraError where the model has no chat template.
    """

    def __init__(
        self,
        model: Model,
        sampling: Sampling,
        *,
        system: str | None = None,
        limit: int | None = None,
        seed: int | None = None,
        thinking: bool | None = None,
    ) -> None:
        self.model = model
        self.sampling = sampling
        self.limit = limit
        self.thinking = thinking
        self.on_reading: Callable[[int], object] = lambda _: None
        self.script = Script(system)
        self.answer = Answer()  # the last one
        self._seed = seed
        self._template = model.template
        self._marks = marks(self._template.source)
        self._shown = frozenset(
            token for pair in self._marks for mark in pair for token in model.tokenize(mark, start=False)
        )

    def clear(self) -> None:
        """Begin anew; the system message stays."""
        self.script = Script(self.script.system)

    def say(self, message: str) -> Iterator[tuple[str, bool]]:
        """Stream the answer to ``message``, in pieces, each with whether it is thought; see ``answer`` then.

        Both become part of the conversation; of an answer that is left early what was said till then.
        Thoughts do not. Raises LutraError, with the conversation as it was, where the message has no room.
        """
        return self._say([*self.script.turns, {"role": "user", "content": message}])

    def say_again(self) -> Iterator[tuple[str, bool]]:
        """Another answer to the last message, as ``say`` has it. Raises LutraError where there is none."""
        turns = list(self.script.turns)
        if turns and turns[-1]["role"] == "assistant":
            turns.pop()
        if not turns:
            raise LutraError("nothing was said yet")
        return self._say(turns)

    def _say(self, turns: list[Message]) -> Iterator[tuple[str, bool]]:
        self.answer, script = Answer(), self.script
        before, script.turns = script.turns, turns
        said = ""
        try:
            prompt, tokens = self._prompt()
            thoughts = Thoughts(self._marks, prompt)
            for piece, is_thought in thoughts.split(self._written(prompt, tokens)):
                said += "" if is_thought else piece
                yield piece, is_thought
            self.answer.only_thought = thoughts.unfinished
        except LutraError:
            script.turns, script.rendered = before, ""
            raise
        except BaseException:
            script.rendered = ""  # a token may be there whose text is not
            raise
        finally:
            if script.turns is turns:
                turns.append({"role": "assistant", "content": said})

    def _written(self, prompt: str, tokens: list[int]) -> Iterator[str]:
        """The text that the model writes after ``prompt``, which comes into the script."""
        model, script = self.model, self.script
        script.rendered, script.tokens = prompt, list(tokens)
        self.on_reading(model.unread(tokens))
        with model.sampler(self.sampling, self._seed) as sampler:
            if self._seed is not None:
                self._seed += 1  # another answer shall be another
            written = self._watched(model.generate(tokens, sampler, self.limit))
            for piece in model.text(written, self._shown):
                script.rendered += piece
                yield piece

    def _watched(self, tokens: Iterator[int]) -> Iterator[int]:
        """The tokens of an answer, which are counted, until they only repeat themselves."""
        answer, model = self.answer, self.model
        loop = Loop(self.sampling.stop_loop)
        started, before = time.monotonic(), model.evaluated
        for token in tokens:
            if not answer.tokens:
                answer.read, answer.reading = model.evaluated - before, time.monotonic() - started
                started = time.monotonic()
            answer.tokens += 1
            answer.writing = time.monotonic() - started
            self.script.tokens.append(token)
            yield token
            if loop.goes_on(token):
                answer.loop = loop.period
                return
        answer.full = len(self.script.tokens) >= model.n_ctx

    def _prompt(self) -> tuple[str, list[int]]:
        """The conversation as text and as tokens.

        Where the context has no room for it the oldest turns go, and some more: what comes after them has to
        be read again, and not again at every turn.
        """
        turns, room = self.script.turns, self.model.n_ctx - ROOM
        while True:
            text = self._render()
            tokens = self._tokens(text)
            if len(tokens) <= room or len(turns) == 1:
                return text, tokens
            del turns[:2]
            self.answer.dropped += 1
            room = self.model.n_ctx * 3 // 4

    def _render(self) -> str:
        system: list[Message] = (
            [{"role": "system", "content": self.script.system}] if self.script.system else []
        )
        messages = system + self.script.turns
        return self._template.render(messages, thinking=self.thinking, now=self.script.started)

    def _tokens(self, text: str) -> list[int]:
        """Tokens of ``text``; where it goes on from what the model knows they begin with those it knows.

        Else what the model wrote could come out as other tokens, and all from there would be read again.
        """
        known = self.script.rendered
        if known and text.startswith(known):
            rest = self.model.tokenize(text[len(known) :], start=False)
            if rest and self.model.ends(rest[0]):  # so that no token would reach across
                return self.script.tokens + rest
        return self.model.tokenize(text)
