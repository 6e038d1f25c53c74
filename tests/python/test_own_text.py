# SPDX-License-Identifier: MIT
"""Text that a model writes itself: the same for any number of threads, begun in all the ways there are."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from gguf_tools.reader import GGUFFile
from lutra.conversion import corpus, own_text, pipeline
from lutra.conversion.options import OPTIONS_KEY, ConversionOptions
from lutra.conversion.workdir import WorkDirectory
from lutra.runtime.model import Model
from lutra.runtime.sample import Sampling, _draw

END = 99


class Vocabulary:
    """In place of a model: one token ends a text."""

    def ends(self, token: int) -> bool:
        return token == END


def written(writer, model_says, n):
    """The first ``n`` tokens if the model always continues with ``model_says``, one after the other."""
    tokens = [next(writer)]
    for said in itertools.islice(itertools.cycle(model_says), n - 1):
        tokens.append(writer.send(said))
    return tokens


def test_a_text_goes_on_behind_its_end():
    writer = own_text.writer(iter([[[1, 2]]]), Vocabulary())
    assert written(writer, [5, END], 6) == [1, 2, END, 5, END, 5]


def test_a_dialogue_has_what_its_template_gives():
    """The model's own end of a turn gives way to the template's, and the answer's end begins anew."""
    dialogue = [[1], [10, 11], [20, 21]]
    writer = own_text.writer(itertools.repeat(dialogue), Vocabulary())
    says = [5, 6, END, 0, 7, END, 0, 8, END, 0]
    assert written(writer, says, 11) == [1, 5, 6, 10, 11, 7, 20, 21, 8, END, 1]


def test_content_needs_something_that_it_can_follow():
    """A template that begins with it, of a vocabulary without BOS, leaves the model nothing to go on from."""

    class Model(Vocabulary):
        template = SimpleNamespace(render=lambda messages: messages[0]["content"] + "?")

        def tokenize(self, text: str) -> list[int]:
            return list(text.encode())

    assert list(own_text.dialogues(Model())) == []
    Model.template = SimpleNamespace(render=lambda messages: "Q" + messages[0]["content"] + "?")
    assert list(own_text.dialogues(Model())) == [[[ord("Q")], [ord("?")]]]


@pytest.mark.parametrize(("affordable", "count"), [(100, 10), (45, 4), (9, 0)])
def test_time_may_decide_how_much_is_written(monkeypatch, affordable, count):
    class Writes:
        def write(self, writers, temperatures, seed, show):
            return [[seed]] * len(writers)

    monkeypatch.setattr(own_text, "piece_length", lambda _: 10)
    monkeypatch.setattr(own_text, "Beginnings", lambda _: SimpleNamespace(endless=lambda *_: iter([])))
    asked = []

    def told(seconds):
        asked.append(seconds)
        return affordable

    pieces = own_text.write_pieces(Writes(), None, 1000, seed=0, at_once=3, affordable=told)
    assert len(pieces) == count
    assert len(asked) == 1
    assert asked[0] > 0


def test_a_turn_without_an_end_is_cut(monkeypatch):
    monkeypatch.setattr(own_text, "TURN", 3)
    writer = own_text.writer(itertools.repeat([[1], [10]]), Vocabulary())
    assert written(writer, [5], 6) == [1, 5, 5, 5, 10, 5]


def test_a_token_is_drawn_as_often_as_it_is_likely():
    p = np.array([0.5, 0.0, 0.3, 0.2])
    logits = np.tile(np.log(p + 1e-30), (10000, 1)).astype(np.float32)
    drawn = _draw(logits, np.linspace(0, 1, 10000, endpoint=False))
    np.testing.assert_allclose(np.bincount(drawn, minlength=4) / 10000, p, atol=1e-3)
    edges = _draw(logits[:2], np.array([0.0, np.nextafter(1, 0)]))
    assert edges.tolist() == [0, 3]


def test_dialogues_follow_the_template(tiny_chat_f16):
    with Model(tiny_chat_f16, n_ctx=32, weights=False) as model:
        user, both = own_text.dialogues(model)
        text = [b"".join(model.piece(t, special=True) for t in part).decode() for part in both]
        assert len(user) == 2
        assert text[0].startswith(model.special_token("bos"))
        assert "system" in text[0]
        assert "user" in text[1]
        assert "assistant" in text[2]
        bos = model.tokenize("")
        assert all(part[:1] != bos for part in both[1:])


def test_the_same_for_any_number_of_threads_and_another_for_another_seed(tiny_chat_f16, monkeypatch):
    monkeypatch.setattr(own_text, "piece_length", lambda _: 48)
    with Model(tiny_chat_f16, n_ctx=32, weights=False) as model:
        texts = []
        for threads, seed in ((1, 0), (2, 0), (1, 1)):
            sampling = Sampling(tiny_chat_f16, length=48, at_once=4, threads=threads, advice="")
            with sampling:
                texts.append(own_text.write_pieces(sampling, model, 6 * 48, seed=seed, at_once=4))
        assert [len(piece) for piece in texts[0]] == [48] * 6
        assert texts[0] == texts[1] != texts[2]
        assert len({tuple(piece) for piece in texts[0]}) == 6
        assert all(0 <= token < model.n_vocab for piece in texts[0] for token in piece)


def test_a_conversion_with_it_says_so(tiny_chat_f16, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(corpus, "token_limit", lambda *_, **__: 512)
    files = []
    for calibration in ("self", "default"):
        options = ConversionOptions(
            type="f16", tensor_types=["blk.7.attn_v=cb2"], calibration=Path(calibration), threads=1
        )
        files.append(tmp_path / f"{calibration}.gguf")
        pipeline.convert(tiny_chat_f16, options, files[-1])
    assert "calibrating with 512 tokens that the model wrote" in capsys.readouterr().err
    with GGUFFile(files[0]) as own, GGUFFile(files[1]) as other:
        assert "--calibration self" in own.metadata[OPTIONS_KEY].value
        name = "blk.7.attn_v.weight"
        assert not np.array_equal(own.data(own.tensors[name]), other.data(other.tensors[name]))


def test_a_kept_text_is_whole_and_another_name_is_another_text(tmp_path):
    texts = iter([[[1, 2]], [[3, 4]]])
    with WorkDirectory(tmp_path / "out.gguf", {}) as work:
        assert work.tokens_of("a", lambda: next(texts)) == [[1, 2]]
        assert work.tokens_of("a", lambda: next(texts)) == [[1, 2]]
        assert work.tokens_of("b", lambda: next(texts)) == [[3, 4]]
        for damaged in (b"", b"PK\x03\x04"):
            (work.path / "b.npz").write_bytes(damaged)
            assert work.tokens_of("b", lambda: [[6]]) == [[6]]
        assert [work.number("n", lambda n=n: n) for n in (7, 8)] == [7, 7]
        (work.path / "n.number").write_bytes(b"")
        assert work.number("n", lambda: 9) == 9
        with pytest.raises(KeyboardInterrupt):
            work.tokens_of("c", interrupted)
        assert work.tokens_of("c", lambda: [[5]]) == [[5]]


def interrupted():
    raise KeyboardInterrupt
