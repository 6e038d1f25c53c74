# SPDX-License-Identifier: MIT
"""What a model thinks before it answers: the beginning of its text, between marks that its template knows."""

from __future__ import annotations

from collections.abc import Iterator

# Marks before and after a thought. Where the first is in a template, the model writes both.
MARKS = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<seed:think>", "</seed:think>"),
    ("[THINK]", "[/THINK]"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>"),
)


def marks(template: str) -> list[tuple[str, str]]:
    """Those of ``MARKS`` that a template has. <think> is so common that models write it unasked."""
    return [pair for pair in MARKS if pair[0] in template or pair is MARKS[0]]


class Thoughts:
    """Tells the thought from the answer after it, in a text that comes piece by piece.

    ``pairs`` are the marks that may be there. The text goes on after ``prompt``, which may end with a mark.
    """

    def __init__(self, pairs: list[tuple[str, str]], prompt: str = "") -> None:
        self._pairs = pairs
        self._end = next((end for start, end in pairs if prompt.rstrip().endswith(start)), "")
        self._text = ""  # that is not out yet
        self._decided = bool(self._end)  # whether the text begins with a thought
        self._fresh = True  # no letter of the thought or of the answer after it is out

    @property
    def unfinished(self) -> bool:
        """Whether the text has ended within the thought."""
        return bool(self._end)

    def split(self, pieces: Iterator[str]) -> Iterator[tuple[str, bool]]:
        """The text in pieces, each with whether it is thought. Marks, and space beside them, are left out."""
        for piece in pieces:
            self._text += piece
            if not self._decided:
                self._begin()
            if self._decided:
                yield from self._pass_on()
        if self._text:
            yield self._text, self.unfinished

    def _begin(self) -> None:
        """Look whether the text begins with a mark, once there is enough of it."""
        text = self._text.lstrip()
        for start, end in self._pairs:
            if text.startswith(start):
                self._end, self._text, self._decided = end, text[len(start) :], True
                return
        if text and not any(start.startswith(text) for start, _ in self._pairs):
            self._decided, self._fresh = True, False

    def _pass_on(self) -> Iterator[tuple[str, bool]]:
        if self._end:
            thought, mark, rest = self._text.partition(self._end)
            if not mark:  # the end of the text may be the beginning of the mark, or space before it
                kept = next(
                    (n for n in range(len(self._end) - 1, 0, -1) if thought.endswith(self._end[:n])), 0
                )
                thought = thought[: len(thought) - kept].rstrip()
                rest = self._text[len(thought) :]
            yield from self._fresh_part(thought.rstrip(), True)
            self._text = rest
            if not mark:
                return
            self._end, self._fresh = "", True
        yield from self._fresh_part(self._text, False)
        self._text = ""

    def _fresh_part(self, text: str, is_thought: bool) -> Iterator[tuple[str, bool]]:
        text = text.lstrip() if self._fresh else text
        if text:
            self._fresh = False
            yield text, is_thought
