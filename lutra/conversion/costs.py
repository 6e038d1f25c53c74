# SPDX-License-Identifier: MIT
"""What a file of given types loses, foreseen: learned from one file, corrected by every other.

    loss = sum over matrices (unit * noise(type) + rounding * unit * share)

Units and rounding are known to a factor each. Every file that is measured says something about the factors:
the most likely ones, if their logarithms are normally distributed, are kept. A file that differs from another
one in few matrices thereby says most about these.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from gguf_tools.formats.catalog import Type
from lutra.conversion.divergence import Divergence
from lutra.conversion.plan import Planned

FLOOR = 0.1  # of the mean cost of a weight: what a matrix costs at least
# Standard deviations of logarithms: one factor's own, what all have in common, and a file's measured loss.
OWN, COMMON, MEASURED = 0.5, 0.3, 0.01
INPUTS = "rounding of inputs"  # the name of its factor


@dataclass
class Costs:
    """``units``: by matrix, what a relative error of 1 of its outputs would cost in nats per token, if small
    errors cost in proportion; ``rounding``: the relative error of inputs that are rounded to int8.
    """

    units: Mapping[str, float] = field(default_factory=dict)
    rounding: float = 0.0
    _seen: list[tuple[Sequence[Planned], float]] = field(default_factory=list)
    _factors: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def learned(
        cls,
        planned: Sequence[Planned],
        costs: Mapping[str, float],
        rounding: float,
        measured: Divergence | None,
    ) -> Costs:
        """From what ``sensitivity.measure`` has found in a file, and what that loses on text kept aside."""
        of = {p.name: p for p in planned}
        units = {name: cost / noise(of[name].type) for name, cost in costs.items()}
        mean = sum(units.values()) / sum(of[name].weights for name in units)
        # Of a text of this length small costs are not known well, and some come out below nothing.
        units = {p.name: max(units.get(p.name, mean * p.weights), FLOOR * mean * p.weights) for p in planned}
        if measured and measured.kld > rounding:
            scale = (measured.kld - rounding) / sum(units[name] * noise(of[name].type) for name in costs)
            units = {name: scale * unit for name, unit in units.items()}  # together, not one by one
        return cls(units, rounding / sum(units[p.name] * share(p) for p in planned))

    def loss(self, p: Planned) -> float:
        """The part of the KL divergence that is a tensor's."""
        rounded, inputs = self._parts(p)
        return self._factors.get(p.name, 1.0) * rounded + self._factors.get(INPUTS, 1.0) * inputs

    def total(self, planned: Sequence[Planned]) -> float:
        """The KL divergence of a file."""
        return sum(map(self.loss, planned))

    def see(self, planned: Sequence[Planned], loss: float) -> None:
        """Learn from what a file loses: the most likely factors, by Gauss-Newton steps."""
        self._seen.append((planned, max(loss, 1e-9)))
        names = [INPUTS, *(p.name for p in planned)]
        parts = np.array([self._row(planned) for planned, _ in self._seen])
        measured = np.log([loss for _, loss in self._seen])
        logs = np.zeros(len(names))
        for _ in range(20):
            now = parts * np.exp(logs)
            totals = now.sum(axis=1)
            slopes = now / totals[:, None]
            spread = OWN**2 * slopes.T + COMMON**2  # times the prior's covariance; the slopes sum to 1
            known = slopes @ spread + MEASURED**2 * np.eye(len(measured))
            logs = spread @ np.linalg.solve(known, measured - np.log(totals) + slopes @ logs)
        self._factors = dict(zip(names, np.exp(logs).tolist(), strict=True))

    def _row(self, planned: Sequence[Planned]) -> list[float]:
        """What each factor multiplies."""
        rounded, inputs = zip(*map(self._parts, planned), strict=True)
        return [sum(inputs), *rounded]

    def _parts(self, p: Planned) -> tuple[float, float]:
        unit = self.units.get(p.name, p.weights)
        return unit * noise(p.type), unit * self.rounding * share(p)


def noise(kind: Type) -> float:
    """The squared error of a type's weights relative to them, on normally distributed ones."""
    return math.pow(10, -(kind.snr or 6 * kind.bpw) / 10)


def share(p: Planned) -> float:
    """What rounding the inputs of a matrix costs, relative to one plane with a scale per 256. A scale per 32
    is worth a bit (docs/ACTIVATIONS.md); two planes and floats round nothing.
    """
    if not p.is_quantized or p.has_two_planes:
        return 0.0
    block = next(block for block, number in p.type.ids.items() if number == p.id)
    return float((block / 256) ** (2 / 3))
