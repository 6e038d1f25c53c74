# SPDX-License-Identifier: MIT
"""Which text a model computes while it is converted, and how much of it is its own."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from gguf_tools.sources.open import open_source
from lutra.conversion import corpus, own_text, pipeline
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
        count = min(tokens, affordable(0.5) if affordable else tokens) // LENGTH
        written.append(SimpleNamespace(count=count, temperatures=list(temperatures), first=first))
        return [[-1 - first - i] * LENGTH for i in range(count)]

    for module in ("own_text", "corpus", "text"):
        monkeypatch.setattr(f"lutra.conversion.{module}.piece_length", lambda _: LENGTH)
    monkeypatch.setattr(own_text, "write_on_cpu", write)
    monkeypatch.setattr(corpus.tune, "require_torch", lambda: None)
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


def are_own(pieces):
    return {piece[0] < 0 for piece in pieces}


def never(writing):
    raise AssertionError


def test_before_tuning_half_is_the_models_own(corpus_of):
    checked = []
    given, own = corpus_of(tune=True).to_calibrate(9 * LENGTH, {}, checked.append)
    assert [len(given), len(own), are_own(given), are_own(own)] == [5, 4, {False}, {True}]
    assert {len(piece) for piece in given + own} == {LENGTH}
    assert checked == [9]
    given, own = corpus_of().to_calibrate(9 * LENGTH, {}, checked.append)
    assert [len(given), are_own(given), own] == [9, {False}, []]


def test_a_single_sequence_is_not_divided(corpus_of):
    given, own = corpus_of(tune=True).to_calibrate(LENGTH, {}, lambda _: None)
    assert [len(given), are_own(given), own] == [1, {False}, []]


def test_nothing_is_written_where_memory_is_short(corpus_of):
    for calibration in (None, Path("self")):
        found = corpus_of(tune=True, calibration=calibration)
        with pytest.raises(AssertionError):
            found.to_calibrate(8 * LENGTH, {}, never)
        assert found.written == []


def test_what_is_kept_aside_is_not_calibrated_with(corpus_of):
    found = corpus_of(tune=True, type=None, target=Target.parse_bpw("3.0"))
    given, own = found.to_calibrate(8 * LENGTH, {}, lambda _: None)
    pieces, aside = found.to_measure(8 * LENGTH)
    assert [len(given), len(own), len(pieces)] == [4, 4, 8]
    assert are_own(given) == are_own(pieces) == are_own(aside) == {False}
    assert not {tuple(piece) for piece in given + pieces} & {tuple(piece) for piece in aside}


def test_a_text_of_the_users_is_all_there_is(corpus_of, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("Otters use stones to open shells. " * 400)
    found = corpus_of(tune=True, calibration=text)
    assert found.to_calibrate(8 * LENGTH, {}, lambda _: None)[1] == []
    for limit, count in ((8 * LENGTH, 8), (1, 1), (None, 5)):
        pieces, again = found.to_tune(limit, {}, lambda writing: 5 * LENGTH)
        assert [len(pieces), are_own(pieces), again] == [count, {False}, []]
    assert found.written == []


def test_own_text_alone_where_it_is_asked_for(corpus_of):
    found = corpus_of(tune=True, calibration=Path("self"))
    given, own = found.to_calibrate(8 * LENGTH, {}, lambda _: None)
    assert [given, len(own), are_own(own)] == [[], 8, {True}]
    own, again = found.to_tune(20 * LENGTH, {}, never)
    assert [len(own), are_own(own), again] == [20, {True}, []]
    assert [w.temperatures for w in found.written] == [[0.5, 1.5], [1.0]]


def test_a_tenth_of_what_is_tuned_with_comes_along(corpus_of):
    found = corpus_of(tune=True)
    found.to_calibrate(8 * LENGTH, {}, lambda _: None)
    own, again = found.to_tune(40 * LENGTH, {}, never)
    assert [len(own), len(again), are_own(own), are_own(again)] == [36, 4, {True}, {False}]
    assert [w.first for w in found.written] == [0, SEQUENCES]  # none of it was calibrated with


def test_time_decides_on_all_of_it(corpus_of):
    found = corpus_of(tune=True)
    own, again = found.to_tune(None, {}, lambda writing: int(80 * LENGTH * writing))
    assert [len(own), len(again)] == [36, 4]
    assert len(found.to_tune(60 * LENGTH, {}, never)[0]) == 54  # not what there was time for


def test_another_memory_does_not_change_how_much_is_calibrated_with(corpus_of, monkeypatch):
    limits = iter([4096, 1024])
    monkeypatch.setattr(corpus, "token_limit", lambda *_, **__: next(limits))
    assert [corpus_of(tune=True).limit(None) for _ in range(2)] == [4096, 4096]


@pytest.mark.torch
def test_torch_writes_as_the_runtime_does(tiny_chat_f16, tmp_path, monkeypatch):
    """Other words, as draws differ; as many of them, and the same for the same numbers."""
    import torch

    for module in ("own_text", "corpus"):
        monkeypatch.setattr(f"lutra.conversion.{module}.piece_length", lambda _: LENGTH)
    source = open_source(str(tiny_chat_f16))
    weights = corpus.tune.load(source, torch.device("cpu"))
    with (
        WorkDirectory(tmp_path / "out.gguf", {}) as work,
        Model(tiny_chat_f16, n_ctx=32, weights=False) as words,
    ):
        found = Corpus(work, source, ConversionOptions(type="cb2"), words, lambda: Path(tiny_chat_f16))
        texts = [found._written_by(weights, 4 * LENGTH, [1.0], first) for first in (0, 0, 4)]
    assert texts[0] == texts[1] != texts[2]
    assert [len(piece) for piece in texts[0]] == [LENGTH] * 4


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


def test_a_kept_work_directory_tells_texts_apart(corpus_of):
    """The one that comes along, given as a file, is a user's: nothing is mixed into it."""
    chosen = [
        {}, {"tune": True}, {"tune": True, "calibration": CALIBRATION_TEXT},
        {"calibration": Path("self")}, {"tune": True, "calibration": Path("self")},
    ]  # fmt: skip
    options = [ConversionOptions(type="cb2", **given) for given in chosen]
    assert [corpus.own_share(o) for o in options] == [0, 0.5, 0, 1, 1]
    source = SimpleNamespace(tensors=[], path=Path("x"), metadata={})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline.workdir, "source_files", lambda _: [])
        patch.setattr(pipeline.workdir, "software", lambda: "this")
        patch.setattr(pipeline.tune, "computed_by", lambda _: "torch")
        mixed, given = (pipeline.fingerprint(source, [], o) for o in options[1:3])
    assert mixed["calibration text"] == given["calibration text"]
    assert mixed != given
