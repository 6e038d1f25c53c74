# SPDX-License-Identifier: MIT
"""Settings of the sampling, a file's recommendations, and answers that only repeat themselves."""

from __future__ import annotations

import dataclasses

import pytest

from gguf_tools.errors import LutraError
from lutra.runtime.sampling import Loop, Sampling


def test_a_file_recommends():
    keys = {
        "temp": "0.600000",
        "top_k": "20",
        "penalty_repeat": "1.050000",
        "min_p": "nonsense",
        "top_p": "7",
    }
    usual = Sampling(temp=0)
    chosen = Sampling.of_file(lambda key: keys.get(key.removeprefix("general.sampling.")), usual)
    assert chosen == Sampling(temp=0.6, top_k=20, repeat_penalty=1.05)
    assert Sampling.of_file(lambda _: None, usual) == usual


@pytest.mark.parametrize(
    ("values", "fragment"),
    [
        ({"temp": "hot"}, "temp is a number, not 'hot'"),
        ({"temp": "-1"}, "temp is -1; give a number from 0"),
        ({"temp": "nan"}, "temp is nan"),
        ({"top_p": "1.5"}, "from 0 to 1"),
        ({"top_k": "2.5"}, "whole number"),
        ({"top_k": str(2**31)}, "top_k is"),
        ({"heat": "1"}, "no setting 'heat'; there are temp, top_k"),
    ],
)
def test_settings_that_make_no_sense(values, fragment):
    with pytest.raises(LutraError, match=fragment):
        Sampling().with_texts(values)


def test_every_setting_can_be_given_as_it_is_shown():
    usual = Sampling()
    assert (
        usual.with_texts({name: f"{value:g}" for name, value in dataclasses.asdict(usual).items()}) == usual
    )


def ended(tokens, length=200):
    """After how many tokens an answer is ended, and its period."""
    loop = Loop(length)
    return next(((i + 1, loop.period) for i, token in enumerate(tokens) if loop.goes_on(token)), None)


def test_an_answer_that_repeats_itself_is_noticed():
    story = list(range(300))
    assert ended(story * 1) is None
    assert ended([*story, *[7] * 300]) == (500, 1)
    assert ended([*story, *[1, 2, 3] * 100]) == (500, 3)
    assert ended([*story, *range(1000, 1100)] + list(range(1000, 1100)) * 9) == (700, 100)  # four times
    assert ended([7] * 300, length=0) is None
    assert ended([*[7] * 199, *story, *[7] * 199]) is None
    numbered = [token for i in range(100) for token in (5, 1000 + i, 6, 7)]  # a list
    assert ended(numbered) is None
