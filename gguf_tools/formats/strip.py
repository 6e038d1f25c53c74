# SPDX-License-Identifier: MIT
"""The layout of the CB family, for every number of bits per code and weights per code.

Parts and their axes, from the smallest unit to the whole rows of eight (``layout`` has the algebra):

    code      row, group, position, bit    position: the code of the group, 0 to 32 / pair - 1
    selector  row, group, bit              group: of the row's 32 weights
    d         row, block, bit              block: the super-block of the row; fp16 as 16 bits
"""

from __future__ import annotations

from functools import cache

from gguf_tools.formats.family import CHUNK, GROUP, LANE, ROWS
from gguf_tools.formats.layout import BIT, Field, Layout, Mode, join

BITS = range(1, 7)  # bits per code that there is a layout for
VECTOR = 8 * LANE  # bits of a vector: byte j has bits of code j of several lane vectors
LAST = {"code": "group", "selector": "group", "d": "block"}  # the axis along which rows go on


def _lanes(start: int, modes: tuple[Mode, ...], lane: int = 0, bit: int = 0) -> Field:
    at = tuple((axis, first) for axis, first in (("lane", lane), (BIT, bit)) if first)
    return Field("code", (*modes, Mode("position", LANE, 1, 8)), start, at)


@cache
def codes(bits: int) -> Layout:
    """One period: how lane vectors of 16 codes share vectors of 16 bytes (axes lane, position, bit)."""
    fields = {
        1: (_lanes(0, (Mode("lane", 8, 1, 1),)),),
        2: (_lanes(0, (Mode(BIT, 2, 1, 1), Mode("lane", 4, 1, 2))),),
        # Vector i donates bit i of its nibbles to lanes 6 and 7. A nibble of vector i has two or three
        # bits of its own lane above and below that bit, so it indexes a table of 16 as it is.
        3: (
            _lanes(1, (Mode(BIT, 3, 1, 1), Mode("lane", 2, 1, 4))),
            _lanes(VECTOR, (Mode("lane", 2, 1, 4),), lane=2),
            _lanes(VECTOR + 2, (Mode(BIT, 2, 1, 1), Mode("lane", 2, 1, 4)), lane=2, bit=1),
            _lanes(2 * VECTOR, (Mode(BIT, 2, 1, 1), Mode("lane", 2, 1, 4)), lane=4),
            _lanes(2 * VECTOR + 3, (Mode("lane", 2, 1, 4),), lane=4, bit=2),
            _lanes(0, (Mode(BIT, 3, 1, VECTOR + 1), Mode("lane", 2, 1, 4)), lane=6),
        ),
        4: (_lanes(0, (Mode(BIT, 4, 1, 1), Mode("lane", 2, 1, 4))),),
        # Four bits as above; the fifth ones, and the last two of six, share a vector.
        5: (
            _lanes(0, (Mode(BIT, 4, 1, 1), Mode("lane", 2, 1, 4), Mode("lane", 4, 2, VECTOR))),
            _lanes(4 * VECTOR, (Mode("lane", 8, 1, 1),), bit=4),
        ),
        6: (
            _lanes(0, (Mode(BIT, 4, 1, 1), Mode("lane", 2, 1, 4), Mode("lane", 2, 2, VECTOR))),
            _lanes(2 * VECTOR, (Mode(BIT, 2, 1, 1), Mode("lane", 2, 1, 4), Mode("lane", 2, 2, 2)), bit=4),
        ),
    }
    if bits not in fields:
        raise ValueError(f"no layout for codes of {bits} bits; there are {BITS[0]} to {BITS[-1]}")
    return Layout(fields[bits])


def lane_order(pair: int) -> tuple[tuple[str, int, int], ...]:
    """How lane vectors of a chunk are numbered: the half of a group (codes 16 apart), group, row."""
    halves = (("position", 2, LANE),) if pair == 1 else ()
    return (*halves, ("group", CHUNK // GROUP, 1), ("row", ROWS, 1))


def lane_owners(bits: int) -> list[list[int]]:
    """The lane vector that owns bit 0 to 7 of each vector's bytes. ``ValueError`` unless a lane's bits,
    met vector by vector from bit 0 up, are its codes' bits from 0 up (the C reference relies on it).
    """
    layout = codes(bits)
    owners = [[0] * 8 for _ in range(layout.bits // VECTOR)]
    met: dict[int, list[tuple[int, int]]] = {}
    for field in layout.fields:
        places, index = field.places()
        lanes, of_code = (index.get(axis, 0 * places) for axis in ("lane", BIT))
        for place, lane, bit in zip(places.tolist(), lanes.tolist(), of_code.tolist(), strict=True):
            if place % VECTOR < 8:  # byte 0 stands for all 16
                owners[place // VECTOR][place % VECTOR] = lane
                met.setdefault(lane, []).append((place, bit))
    for lane, pairs in met.items():
        if [bit for _, bit in sorted(pairs)] != list(range(bits)):
            raise ValueError(f"{bits} bits: lane vector {lane} does not have its bits in order")
    return owners


@cache
def code_chunk(bits: int, pair: int) -> Layout:
    """The codes of 64 weights of 8 rows."""
    if pair not in (1, 2):
        raise ValueError(f"a code stands for 1 or 2 weights, not {pair}")
    period = codes(bits)
    lanes = ROWS * CHUNK // pair // LANE
    all_codes = period.repeat(lanes // period.shape("code")["lane"], "lane")
    return all_codes.renumber("lane", lane_order(pair))


@cache
def chunk(bits: int, pair: int) -> Layout:
    """64 weights of 8 rows: 16 selectors, then the codes."""
    selectors = Field("selector", (Mode(BIT, 8, 1, 1), Mode("group", 2, 1, 8), Mode("row", ROWS, 1, 16)))
    return join(Layout((selectors,)), code_chunk(bits, pair))


@cache
def block(bits: int, pair: int, sb: int) -> Layout:
    """A strip-super-block: d of 8 rows, then the chunks of ``sb`` weights."""
    if sb <= 0 or sb % CHUNK:
        raise ValueError(f"a super-block is a multiple of {CHUNK} weights, not {sb}")
    d = Field("d", (Mode(BIT, 8, 1, 1), Mode(BIT, 2, 8, 8), Mode("row", ROWS, 1, 16)))
    return join(Layout((d,)), chunk(bits, pair).repeat(sb // CHUNK, "group"))


@cache
def second(bits: int, pair: int, weights: int) -> Layout:
    """The second layer's codes of ``weights`` weights of 8 rows, a multiple of 64."""
    return code_chunk(bits, pair).repeat(weights // CHUNK, "group")


def strip(bits: int, pair: int, sb: int, blocks: int) -> Layout:
    """8 rows of ``blocks`` super-blocks each."""
    return block(bits, pair, sb).repeat(blocks, LAST)
