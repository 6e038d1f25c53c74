# SPDX-License-Identifier: MIT
"""Which text a model computes while it is converted, and how much of it is its own."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from lutra.conversion import corpus, own_text
from lutra.conversion.calibrate import SEQUENCES
from lutra.conversion.corpus import Corpus
from lutra.conversion.options import ConversionOptions, Target
from lutra.conversion.text import CALIBRATION_TEXT, read_pieces
from lutra.conversion.workdir import WorkDirectory
from lutra.runtime.model import Model

LENGTH = 48


@pytest.fixture
def corpus_of(tiny_chat_f16, tmp_path, monkeypatch):
    """A corpus in the words of tiny-chat, for some options; ``written`` has what the model was asked for."""
    written = []

    def write(path, tokenizer, tokens, *, temperatures, first=0, affordable=None, **_):
        count = (affordable(0.5) if affordable else tokens) // LENGTH
        written.append(SimpleNamespace(count=count, temperatures=list(temperatures), first=first))
        return [[-1 - first - i] * LENGTH for i in range(count)]

    for module in ("own_text", "corpus", "text"):
        monkeypatch.setattr(f"lutra.conversion.{module}.piece_length", lambda _: LENGTH)
    monkeypatch.setattr(own_text, "write_on_cpu", write)
    monkeypatch.setattr(corpus.tune, "device_of", lambda _: SimpleNamespace(type="cpu"))
    with (
        WorkDirectory(tmp_path / "out.gguf", {}) as work,
        Model(tiny_chat_f16, n_ctx=32, weights=False) as words,
    ):

        def of(**options):
            found = Corpus(
                work, None, ConversionOptions(**{"type": "cb2"} | options), words, lambda: tiny_chat_f16
            )
            found.written = written
            return found

        yield of


def own(pieces):
    return [piece for piece in pieces if piece[0] < 0]


def test_before_tuning_half_is_the_models_own(corpus_of):
    pieces, aside = corpus_of(tune=True).to_calibrate(9 * LENGTH)
    assert [len(pieces), len(own(pieces)), aside] == [9, 4, []]
    assert all(len(piece) == LENGTH for piece in pieces)
    plain, _ = corpus_of().to_calibrate(9 * LENGTH)
    assert [len(plain), own(plain)] == [9, []]


def test_a_single_sequence_is_not_divided(corpus_of):
    pieces, _ = corpus_of(tune=True).to_calibrate(LENGTH)
    assert [len(pieces), own(pieces)] == [1, []]


def test_what_is_kept_aside_is_not_calibrated_with(corpus_of):
    found = corpus_of(tune=True, type=None, target=Target.parse_bpw("3.0"))
    pieces, aside = found.to_calibrate(8 * LENGTH)
    assert [len(pieces), len(own(pieces)), own(aside)] == [8, 4, []]
    assert aside
    assert not {tuple(piece) for piece in pieces} & {tuple(piece) for piece in aside}


def test_a_text_of_the_users_is_all_there_is(corpus_of, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("Otters use stones to open shells. " * 400)
    found = corpus_of(tune=True, calibration=text)
    assert own(found.to_calibrate(8 * LENGTH)[0]) == []
    pieces, known = found.to_tune(8 * LENGTH, {}, None)
    assert [len(pieces), own(pieces), known] == [8, [], []]
    assert found.written == []


def test_own_text_alone_where_it_is_asked_for(corpus_of):
    found = corpus_of(tune=True, calibration=Path("self"))
    assert len(own(found.to_calibrate(8 * LENGTH)[0])) == 8
    pieces, known = found.to_tune(20 * LENGTH, {}, None)
    assert [len(own(pieces)), known] == [20, []]
    assert [w.temperatures for w in found.written] == [[0.5, 1.5], [1.0]]


def test_a_tenth_of_what_is_tuned_with_comes_along(corpus_of):
    found = corpus_of(tune=True)
    found.to_calibrate(8 * LENGTH)
    pieces, known = found.to_tune(40 * LENGTH, {}, None)
    assert [len(own(pieces)), len(known), own(known)] == [36, 4, []]
    assert [w.first for w in found.written] == [0, SEQUENCES]  # none of it was calibrated with


def test_time_decides_on_all_of_it(corpus_of):
    pieces, known = corpus_of(tune=True).to_tune(1 << 20, {}, lambda writing: int(80 * LENGTH * writing))
    assert [len(pieces), len(known)] == [36, 4]


def test_a_text_may_be_read_more_than_once(corpus_of, tiny_chat_f16):
    with Model(tiny_chat_f16, n_ctx=32, weights=False) as words:
        once = read_pieces(CALIBRATION_TEXT, words, 1 << 30)
        more = read_pieces(CALIBRATION_TEXT, words, 3 * len(once) * LENGTH, overlapping=True)
    assert len(more) == 3 * len(once)
    assert more[0] == once[0]
    assert more[-1] == once[-1]
    assert len({tuple(piece) for piece in more}) > 2 * len(once)


def test_sequences_of_other_numbers_are_others(tiny_chat_f16, monkeypatch):
    from lutra.runtime.sample import Sampling

    monkeypatch.setattr(own_text, "piece_length", lambda _: LENGTH)
    with Model(tiny_chat_f16, n_ctx=32, weights=False) as words:
        texts = []
        for first in (0, 4):
            with Sampling(tiny_chat_f16, length=LENGTH, at_once=4, threads=1, advice="") as sampling:
                texts.append(
                    own_text.write_pieces(sampling, words, 4 * LENGTH, seed=0, at_once=4, first=first)
                )
    assert not {tuple(piece) for piece in texts[0]} & {tuple(piece) for piece in texts[1]}
