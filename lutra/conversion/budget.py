# SPDX-License-Identifier: MIT
"""Types for a size: ``lutra convert --target-bpw`` and ``--target-size``.

A matrix may have one of several types; larger ones cost less. Which ones, so that the file stays within the
target and the sum of the costs is least, is a multiple-choice knapsack problem.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from gguf_tools.errors import LutraError
from gguf_tools.formats.catalog import RECIPES, TYPES, Type
from gguf_tools.sources.tensors import Source, SourceTensor
from gguf_tools.writer import file_bytes, padded
from lutra.console import mib, table
from lutra.conversion.options import ConversionOptions, Target
from lutra.conversion.output import metadata, temporary, tensor_specs, write_floats
from lutra.conversion.plan import Planned, Rules, fixed_type, is_tied, plan, plan_as
from lutra.conversion.sensitivity import NOISE, measure
from lutra.conversion.text import CALIBRATION_TEXT

CALIBRATION = 3.0  # dB that calibration adds to codebooks: what single matrices show
CANDIDATES = sorted((kind for kind in TYPES.values() if kind.snr), key=lambda kind: kind.snr or 0.0)

STATES = 1 << 13  # combinations of the first n matrices that are followed; the knapsack is exact below


@dataclass(frozen=True)
class Choice:
    """A type that a tensor may have, its bytes, and its cost."""

    type: Type
    nbytes: int
    cost: float


def plan_within(source: Source, options: ConversionOptions, output: Path) -> tuple[Rules, str]:
    """The rules with the types that cost least within ``options.target``, and what was measured, as text.

    Raises LutraError when the file cannot be as small as that.
    """
    assert options.target
    calibrated = options.calibration_text is not None
    planned = plan(source.tensors, Rules(RECIPES["cb4"]))
    specs = tensor_specs(planned)
    header = file_bytes(metadata(source, planned, options.record()), specs) - sum(
        padded(p.nbytes) for p in planned
    )
    # What cannot be met is refused before anything is measured.
    allocate(source.tensors, options.rules, {}, options.target, header, calibrated)
    with temporary(output, "sensitivity") as model:
        write_floats(model, source, "f16", options.threads, options.record())
        text = options.calibration_text or CALIBRATION_TEXT
        costs, how = measure(model, source.tensors, text, options.threads)
    rules = allocate(source.tensors, options.rules, costs, options.target, header, calibrated)
    mix = describe_mix(plan(source.tensors, rules), costs, calibrated)
    return rules, f"{how}, of {text.name}\n\n{mix}\n"


def allocate(
    tensors: Sequence[SourceTensor],
    rules: Rules,
    costs: Mapping[str, float],
    target: Target,
    header: int,
    calibrated: bool,
) -> Rules:
    """``rules`` with the types that cost least within ``target``.

    ``costs`` are those of noise in a matrix, by name; ``header`` is the bytes of the file before its data.
    Raises LutraError when there are none.
    """
    weights = sum(t.rows * t.k for t in tensors)
    capacity = target.nbytes - header if target.nbytes else int((target.bpw or 0.0) * weights / 8)
    tied = is_tied(tensors)
    items = [choices(t, rules, tied, costs.get(t.name, 0.0), calibrated) for t in tensors]
    chosen = solve(items, capacity)
    if chosen is None:
        least, most = (sum(limit(c.nbytes for c in item) for item in items) for limit in (min, max))
        if target.nbytes:
            possible = f"{math.ceil((least + header) / 1e5) / 10}M to {(most + header) / 1e6:.1f}M"
        else:
            possible = f"{math.ceil(800 * least / weights) / 100} to {8 * most / weights:.2f}"
        raise LutraError(f"{target.option} {target.text}: too small for this model, possible are {possible}")
    return replace(rules, solved={t.name: c.type for t, c in zip(tensors, chosen, strict=True)})


def choices(tensor: SourceTensor, rules: Rules, tied: bool, cost: float, calibrated: bool) -> list[Choice]:
    """What ``tensor`` can be under ``rules``; ``cost`` is that of noise in it."""
    fixed = fixed_type(tensor, rules, tied)
    found = []
    for kind in [fixed] if fixed else CANDIDATES:
        planned = plan_as(tensor, kind)
        if fixed or not planned.instead_of:
            found.append(Choice(kind, padded(planned.nbytes), predict(kind, cost, calibrated)))
    return found


def predict(kind: Type, cost: float, calibrated: bool) -> float:
    """The cost of a type from that of noise; 0 for types that are not chosen from."""
    if kind.snr is None:
        return 0.0
    snr = kind.snr + (CALIBRATION if calibrated and kind.is_codebook else 0.0)
    return float(cost * 10 ** ((NOISE - snr) / 10))


def solve(items: Sequence[Sequence[Choice]], capacity: int) -> list[Choice] | None:
    """A choice for each item: the least total cost in ``capacity`` bytes; None when nothing fits.

    Dynamic programming over the combinations that nothing smaller is as good as (Nemhauser and Ullmann,
    1969). Where these are more than STATES, evenly spaced ones are followed: near the optimum, and still
    more bytes never cost more.
    """
    sizes, costs = np.zeros(1, np.int64), np.zeros(1)
    trail = []
    for item in items:
        all_sizes = np.add.outer(sizes, [c.nbytes for c in item]).reshape(-1)
        all_costs = np.add.outer(costs, [c.cost for c in item]).reshape(-1)
        order = np.lexsort((all_costs, all_sizes))
        best = np.minimum.accumulate(all_costs[order])
        order = order[np.concatenate([[True], best[1:] < best[:-1]])]
        if len(order) > STATES:
            order = order[np.linspace(0, len(order) - 1, STATES).astype(int)]
        sizes, costs = all_sizes[order], all_costs[order]
        trail.append(order)
    state = int(np.searchsorted(sizes, capacity, side="right")) - 1
    if state < 0:
        return None
    chosen = []
    for item, order in zip(reversed(items), reversed(trail), strict=True):
        state, choice = divmod(int(order[state]), len(item))
        chosen.append(item[choice])
    return chosen[::-1]


def describe_mix(planned: Sequence[Planned], costs: Mapping[str, float], calibrated: bool) -> str:
    """The plan by kind of matrix: which layers have which type, with the cost predicted."""
    layers: dict[tuple[str, str], list[int]] = {}
    nbytes: Counter[tuple[str, str]] = Counter()
    predicted: dict[tuple[str, str], float] = defaultdict(float)
    for p in planned:
        if p.name not in costs:
            continue
        place = re.fullmatch(r"blk\.(\d+)\.(.+)", p.name)
        key = place[2] if place else p.name, p.type_name
        layers.setdefault(key, []).extend([int(place[1])] if place else [])
        nbytes[key] += p.nbytes
        predicted[key] += predict(p.type, costs[p.name], calibrated)
    roles = list(dict.fromkeys(role for role, _ in layers))
    rows = [("matrix", "type", "layers", "MiB", "cost")]
    for key in sorted(layers, key=lambda key: (roles.index(key[0]), min(layers[key], default=0))):
        size, cost = f"{nbytes[key] / 2**20:.1f}", f"{predicted[key]:.5f}"
        rows.append((*key, ranges(layers[key]), size, cost))
    total = sum(p.nbytes for p in planned)
    bpw = 8 * total / sum(p.weights for p in planned)
    return "\n".join(
        [
            table(rows, right=(3, 4)),
            "",
            f"{mib(total)}, {bpw:.3f} bits per weight; predicted KL divergence {sum(predicted.values()):.4f}",
        ]
    )


def ranges(numbers: Sequence[int]) -> str:
    """Sorted numbers as text: "0-3, 7"."""
    parts: list[list[int]] = []
    for n in numbers:
        if parts and n == parts[-1][-1] + 1:
            parts[-1][1:] = [n]
        else:
            parts.append([n])
    return ", ".join("-".join(map(str, part)) for part in parts)
