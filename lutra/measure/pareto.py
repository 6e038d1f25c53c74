# SPDX-License-Identifier: MIT
"""Quality against size: which files nothing beats at their size, and the picture of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gguf_tools.errors import LutraError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CODEBOOK, OTHER, FRONTIER = "#2a7f62", "#808080", "#d8a03d"


@dataclass(frozen=True)
class Point:
    """A file: ``size`` in MiB, ``value`` ± ``error`` of its quality (lower is better; error 0: no bar)."""

    label: str
    size: float
    value: float
    error: float
    codebook: bool  # of a type of ours


@dataclass(frozen=True)
class Panel:
    """Files by one measure of quality; ``base`` is the original model's value, if it is worth a line."""

    title: str
    points: Sequence[Point]
    base: float | None = None


def frontier(points: Sequence[Point]) -> list[Point]:
    """The points that no other point beats or equals in both size and value, by size."""
    best: list[Point] = []
    for point in sorted(points, key=lambda p: (p.size, p.value)):
        if not best or point.value < best[-1].value:
            best.append(point)
    return best


def new_figure(columns: int) -> tuple[Figure, Sequence[Axes]]:
    """An empty figure of ``columns`` panels. Raises LutraError without matplotlib."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt
    except ImportError:
        raise LutraError('--plot needs matplotlib: run pip install "lutra-llm[plot]"') from None
    figure, axes = plt.subplots(1, columns, squeeze=False, figsize=(1 + 6 * columns, 5), layout="constrained")
    return figure, axes[0]


def plot(path: Path, title: str, panels: Sequence[Panel]) -> None:
    """Draw the panels side by side: an SVG where the name ends so, else a PNG."""
    import matplotlib

    figure, axes = new_figure(len(panels))
    figure.suptitle(title)
    for axis, panel in zip(axes, panels, strict=True):
        draw(axis, panel)
    figure.draw_without_rendering()  # labels are placed by where things come to lie
    for axis, panel in zip(axes, panels, strict=True):
        place_labels(axis, panel.points)
    if path.suffix == ".svg":
        with matplotlib.rc_context({"svg.hashsalt": path.name}):  # the same bytes each time
            figure.savefig(path, format="svg", metadata={"Date": None})
    else:
        figure.savefig(path, format="png", dpi=150)


def draw(axis: Axes, panel: Panel) -> None:
    """Everything but the labels of the points."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    axis.set(xlabel="file size, MiB", ylabel=panel.title, xscale="log", yscale="log")
    best = frontier(panel.points)
    axis.plot(
        [p.size for p in best], [p.value for p in best],
        color=FRONTIER, linewidth=2, label="best at its size", zorder=1,
    )  # fmt: skip
    for codebook, color, marker, name in (
        (True, CODEBOOK, "o", "codebook types"),
        (False, OTHER, "s", "other types"),
    ):
        if points := [p for p in panel.points if p.codebook == codebook]:
            axis.errorbar(
                [p.size for p in points], [p.value for p in points], [p.error or math.nan for p in points],
                fmt=marker, color=color, capsize=2, elinewidth=1, label=name,
            )  # fmt: skip
    if panel.base:
        axis.axhline(panel.base, color="black", linestyle=":", linewidth=1, label="original")
    axis.margins(0.12)
    for part, (low, high) in ((axis.xaxis, axis.get_xlim()), (axis.yaxis, axis.get_ylim())):
        # Less than a decade has too few of 1, 2, 5, 10, ...
        part.set_major_locator(LogLocator(subs=(1, 2, 5)) if high > 10 * low else MaxNLocator(6))
        part.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        part.set_minor_locator(NullLocator())
    axis.grid(which="major", color="#e5e5e5")
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False)


def place_labels(axis: Axes, points: Sequence[Point]) -> None:
    """A label beside each point, where it covers the fewest other labels and points."""
    from matplotlib.transforms import Bbox

    taken = []
    for p in points:
        x, y = axis.transData.transform((p.size, p.value))
        taken.append(Bbox.from_bounds(x - 6, y - 6, 12, 12))
    # Above and to the right, where the frontier does not pass, if possible.
    places = [(5, 4, "left", "bottom"), (-5, -4, "right", "top"), (8, 0, "left", "center")]
    places += [(0, 8, "center", "bottom"), (0, -8, "center", "top"), (-8, 0, "right", "center")]
    for p in points:
        tried: list[tuple[int, int, Any, Any]] = []
        for dx, dy, ha, va in places:
            text = axis.annotate(
                p.label, (p.size, p.value), (dx, dy), textcoords="offset points", ha=ha, va=va, fontsize=9
            )
            box = text.get_window_extent()
            tried.append((box.count_overlaps(taken), len(tried), text, box))
        _, chosen, _, box = min(tried, key=lambda place: place[:2])
        for _, i, text, _ in tried:
            if i != chosen:
                text.remove()
        taken.append(box)
