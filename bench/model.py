# SPDX-License-Identifier: MIT
"""Cycles of an exact trace on Arm cores, from llvm-mca's scheduling models."""

from __future__ import annotations

import re
import subprocess
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from .programs import BenchError
from .trace import classify, llvm

I8MM = ("neon_dotprod", "neon_i8mm")


@dataclass(frozen=True)
class Core:
    """A core that llvm-mca models, and the instruction sets that it can run and has a use for."""

    mcpu: str
    dispatch: int | None  # instructions per cycle that enter the core, None: as the model has it
    sets: tuple[str, ...]

    def arguments(self) -> list[str]:
        """For llvm-mca."""
        width = [f"-dispatch={self.dispatch}"] if self.dispatch else []
        return [f"-mcpu={self.mcpu}", *width]


# n1 is the Cortex-A76's core too: llvm has no model of the A76 (its -mcpu=cortex-a76 is an A57).
CORES = {
    "a55": Core("cortex-a55", None, ("neon", "neon_dotprod")),
    "a72": Core("cortex-a72", None, ("neon",)),
    "n1": Core("neoverse-n1", 4, ("neon", "neon_dotprod")),
    "v1": Core("neoverse-v1", 5, (*I8MM, "sve256")),  # the only one with SVE registers of 256 bits
    "n2": Core("neoverse-n2", None, I8MM),
    "v2": Core("neoverse-v2", None, I8MM),
    "v3": Core("neoverse-v3", None, I8MM),
}
DOTS = ("dot", "mmla")
PIECES, PIECE = 100, 100  # of a longer trace, evenly spaced pieces of that many instructions are modelled
ADDRESS = re.compile(r"(?:#)?0x[0-9a-f]+ <[^>]*>$")
SKIPPED = re.compile(r"svc|udf|<unknown>|hint|bti|[pa]aci|auti|mrs")


@dataclass(frozen=True)
class Result:
    """What the model says about a trace on one core."""

    cycles: float
    dot_share: float  # of the issue slots for dot and matrix instructions, those used
    busiest: str  # the kind of execution unit with the most work
    busiest_share: float  # of the cycles in which it works


def sample(words: Sequence[int]) -> list[Sequence[int]]:
    """The whole trace when it is short, else evenly spaced pieces of it."""
    if len(words) <= PIECES * PIECE:
        return [words]
    starts = ((len(words) - PIECE) * i // (PIECES - 1) for i in range(PIECES))
    return [words[start : start + PIECE] for start in starts]


def assembly(piece: Sequence[int], text: dict[int, str]) -> list[str]:
    """Instructions as straight-line code: branches go nowhere, system instructions are left out."""
    usable = {word: ADDRESS.sub(".Lnowhere", line) for word, line in text.items() if not SKIPPED.match(line)}
    lines = [usable[word] for word in piece if word in usable]
    if lines and lines[-1].startswith("movprfx"):  # must not stand before what the next piece begins with
        lines.pop()
    return lines


def mca(core: Core, lines: list[str], *options: str) -> str:
    """The output of llvm-mca."""
    command = [llvm("llvm-mca"), "-mtriple=aarch64", "-mattr=+all", "-iterations=1", "-call-latency=1"]
    command += ["-skip-unsupported-instructions=lack-sched", *core.arguments(), *options]
    source = "\n".join([".Lnowhere:", *lines, ""])
    result = subprocess.run(command, input=source, capture_output=True, text=True)
    if result.returncode:
        raise BenchError(f"{' '.join(command)}\n{result.stderr[:500]}")
    return result.stdout


def parse_summary(output: str) -> tuple[int, str, float]:
    """Cycles, the busiest resource and its busy cycles, from llvm-mca's summary and pressure views."""
    cycles = re.search(r"^Total Cycles:\s+(\d+)$", output, re.MULTILINE)
    header = re.search(r"^Resource pressure per iteration:\n.*\n(.*)$", output, re.MULTILINE)
    names = re.findall(r"^\[[\d.]+\]\s+- (\S+)$", output, re.MULTILINE)
    if not cycles or not header:
        raise BenchError("llvm-mca printed neither cycles nor resource pressure")
    units = defaultdict(list)  # a resource may be several units
    for name, cell in zip(names, header[1].split(), strict=True):
        units[name].append(0.0 if cell == "-" else float(cell))
    pressure = {name: max(cells) for name, cells in units.items()}
    busiest = max(pressure, key=lambda name: pressure[name])
    return int(cycles[1]), busiest, pressure[busiest]


@cache
def slot(core: Core, instruction: str) -> float:
    """Cycles that one instruction takes of all the units it can run on: 0.25 where there are four."""
    output = mca(core, [instruction], "-instruction-info", "-resource-pressure=0", "-summary-view=0")
    row = re.search(r"^\s*\d+\s+\d+\s+([\d.]+)\s", output.partition("[6]:")[2], re.MULTILINE)
    if not row:
        raise BenchError(f"llvm-mca knows no throughput of {instruction!r}")
    return float(row[1])


def model(core: Core, trace: Sequence[int], text: dict[int, str]) -> Result:
    """Run a trace through the model of one core."""
    pieces = sample(trace)
    lines = [line for piece in pieces for line in assembly(piece, text)]
    sampled_cycles, busiest, pressure = parse_summary(mca(core, lines, "-instruction-info=0"))
    cycles = sampled_cycles * len(trace) / sum(map(len, pieces))
    dots: Counter[str] = Counter()
    for word, n in Counter(trace).items():
        if classify(text[word]) in DOTS:
            dots[re.sub(r"\b([vz])\d+", r"\g<1>0", text[word])] += n
    slots = sum(n * slot(core, line) for line, n in dots.items())
    return Result(cycles, slots / cycles, busiest, pressure / sampled_cycles)
