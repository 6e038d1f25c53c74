# SPDX-License-Identifier: MIT
"""The text that a model computes while it is calibrated, measured or tuned: sequences of tokens."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from gguf_tools.errors import LutraError
from lutra.console import warn
from lutra.runtime.paths import CALIBRATION_TEXT

if TYPE_CHECKING:
    from lutra.runtime.model import Model
    from lutra.runtime.template import Message

__all__ = [
    "CALIBRATION_TEXT", "TOKENS", "keep_aside", "piece_length", "read_documents", "read_pieces", "spread",
]  # fmt: skip

T = TypeVar("T")

PIECE = 256  # tokens of a sequence, fewer if the model's context is shorter
TOKENS = 16384  # calibration tokens, at most
ASIDE = 5  # of so many sequences one is kept aside, where a loss is measured


def read_pieces(path: Path, model: Model, limit: int, *, overlapping: bool = False) -> list[list[int]]:
    """The calibration text as sequences of ``piece_length(model)`` tokens, spread evenly over it if it has
    more than ``limit``, or if they may be ``overlapping``, to have as many. ``model`` tokenizes.

    JSON lines hold {"text": ...} or {"messages": [...]} (through the model's chat template, if it has one
    that works); any other file is one text. Raises LutraError when there is less than one sequence.
    """
    documents = list(read_documents(path))
    render = _renderer(model, documents)
    tokens = [token for document in documents for token in model.tokenize(render(document))]
    length = piece_length(model)
    if len(tokens) < length:
        raise LutraError(
            f"{path}: {len(tokens)} tokens; calibration needs {length}, better {TOKENS}: give a longer text, "
            "or --calibration default"
        )
    # The last sequence of a short text overlaps the one before it, so that all of the text is used.
    count = limit // length if overlapping else min(limit // length, -(-len(tokens) // length))
    starts = np.linspace(0, len(tokens) - length, count).astype(int)
    return [tokens[start : start + length] for start in starts]


def keep_aside(pieces: Sequence[list[int]]) -> tuple[list[list[int]], list[list[int]]]:
    """The sequences to calibrate with, and every fifth, to measure with: none where there is one only."""
    every = min(ASIDE, len(pieces))
    aside = [i % every == every - 1 and every > 1 for i in range(len(pieces))]
    return [p for p, out in zip(pieces, aside, strict=True) if not out], [
        p for p, out in zip(pieces, aside, strict=True) if out
    ]


def spread(pieces: Sequence[T], count: int) -> list[T]:
    """At most ``count`` of ``pieces``, at least one if there is one, evenly spread."""
    chosen = np.linspace(0, len(pieces) - 1, min(len(pieces), max(1, count))).astype(int)
    return [pieces[i] for i in chosen]


def piece_length(model: Model) -> int:
    """Tokens of a sequence that ``model`` computes: its context may be shorter than PIECE."""
    return min(PIECE, model.n_ctx_train or PIECE)


def read_documents(path: Path) -> Iterator[str | list[Message]]:
    """Texts and conversations of a calibration text. Raises LutraError naming the line that is neither."""
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise LutraError(f"{path}: cannot be read as a UTF-8 text: {error}") from None
    if path.suffix != ".jsonl":
        yield text
        return
    for number, line in enumerate(text.split("\n"), 1):  # other ends of lines may stand in a string
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            is_text = "text" in entry
            document = entry["text"] if is_text else entry["messages"]
            if isinstance(document, str) != is_text:
                raise TypeError
            if not is_text and not all(
                isinstance(message["role"], str) and isinstance(message["content"], str)
                for message in document
            ):
                raise TypeError
            yield document
        except (ValueError, KeyError, TypeError):
            raise LutraError(f'{path}:{number}: needs {{"text": ...}} or {{"messages": [...]}}') from None


def _renderer(model: Model, documents: Sequence[str | list[Message]]) -> Callable[[str | list[Message]], str]:
    """How documents become text: conversations through the model's template, or as plain lines."""
    from lutra.runtime.template import ChatTemplate

    template = ChatTemplate.of(model) if model.chat_template else None

    def render(document: str | list[Message]) -> str:
        if isinstance(document, str):
            return document
        if template:
            return template.render(document, prompt=False)
        return "\n".join(message["content"] for message in document)

    try:
        list(map(render, documents))
    except LutraError as error:
        warn(f"{error}; dialogues of the calibration text are taken as plain lines")
        template = None
    return render
