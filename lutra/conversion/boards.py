# SPDX-License-Identifier: MIT
"""How long a machine takes to multiply by a matrix of each type: what ``--for`` counts instead of bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

UNIT = 32  # weights that cycles are counted for


@dataclass(frozen=True)
class Board:
    """A machine that writes tokens one by one: clock, cores, and what reading weights gets of the memory.

    ``cycles``: of one core for 32 weights, by type. Modelled from kernels, and the bandwidth published:
    docs/SPEED.md and docs/BENCH.md have them, and how far they can be trusted.
    """

    name: str
    ghz: float
    cores: int
    gb_per_s: float
    cycles: Mapping[str, float] = field(repr=False)

    def seconds(self, kind: str, bpw: float, weights: float) -> float:
        """For one column through ``weights`` weights of a type: the slower of cores and memory."""
        cycles = self.cycles.get(kind)
        if cycles is None:  # as upstream's kernels of that many bits, or ours that no table has yet
            cycles = max(self.cycles.values())
        computing = weights / UNIT * cycles / (self.cores * self.ghz * 1e9)
        return max(computing, weights * bpw / 8 / (self.gb_per_s * 1e9))


# Clang's code, one column, dot products; F16 by counting: two loads per cycle.
_TYPES = ("cb2", "cb25", "cb3", "cb4", "cb5", "cb6", "q5_k", "q6_k", "q8_0", "f16")


def _modelled(name: str, ghz: float, gb_per_s: float, *cycles: float) -> Board:
    """Four cores: all of a Raspberry Pi, and what people rent of a server."""
    return Board(name, ghz, 4, gb_per_s, dict(zip(_TYPES, cycles, strict=True)))


BOARDS = {
    board.name: board
    for board in (
        _modelled("pi5", 2.4, 11.4, 2.86, 4.33, 3.97, 3.21, 4.81, 5.8, 7.1, 8.11, 2.39, 4.0),
        _modelled("graviton3", 2.6, 184.0, 2.72, 3.79, 2.81, 2.78, 4.35, 5.0, 4.06, 4.61, 2.03, 4.0),
        _modelled("graviton4", 2.8, 323.0, 1.91, 2.69, 2.01, 2.07, 2.99, 3.63, 3.73, 4.23, 1.53, 4.0),
    )
}
HERE = "here"  # this machine, measured


def board_of(name: str | None, threads: int) -> Board | None:
    """The board of this name, if one is named."""
    return BOARDS[name] if name else None
