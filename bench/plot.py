# SPDX-License-Identifier: MIT
"""A picture of the results: cycles or ns per unit, a bar per kernel."""

from __future__ import annotations

from pathlib import Path

from .programs import BenchError
from .report import Record

CORE = {"neon": "a72", "neon_dotprod": "n1", "neon_i8mm": "v2", "sve256": "v1"}  # whose cycles are shown


def value(record: Record) -> float:
    """What the picture shows of a record."""
    if record.ns_per_unit is not None:
        return record.ns_per_unit
    return record.cycles_per_unit.get(CORE.get(record.isa, ""), 0.0)


def plot(records: list[Record], path: Path) -> None:
    """One panel per instruction set and job; Lutra's kernels in another colour than upstream's."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise BenchError("--plot needs matplotlib: pip install matplotlib") from error

    largest: dict[tuple[str, str], int] = {}
    for r in records:
        largest[r.isa, r.op] = max(r.columns, largest.get((r.isa, r.op), 0))
    panels = {
        key: [r for r in records if (r.isa, r.op) == key] for key in largest if key[1] in ("gemv", "gemm")
    }
    if not panels:
        raise BenchError("--plot shows gemv and gemm, and neither was run")
    figure, axes = plt.subplots(len(panels), 1, squeeze=False, figsize=(9, 3.2 * len(panels)))
    for axis, ((isa, op), group) in zip(axes[:, 0], panels.items(), strict=True):
        bars = sorted((r for r in group if "_64" not in r.type), key=value)
        bars = [r for r in bars if r.columns == largest[isa, op] or "vec_dot" in r.kernel]
        names = [f"{r.type} ({r.compiler})" for r in bars]
        colours = ["#2a7f62" if r.kernel.startswith("lutra_") else "#b0b0b0" for r in bars]
        axis.bar(names, [value(r) for r in bars], color=colours)
        modelled = bars and bars[0].ns_per_unit is None
        axis.set_ylabel(
            f"cycles per unit, {CORE.get(isa)}, modelled" if modelled else "ns per unit, measured"
        )
        axis.set_title(f"{isa} {op}" + (f", {largest[isa, op]} columns" if op == "gemm" else ""))
        axis.tick_params(axis="x", rotation=60, labelsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
