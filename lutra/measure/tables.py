# SPDX-License-Identifier: MIT
"""The results of a comparison as people publish them: a Markdown table, its conditions, what to draw."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lutra.console import figure
from lutra.measure.pareto import Panel, Point


def names(files: Sequence[str]) -> tuple[str, list[str]]:
    """The model's name and a short label for each file: model-cb4.gguf and model-f16.gguf are cb4 and f16."""
    stems = [Path(file).name.removesuffix(".gguf") for file in files]
    if len(stems) == 1:
        return stems[0], stems
    if len(set(stems)) < len(stems):
        return "Comparison", list(files)
    parts = [re.split(r"(?<=[-.])", stem)[:-1] for stem in stems]
    same = itertools.takewhile(lambda part: len(set(part)) == 1, zip(*parts, strict=False))
    model = "".join(part[0] for part in same)
    return model[:-1] or stems[-1], [stem.removeprefix(model) for stem in stems]


def markdown(results: dict[str, Any]) -> str:
    """The results with everything one needs to know to repeat them; columns only for what was measured."""
    return f"## {results['model']}\n\n{conditions(results)}\n\n{table(results)}"


def conditions(results: dict[str, Any]) -> str:
    """How it was measured, a list."""
    lines = []
    if text := results.get("text"):
        predicted = f"{results['files'][0]['tokens']} predicted tokens"
        line = f"text: {Path(text['file']).name}, {text['chunks']} chunks of {text['ctx']}, {predicted}"
        if results["base"]:
            line += f"; KL divergence and same top token against {Path(results['base']).name}"
        lines.append(f"{line}; ± standard error")
    if questions := results.get("questions"):
        lines.append(f"answers: {Path(questions['file']).name}, greedy, exactly equal")
    if speed := results.get("speed"):
        lines.append(
            f"speed: llama-bench, a prompt of {speed['prompt']} tokens, {speed['generated']} generated; "
            f"± standard deviation of {speed['runs']} runs"
        )
    made: dict[str, list[str]] = {}
    for row in results["files"]:
        if row["options"]:
            made.setdefault(re.sub(r"--type \S+ ?", "", row["options"]), []).append(row["label"])
    lines += [f"{', '.join(labels)}: lutra convert {options}" for options, labels in made.items()]
    on = results["machine"]
    threads = f"{on['threads']} thread" + "s" * (on["threads"] > 1)
    lines.append(f"machine: {on['cpu']}, {threads}, lutra {on['version']}, kernels {on['kernels']}")
    return "\n".join(f"- {line}" for line in lines)


def table(results: dict[str, Any]) -> str:
    """A Markdown table of the files, padded so that it reads well as text too."""
    columns: dict[str, Callable[[dict[str, Any]], str]] = {
        "model": lambda r: r["label"],
        "size, MiB": lambda r: f"{r['bytes'] / 2**20:.1f}",
        "bits per weight": lambda r: f"{r['bpw']:.2f}",
        # More digits than the error has: on the same text, models err together.
        "perplexity": lambda r: f"{figure(r['ppl'], 2)} ± {figure(r['ppl_error'], 2)}",
        "KL divergence": lambda r: plus_minus(r["kld_mean"], r["kld_error"]),
        "same top token": lambda r: f"{r['same_top']:.1f} %",
        "exact answers": lambda r: f"{r['exact']} of {r['total']}",
        "prompt, tokens/s": lambda r: plus_minus(r["prompt_tps"], r["prompt_sd"]),
        "generation, tokens/s": lambda r: plus_minus(r["generation_tps"], r["generation_sd"]),
    }

    def cell(show: Callable[[dict[str, Any]], str], row: dict[str, Any]) -> str:
        try:
            return show(row)
        except KeyError:  # not measured
            return ""

    grid = [[name, *(cell(show, row) for row in results["files"])] for name, show in columns.items()]
    return markdown_table([column for column in grid if any(column[1:])])


def markdown_table(grid: Sequence[Sequence[str]]) -> str:
    """A Markdown table of columns, each with its name first; all but the first are flush right."""
    widths = [max(map(len, column)) for column in grid]
    lines = []
    for cells in zip(*grid, strict=True):
        padded = [cells[0].ljust(widths[0])]
        padded += [cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True)]
        lines.append(f"| {' | '.join(padded)} |")
    rule = ["-" * (widths[0] + 2), *("-" * (width + 1) + ":" for width in widths[1:])]
    return "\n".join([lines[0], f"|{'|'.join(rule)}|", *lines[1:]])


def plus_minus(value: float, error: float) -> str:
    """Both to two digits of the error, as "12.34 ± 0.56"; whole numbers at least, six decimals at most."""
    decimals = 1 - math.floor(math.log10(error)) if error > 0 else 2
    decimals = min(max(decimals, 0), 6)
    return f"{value:.{decimals}f} ± {error:.{decimals}f}"


def panels(results: dict[str, Any]) -> list[Panel]:
    """What ``--plot`` draws: KL divergence, with a base, and perplexity."""
    base: dict[str, Any] = next((row for row in results["files"] if row["file"] == results["base"]), {})
    rows = [row for row in results["files"] if row is not base]

    def points(key: str, error: str | None = None) -> list[Point]:
        return [
            Point(row["label"], row["bytes"] / 2**20, row[key], row[error] if error else 0, row["codebook"])
            for row in rows
            if row.get(key, 0) > 0
        ]

    # The error of a perplexity is that of the text, and the same for every file.
    found = [
        Panel("KL divergence", points("kld_mean", "kld_error")),
        Panel("perplexity", points("ppl"), base.get("ppl")),
    ]
    return [panel for panel in found if panel.points]
