# SPDX-License-Identifier: MIT
"""Thoughts are told from answers, however the text is cut, and only by marks of the template."""

from __future__ import annotations

from itertools import groupby

import pytest

from lutra.runtime.thinking import MARKS, Thoughts, marks

THINK = [MARKS[0]]
HARMONY = [MARKS[-1]]


def split(text, size, pairs=THINK, prompt=""):
    """(thought, answer, whether it was all thought) of ``text``, which comes in pieces of ``size``."""
    thoughts = Thoughts(pairs, prompt)
    pieces = thoughts.split(iter([text[i : i + size] for i in range(0, len(text), size)]))
    parts = {thought: "".join(t for t, _ in group) for thought, group in groupby(pieces, lambda p: p[1])}
    return parts.get(True, ""), parts.get(False, ""), thoughts.unfinished


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think>\nIs it Paris?\n</think>\n\nParis.\n", ("Is it Paris?", "Paris.\n", False)),
        ("\n<think>\n\n</think>\n\n Yes", ("", "Yes", False)),
        ("Paris. <think> is a mark.</think>", ("", "Paris. <think> is a mark.</think>", False)),
        ("<thin", ("", "<thin", False)),
        ("<thing> a </think>", ("", "<thing> a </think>", False)),
        ("<think>a < b </thin g</think>c", ("a < b </thin g", "c", False)),
        ("<think>endless", ("endless", "", True)),
        ("  indented", ("", "  indented", False)),
        ("", ("", "", False)),
    ],
)
def test_thoughts(text, expected, size):
    assert split(text, size) == expected


@pytest.mark.parametrize("size", [1, 5, 100])
def test_thoughts_that_the_prompt_begins(size):
    assert split("hm</think>ok", size, prompt="<|assistant|><think>\n") == ("hm", "ok", False)
    assert split("ok", size, prompt="<think>\n\n</think>\n\n") == ("", "ok", False)


@pytest.mark.parametrize("size", [1, 5, 100])
def test_thoughts_in_channels(size):
    start, end = HARMONY[0]
    assert split(f"{start}hm{end}ok", size, HARMONY) == ("hm", "ok", False)


def test_marks_are_those_of_the_template():
    assert marks("{{ messages }}") == THINK
    assert marks("... [THINK] ...") == [MARKS[0], ("[THINK]", "[/THINK]")]
