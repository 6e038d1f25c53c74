# SPDX-License-Identifier: MIT
"""The bench's results: what one holds, and how they are written."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from .programs import Kernel


@dataclass
class Record:
    """One kernel on one shape, compiled by one compiler: modelled, measured here, or both empty."""

    kernel: str
    op: str
    type: str
    isa: str
    compiler: str
    columns: int
    bytes_per_unit: float
    insn_per_unit: float | None = None
    classes: dict[str, float] = field(default_factory=dict)  # instructions per unit by class
    cycles_per_unit: dict[str, float] = field(default_factory=dict)  # by core, modelled
    dot_share: dict[str, float] = field(default_factory=dict)  # by core, modelled
    busiest: dict[str, str] = field(default_factory=dict)  # by core, modelled: execution unit and its share
    ns_per_unit: float | None = None  # measured
    ns_per_unit_streamed: float | None = None  # measured, weights from memory

    @classmethod
    def of(cls, kernel: Kernel, compiler: str, columns: int) -> Record:
        """An empty record of a kernel."""
        return cls(
            kernel.name, kernel.op, kernel.type.lower(), kernel.isa, compiler, columns, kernel.bytes_per_unit
        )


def write(text: str, path: Path) -> None:
    """Write a report to a file, or to standard output for `-`."""
    if str(path) == "-":
        sys.stdout.write(text)
    else:
        path.write_text(text)


def to_json(records: Iterable[Record]) -> str:
    """A list of objects; keys without a value are left out."""
    objects = [{k: v for k, v in asdict(r).items() if v not in (None, {})} for r in records]
    return json.dumps(objects, indent=1) + "\n"


def from_json(text: str) -> list[Record]:
    """The records of an earlier run."""
    return [Record(**fields) for fields in json.loads(text)]


def table(header: list[str], rows: Iterable[list[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def number(value: float | None, digits: int = 2) -> str:
    """A number of a table, or nothing."""
    return "" if value is None else f"{value:.{digits}f}"


def to_markdown(records: list[Record]) -> str:
    """A table per instruction set, job and number of columns, the fastest kernel first."""
    groups: dict[tuple[str, str, int], list[Record]] = {}
    for record in records:
        groups.setdefault((record.isa, record.op, record.columns), []).append(record)
    text = []
    for (isa, op, columns), group in groups.items():
        title = f"{isa}, {op}" + (f", {columns} columns" if op in ("batch", "gemm") else "")
        kind = "measured" if group[0].insn_per_unit is None else "modelled"
        text.append(f"### {title}, {kind}\n\n{section(group)}")
    return "\n".join(text)


def section(group: list[Record]) -> str:
    """The table of one group."""
    if group[0].insn_per_unit is None:
        header = ["kernel", "type", "compiler", "ns per unit"]
        streamed = any(r.ns_per_unit_streamed for r in group)
        header += ["streamed", "GB/s"] if streamed else []
        rows = []
        for r in sorted(group, key=lambda r: r.ns_per_unit or 0):
            row = [r.kernel, r.type, r.compiler, number(r.ns_per_unit, 3)]
            if streamed:
                memory = r.ns_per_unit_streamed
                row += [number(memory, 3), number(r.bytes_per_unit / memory if memory else None, 1)]
            rows.append(row)
        return table(header, rows)
    cores = list(group[0].cycles_per_unit)
    shares = [c for c in ("v1", "v2") if any(r.dot_share.get(c) for r in group)]
    header = ["kernel", "type", "compiler", "instructions", *cores, *(f"dot slots {c}" for c in shares)]
    rows = [
        [r.kernel, r.type, r.compiler, number(r.insn_per_unit)]
        + [number(r.cycles_per_unit[c]) for c in cores]
        + [f"{100 * r.dot_share[c]:.0f} %" if r.dot_share.get(c) else "" for c in shares]
        for r in sorted(group, key=lambda r: list(r.cycles_per_unit.values()))
    ]
    return table(header, rows)
