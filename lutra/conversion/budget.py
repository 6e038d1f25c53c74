"""Types for a size: ``lutra convert --target-bpw`` and ``--target-size``.

A matrix may have one of several types; larger ones cost less. Which ones, so that the file stays within the
target and the sum of the costs is least, is a multiple-choice knapsack problem.
"""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from gguf_tools.errors import LutraError
from gguf_tools.sources.tensors import Source, SourceTensor
from gguf_tools.writer import TensorSpec, file_bytes, padded
from lutra.cli.arguments import Target
from lutra.cli.convert import FILE_TYPES, metadata, write
from lutra.console import mib, table
from lutra.conversion.llama_quantize import temporary
from lutra.conversion.plan import CB_TYPES, OUTPUT, Planned, Rules, fit, override, plan
from lutra.conversion.sensitivity import NOISE, measure
from lutra.runtime.paths import CALIBRATION_TEXT

# The types to choose from: signal to quantization noise in dB, measured on normally distributed weights.
SNR = {"cb2": 12.4, "cb3": 17.4, "cb4": 23.3, "q5_k": 28.8, "q6_k": 35.0, "q8_0": 45.4, "f16": 73.6}
CALIBRATION = 3.0  # dB that calibration adds to codebooks: what single matrices show

STATES = 1 << 13  # combinations of the first n matrices that are followed; the knapsack is exact below


@dataclass(frozen=True)
class Choice:
    """A type that a tensor may have, its bytes, and its cost."""

    type: str
    nbytes: int
    cost: float


def meet(source: Source, rules: Rules, args: argparse.Namespace) -> Rules:
    """``rules`` with the types that cost least within ``args.target``, measured on the model.

    Prints the plan (on standard output in a dry run); ``args.type`` becomes the type of most weights. Raises
    LutraError when the file cannot be as small as that.
    """
    calibrated = bool(args.calibration)
    example = argparse.Namespace(**vars(args) | {"type": "cb4"})
    planned = plan(source.tensors, Rules("cb4"))
    specs = [TensorSpec(p.source.name, p.type, p.source.shape, p.nbytes) for p in planned]
    header = file_bytes(metadata(source, planned, example), specs) - sum(padded(p.nbytes) for p in planned)
    # What cannot be met is refused before anything is measured.
    allocate(source.tensors, rules, {}, args.target, header, calibrated)
    with temporary(args.output, "sensitivity") as model:
        write(model, source, plan(source.tensors, Rules("f16")), example, {})
        text = args.calibration or CALIBRATION_TEXT
        costs, how = measure(model, source.tensors, text, args.threads)
    rules = allocate(source.tensors, rules, costs, args.target, header, calibrated)
    planned = plan(source.tensors, rules)
    args.type = file_type(planned)
    lines = [f"{how}, of {text.name}", "", describe_mix(planned, costs, calibrated), ""]
    print("\n".join(lines), file=sys.stdout if args.dry_run else sys.stderr)
    return rules


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
    tied = all(t.name != OUTPUT for t in tensors)
    items = [choices(t, rules, tied, costs.get(t.name, 0.0), calibrated) for t in tensors]
    chosen = solve(items, capacity)
    if chosen is None:
        least, most = (sum(limit(c.nbytes for c in item) for item in items) for limit in (min, max))
        if target.nbytes:
            possible = f"{math.ceil((least + header) / 1e5) / 10}M to {(most + header) / 1e6:.1f}M"
        else:
            possible = f"{math.ceil(800 * least / weights) / 100} to {8 * most / weights:.2f}"
        raise LutraError(f"{' '.join(target.option)}: too small for this model, possible are {possible}")
    return replace(rules, solved={t.name: c.type for t, c in zip(tensors, chosen, strict=True)})


def choices(tensor: SourceTensor, rules: Rules, tied: bool, cost: float, calibrated: bool) -> list[Choice]:
    """What ``tensor`` can be under ``rules``; ``cost`` is that of noise in it."""
    fixed = override(tensor, rules, tied)
    found = []
    for name in [fixed] if fixed else SNR:
        planned = fit(tensor, name)
        if fixed or not planned.instead_of:
            found.append(Choice(name, padded(planned.nbytes), predict(name, cost, calibrated)))
    return found


def predict(name: str, cost: float, calibrated: bool) -> float:
    """The cost of a type from that of noise; 0 for types that are not chosen from."""
    snr = SNR.get(name, np.inf) + (CALIBRATION if calibrated and name in CB_TYPES else 0.0)
    return cost * 10 ** ((NOISE - snr) / 10)


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


def file_type(planned: Sequence[Planned]) -> str:
    """The type that most weights have, of those that a file can be said to be of."""
    weights = Counter({"f16": 0})
    for p in planned:
        if (name := family(p)) in FILE_TYPES:
            weights[name] += p.weights
    return weights.most_common(1)[0][0]


def family(p: Planned) -> str:
    """The type as it is asked for, whatever the size of its super-blocks."""
    return p.type_name.lower().removesuffix("_64")


def describe_mix(planned: Sequence[Planned], costs: Mapping[str, float], calibrated: bool) -> str:
    """The plan by kind of matrix: which layers have which type, with the cost predicted."""
    layers: dict[tuple[str, str], list[int]] = {}
    nbytes: Counter[tuple[str, str]] = Counter()
    predicted: Counter[tuple[str, str]] = Counter()
    for p in planned:
        if p.source.name not in costs:
            continue
        place = re.fullmatch(r"blk\.(\d+)\.(.+)", p.source.name)
        key = place[2] if place else p.source.name, p.type_name
        layers.setdefault(key, []).extend([int(place[1])] if place else [])
        nbytes[key] += p.nbytes
        predicted[key] += predict(family(p), costs[p.source.name], calibrated)
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
            f"{mib(total)}, {bpw:.3f} bits per weight; predicted KL divergence {predicted.total():.4f}",
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
