# SPDX-License-Identifier: MIT
"""The knapsack: a step for each part, the least loss for a cost or the least cost for a loss."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from lutra.conversion import budget
from lutra.conversion.budget import Step, cheapest, within


def random_items(rng: np.random.Generator, count: int, kinds: int) -> list[list[Step]]:
    """Larger steps of an item lose less, as types do; a few are dominated."""
    items = []
    for _ in range(count):
        sizes = np.sort(rng.integers(1, 60, kinds))
        costs = np.sort(rng.exponential(1.0, kinds))[::-1] * rng.choice([0.1, 1.0, 10.0])
        items.append([Step(None, int(n), float(c)) for n, c in zip(sizes, costs, strict=True)])
    return items


def total(chosen) -> tuple[float, float]:
    return sum(c.cost for c in chosen), sum(c.loss for c in chosen)


@pytest.mark.parametrize("seed", range(8))
def test_knapsack_is_exact(seed):
    rng = np.random.default_rng(seed)
    items = random_items(rng, 6, 4)
    everything = [total(chosen) for chosen in itertools.product(*items)]
    for capacity in rng.integers(1, 300, 12).tolist():
        chosen = within(items, capacity)
        possible = [loss for cost, loss in everything if cost <= capacity]
        if chosen is None:
            assert not possible
            continue
        assert all(c in item for c, item in zip(chosen, items, strict=True))
        assert total(chosen)[0] <= capacity
        assert total(chosen)[1] == pytest.approx(min(possible))
        # and the other way round: nothing that loses no more is cheaper
        loss = min(possible) * (1 + 1e-9)
        assert total(cheapest(items, loss))[0] == min(c for c, other in everything if other <= loss)
    assert cheapest(items, 0.999 * min(loss for _, loss in everything)) is None


def test_a_large_knapsack_is_near_its_bound_and_monotone(monkeypatch):
    """Sizes without a common divisor: more combinations than are followed."""
    monkeypatch.setattr(budget, "STATES", 1 << 10)
    rng = np.random.default_rng(0)
    items = [
        [Step(None, int(bits * n + rng.integers(999)), float(s * 4.0**-bits)) for bits in (2, 3, 4, 6)]
        for n, s in zip(rng.integers(10_000, 90_000, 60), rng.exponential(1.0, 60), strict=True)
    ]
    least = int(sum(item[0].cost for item in items))
    before = np.inf
    for capacity in np.linspace(least, 2 * least, 6).astype(int).tolist():
        cost, loss = total(within(items, capacity))
        # the Lagrangian's bound: no solution in this capacity costs less
        bound = max(
            sum(min(c.loss + price * c.cost for c in item) for item in items) - price * capacity
            for price in np.geomspace(1e-10, 1e-4, 200)
        )
        assert cost <= capacity
        assert loss < before
        assert loss <= 1.02 * bound or capacity == least
        before = loss
    assert within(items, least - 1) is None
