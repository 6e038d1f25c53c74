# SPDX-License-Identifier: MIT
"""The layout algebra: what it builds, and that it refuses every layout that is not one to one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from gguf_tools.formats import strip
from gguf_tools.formats.layout import BIT, Field, Layout, Mode, join

BYTES = Layout((Field("x", (Mode(BIT, 8, 1, 1), Mode("i", 3, 1, 8))),))  # 3 bytes in order
BITS = range(1, 7)
SHAPES = [(bits, pair, sb) for bits in BITS for pair in (1, 2) for sb in (64, 256)]


def layouts() -> dict[str, Layout]:
    """Every layout of the family, from a period of codes to a strip."""
    found = {f"codes of {bits} bits": strip.codes(bits) for bits in BITS}
    for bits in BITS:
        for pair in (1, 2):
            found[f"chunk {bits} {pair}"] = strip.chunk(bits, pair)
            found[f"block {bits} {pair}"] = strip.block(bits, pair, 128)
            found[f"strip {bits} {pair}"] = strip.strip(bits, pair, 64, 2)
    return found


LAYOUTS = layouts()


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("number", ["stride", "step"])
def test_every_mutation_of_one_stride_or_step_is_refused(name: str, number: str) -> None:
    fields = LAYOUTS[name].fields
    for f, field in enumerate(fields):
        for m, mode in enumerate(field.modes):
            for change in (-8, -1, 1, 8):
                mutant = replace(mode, **{number: getattr(mode, number) + change})
                modes = (*field.modes[:m], mutant, *field.modes[m + 1 :])
                with pytest.raises(ValueError, match=r"shared|unused|missed|twice|negative|before"):
                    Layout((*fields[:f], replace(field, modes=modes), *fields[f + 1 :]))


@pytest.mark.parametrize("bits", BITS)
def test_a_field_that_is_moved_or_doubled_is_refused(bits: int) -> None:
    fields = strip.codes(bits).fields
    for i, field in enumerate(fields):
        rest = (*fields[:i], *fields[i + 1 :])
        for wrong in (
            (replace(field, start=field.start + 1),),
            (replace(field, at=(("lane", 1),)),),
            (field, field),
        ):
            with pytest.raises(ValueError, match=r"shared|unused|missed|twice"):
                Layout((*rest, *wrong))


def test_refusals_name_the_place() -> None:
    bit, i = Mode(BIT, 8, 1, 1), Mode("i", 3, 1, 8)
    for modes, message in (
        ((bit, replace(i, stride=7)), "bit 7 is shared"),
        ((bit, replace(i, stride=9)), "bit 8 is unused"),
        ((bit, replace(i, step=2)), "x: bit 0 i 1 is missed"),
        ((bit, Mode("i", 3, 0, 8)), "x: bit 0 i 0 is given twice"),
        ((bit, replace(i, stride=-8)), "bit -16 lies before the first"),
        ((bit, replace(i, step=-1)), "x: an index is negative"),
        ((bit, replace(i, extent=1)), "an extent of 1 is no mode"),
    ):
        with pytest.raises(ValueError, match=message):
            Layout((Field("x", modes),))


def test_join_and_repeat() -> None:
    twice = BYTES.repeat(2, "i")
    assert (twice.bytes, twice.shape("x")) == (6, {"bit": 8, "i": 6})
    other = Layout((Field("y", (Mode(BIT, 4, 1, 1), Mode("j", 2, 1, 4))),))
    joined = join(BYTES, other)
    assert (joined.bytes, joined.parts) == (4, ("x", "y"))
    data = np.arange(8, dtype=np.uint8).reshape(2, 4) + 0x70
    assert joined.read("x", data, ("i",)).tolist() == data[:, :3].tolist()
    assert joined.read("y", data, ("j",)).tolist() == [[3, 7], [7, 7]]
    rows = joined.repeat(2, {"x": "row", "y": "row"})
    assert rows.read("y", data.reshape(1, 8), ("row", "j")).tolist() == [[[3, 7], [7, 7]]]
    with pytest.raises(ValueError, match=r"bit 4 is unused|bit 0 is shared|missed|twice"):
        join(BYTES, BYTES)  # two parts of one name give their indices twice
    with pytest.raises(ValueError, match="y has the axes bit, j, not only i"):
        joined.read("y", data, ("i",))


def test_renumber() -> None:
    six = Layout((Field("x", (Mode("lane", 6, 1, 1),)),))
    grid = six.renumber("lane", (("column", 2, 1), ("row", 3, 1)))
    assert grid.shape("x") == {"column": 2, "row": 3}
    assert grid.read("x", np.array([[0b110100]], np.uint8), ("row", "column")).tolist() == [
        [[0, 0], [1, 0], [1, 1]]
    ]
    with pytest.raises(ValueError, match="does not split"):
        six.renumber("lane", (("column", 4, 1), ("row", 2, 1)))
    with pytest.raises(ValueError, match="does not split"):
        six.renumber("lane", (("column", 2, 1), ("row", 2, 1)))


@pytest.mark.parametrize(("bits", "pair", "sb"), SHAPES)
def test_write_and_read_undo_each_other(bits: int, pair: int, sb: int) -> None:
    """On random bytes: every bit of a super-block belongs to a part."""
    layout = strip.block(bits, pair, sb)
    data = np.random.default_rng(0).integers(0, 256, (3, layout.bytes), np.uint8)
    again = np.zeros_like(data)
    for part, axes in (
        ("d", ("row",)),
        ("selector", ("row", "group")),
        ("code", ("row", "group", "position")),
    ):
        layout.write(part, again, axes, layout.read(part, data, axes))
    assert np.array_equal(again, data)


def test_a_strip_is_its_blocks() -> None:
    data = np.random.default_rng(0).integers(0, 256, (1, 3 * strip.block(3, 1, 64).bytes), np.uint8)
    whole = strip.strip(3, 1, 64, 3).read("code", data, ("row", "group", "position"))
    each = strip.block(3, 1, 64).read("code", data.reshape(3, -1), ("row", "group", "position"))
    assert np.array_equal(whole, np.concatenate(list(each), axis=1)[None])
    d = strip.strip(3, 1, 64, 3).read("d", data, ("row", "block"))
    assert np.array_equal(d[0], data.reshape(3, -1)[:, :16].copy().view("<u2").T)


def test_lane_owners_need_bits_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ["".join(map(str, reversed(owners))) for owners in strip.lane_owners(3)] == [
        "11170006",
        "33732262",
        "57554644",
    ]
    lane, position = Mode("lane", 2, 1, 4), Mode("position", 16, 1, 8)
    swapped = Layout(
        tuple(
            Field("code", (Mode(BIT, 2, 1, 1), lane, position), start, ((BIT, bit),))
            for start, bit in ((0, 2), (2, 0))
        )
    )
    monkeypatch.setattr(strip, "codes", lambda bits: swapped)
    with pytest.raises(ValueError, match="lane vector 0 does not have its bits in order"):
        strip.lane_owners(4)


def test_unknown_members_are_refused() -> None:
    with pytest.raises(ValueError, match="no layout for codes of 7 bits"):
        strip.codes(7)
    with pytest.raises(ValueError, match="1 or 2 weights, not 3"):
        strip.chunk(4, 3)
    with pytest.raises(ValueError, match="a multiple of 64 weights, not 32"):
        strip.block(4, 1, 32)
