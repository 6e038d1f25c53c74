# SPDX-License-Identifier: MIT
"""Text that a model writes itself: what it was trained on, as far as it remembers, and how it is used.

Calibrated and tuned on it, a model keeps what it knows better than on a foreign text of the same length
(the idea: LLM-QAT, arXiv 2305.17888). Sequences begin in three ways: with BOS, with some words of the text
that comes along, and, for a chat model, with a turn's header of its template: the model makes up the content.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from gguf_tools.errors import LutraError
from lutra.console import progress
from lutra.conversion.text import CALIBRATION_TEXT, piece_length, read_documents
from lutra.runtime.model import Model
from lutra.runtime.sample import Sampling

if TYPE_CHECKING:
    from lutra.runtime.sample import Writer
    from lutra.runtime.template import Message

TEMPERATURES = 0.5, 1.5  # in turn: what is likely, and what is possible
AT_ONCE, ON_GPU = 64, 1024  # sequences side by side, on CPUs and on a GPU
WORDS = 4, 32  # tokens of the text that comes along, at least and at most
TURN = 48  # tokens of a system's or user's turn, at most
_CONTENT = "\u2603content\u2603"  # stands for what the model makes up; no template writes it

Beginning = list[list[int]]
"""Tokens that are given; between two lists, and behind the last, the model writes."""


class Samples(Protocol):
    """A model that writes: ``lutra.runtime.sample.Sampling``, or ``NetworkSampling`` of ``network``."""

    def write(
        self,
        writers: Sequence[Writer],
        temperatures: Sequence[float],
        seed: int,
        show: Callable[[int], object],
    ) -> list[list[int]]:
        """What each of ``writers`` wrote at its temperature."""


def write_pieces(
    model: Samples,
    tokenizer: Model,
    tokens: int,
    *,
    seed: int,
    at_once: int = AT_ONCE,
    temperatures: Sequence[float] = TEMPERATURES,
    first: int = 0,
    affordable: Callable[[float], int] | None = None,
) -> list[list[int]]:
    """About ``tokens`` tokens that ``model`` writes, as sequences of ``piece_length`` tokens.

    ``affordable`` is told after the first ``at_once`` sequences how many seconds a token took, and gives the
    number of tokens instead. The same ``seed`` gives the same tokens, and others where the ``first`` sequence
    has another number. ``tokenizer`` is of the same model.
    Raises LutraError when it cannot be computed.
    """
    length = piece_length(tokenizer)
    count = max(1, tokens // length)
    beginnings = Beginnings(tokenizer)
    pieces: list[list[int]] = []
    started = time.monotonic()
    expected = min(at_once, count) if affordable else count
    with progress(expected * (length - 1), "tok", "writing a text") as bar:
        while len(pieces) < count:
            numbers = range(len(pieces), min(len(pieces) + at_once, count))
            writers = [
                writer(
                    beginnings.endless(i // len(temperatures), np.random.default_rng([seed, first + i])),
                    tokenizer,
                )
                for i in numbers
            ]
            warmth = [temperatures[i % len(temperatures)] for i in numbers]
            pieces += model.write(writers, warmth, seed + first + len(pieces), bar.update)
            if affordable and len(pieces) == len(numbers):
                count = affordable((time.monotonic() - started) / (len(pieces) * length)) // length
                bar.total = max(count, len(pieces)) * (length - 1)
    return pieces[:count]


def write_on_cpu(
    path: Path,
    tokenizer: Model,
    tokens: int,
    *,
    seed: int,
    threads: int,
    temperatures: Sequence[float] = TEMPERATURES,
    first: int = 0,
    affordable: Callable[[float], int] | None = None,
) -> list[list[int]]:
    """``write_pieces`` by the runtime, for a model in a file: the same for any number of ``threads``."""
    advice = "--calibration FILE takes a text of yours instead of what the model writes"
    length = piece_length(tokenizer)
    at_once = max(1, min(AT_ONCE, tokens // length))
    with Sampling(path, length=length, at_once=at_once, threads=threads, advice=advice) as sampling:
        return write_pieces(
            sampling, tokenizer, tokens,
            seed=seed, at_once=at_once, temperatures=temperatures, first=first, affordable=affordable,
        )  # fmt: skip


class Beginnings:
    """How the sequences of a model begin."""

    def __init__(self, model: Model) -> None:
        self._model = model
        texts = (document for document in read_documents(CALIBRATION_TEXT) if isinstance(document, str))
        self._texts = [tokens for text in texts if len(tokens := model.tokenize(text)) >= WORDS[1]]
        self._dialogues = list(dialogues(model)) if model.chat_template else []

    def endless(self, first: int, rng: np.random.Generator) -> Iterator[Beginning]:
        """One after the other, each of the next kind; the ``first`` is a number, too."""
        empty = self._model.tokenize("")  # BOS, in most vocabularies
        kinds = 2 if not self._dialogues else 4
        while True:
            kind, first = first % kinds, first + 1
            if kind >= 2:
                yield self._dialogues[int(rng.integers(len(self._dialogues)))]
            elif kind == 0 and empty:
                yield [empty]
            else:
                tokens = self._texts[int(rng.integers(len(self._texts)))]
                yield [tokens[: int(rng.integers(*WORDS))]]


def dialogues(model: Model) -> Iterator[Beginning]:
    """A user's turn and the header of its answer; the same behind a system's turn if the template has one."""
    user: Message = {"role": "user", "content": _CONTENT}
    system: Message = {"role": "system", "content": _CONTENT}
    for messages in ([user], [system, user]):
        try:
            parts = model.template.render(messages).split(_CONTENT)
        except LutraError:  # a template without system turns, for example
            continue
        begun = model.tokenize(parts[0])
        if len(parts) == len(messages) + 1 and begun:  # something that the content can follow
            yield [begun, *(_inner(model, part) for part in parts[1:])]


def _inner(model: Model, text: str) -> list[int]:
    """Tokens of what stands within a text: without BOS, which ``tokenize`` may add."""
    empty = model.tokenize("")
    tokens = model.tokenize(text)
    return tokens[len(empty) :] if empty and tokens[: len(empty)] == empty else tokens


def writer(beginnings: Iterator[Beginning], model: Model) -> Writer:
    """What a beginning gives, and between what the model would write; after a dialogue the next beginning.

    A text that was not begun as a dialogue goes on behind its end, as texts follow one another in training.
    """
    for beginning in beginnings:
        token = -1
        for given in beginning[:-1]:
            for known in given:
                token = yield known
            for _ in range(TURN):
                if model.ends(token):
                    break
                token = yield token
        for known in beginning[-1]:
            token = yield known
        while len(beginning) == 1 or not model.ends(token):
            token = yield token
        yield token
