# SPDX-License-Identifier: MIT
"""One step for each part of a file: the least loss for a cost, or the least cost for a loss.

Which ones is a multiple-choice knapsack problem. Dynamic programming goes over the combinations that nothing
cheaper is as good as (Nemhauser and Ullmann, 1969).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lutra.conversion.plan import Planned

STATES = 1 << 13  # combinations of the first n parts that are followed; the knapsack is exact below


@dataclass(frozen=True)
class Step:
    """One way for a part of the file to be: what it becomes, its cost (bytes, or seconds per token), its loss
    (KL divergence, nats per token).
    """

    change: Planned
    cost: float
    loss: float


def within(parts: Sequence[Sequence[Step]], cost: float) -> list[Step] | None:
    """A step for each part: the least total loss for at most ``cost``; None when nothing is as cheap."""
    costs, _, trail = _frontier(parts)
    state = int(np.searchsorted(costs, cost, side="right")) - 1
    return _chosen(parts, trail, state) if state >= 0 else None


def cheapest(parts: Sequence[Sequence[Step]], loss: float) -> list[Step] | None:
    """A step for each part: the least total cost with at most ``loss``; None when nothing is as good."""
    _, losses, trail = _frontier(parts)
    state = int(np.searchsorted(-losses, -loss, side="left"))  # losses fall
    return _chosen(parts, trail, state) if state < len(losses) else None


def _frontier(
    parts: Sequence[Sequence[Step]],
) -> tuple[NDArray[Any], NDArray[Any], list[NDArray[Any]]]:
    """Costs, rising, and losses, falling, of the combinations that count, and how each came about.

    Where these are more than STATES, evenly spaced ones are followed: near the optimum, and still more cost
    never means more loss.
    """
    costs, losses = np.zeros(1), np.zeros(1)
    trail = []
    for steps in parts:
        all_costs = np.add.outer(costs, [step.cost for step in steps]).reshape(-1)
        all_losses = np.add.outer(losses, [step.loss for step in steps]).reshape(-1)
        order = np.lexsort((all_losses, all_costs))
        best = np.minimum.accumulate(all_losses[order])
        order = order[np.concatenate([[True], best[1:] < best[:-1]])]
        if len(order) > STATES:
            order = order[np.linspace(0, len(order) - 1, STATES).astype(int)]
        costs, losses = all_costs[order], all_losses[order]
        trail.append(order)
    return costs, losses, trail


def _chosen(parts: Sequence[Sequence[Step]], trail: Sequence[NDArray[Any]], state: int) -> list[Step]:
    chosen = []
    for steps, order in zip(reversed(parts), reversed(trail), strict=True):
        state, choice = divmod(int(order[state]), len(steps))
        chosen.append(steps[choice])
    return chosen[::-1]
