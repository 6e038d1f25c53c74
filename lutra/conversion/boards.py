# SPDX-License-Identifier: MIT
"""How long a machine takes to multiply by a weight of each type: what ``--for`` counts instead of bytes.

Modelled machines have cycles from kernels and published bandwidths: docs/SPEED.md and docs/BENCH.md say how
far these can be trusted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from gguf_tools.formats.catalog import TYPES

UNIT = 32  # weights that cycles are counted for
HERE = "here"  # this machine, measured: ``lutra.conversion.here``


@dataclass(frozen=True)
class Board:
    """A machine that writes tokens one by one: seconds per weight by type, and per byte that is read."""

    name: str
    per_weight: Mapping[str, float] = field(repr=False)
    per_byte: float


# Clang's code, one column, dot products; F16 by counting: two loads per cycle.
CYCLES = ("cb2", "cb25", "cb3", "cb4", "cb5", "cb6", "q5_k", "q6_k", "q8_0", "f16")


def modelled(name: str, ghz: float, gb_per_s: float, *cycles: float) -> Board:
    """Four cores: all of a Raspberry Pi, and what people rent of a server. ``cycles`` as in ``CYCLES``.

    A weight takes the longer of what the cores compute and the memory reads. Other types are taken to be as
    slow as the slowest of these.
    """
    known = dict(zip(CYCLES, cycles, strict=True))
    per_cycle, per_byte = 1 / (4 * ghz * 1e9), 1 / (gb_per_s * 1e9)
    per_weight = {
        kind.name: max(known.get(kind.name, max(cycles)) / UNIT * per_cycle, kind.bpw / 8 * per_byte)
        for kind in TYPES.values()
    }
    return Board(name, per_weight, per_byte)


BOARDS = {
    board.name: board
    for board in (
        modelled("pi5", 2.4, 11.4, 2.86, 4.2, 3.97, 3.21, 4.82, 5.8, 7.1, 8.11, 2.39, 4.0),
        modelled("graviton3", 2.6, 184.0, 2.72, 3.66, 2.81, 2.78, 4.16, 5.0, 4.06, 4.61, 2.03, 4.0),
        modelled("graviton4", 2.8, 323.0, 1.91, 2.64, 2.01, 2.07, 3.0, 3.63, 3.73, 4.23, 1.53, 4.0),
    )
}
