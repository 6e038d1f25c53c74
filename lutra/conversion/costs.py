# SPDX-License-Identifier: MIT
"""What a file of given types loses, foreseen: learned from one file, corrected by the last one.

loss = scale * sum over matrices (weights * noise(type) + inputs * share(type, planes))
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from gguf_tools.formats.catalog import Type
from lutra.conversion.plan import Planned
from lutra.conversion.sensitivity import Measured

FLOOR = 0.1  # of the mean cost of a weight: what a matrix costs at least


@dataclass
class Costs:
    """By matrix, in nats per token, if small errors cost in proportion: ``weights``, what errors as large as
    they are would cost; ``inputs``, what it costs to round these to one plane of int8 with a scale per 256.
    ``scale`` corrects them all.
    """

    weights: Mapping[str, float] = field(default_factory=dict)
    inputs: Mapping[str, float] = field(default_factory=dict)
    scale: float = 1.0

    @classmethod
    def learned(cls, planned: Sequence[Planned], found: Measured) -> Costs:
        """From what was ``found`` in a file."""
        of = {p.name: p for p in planned}
        weights = {name: cost / noise(of[name].type) for name, cost in found.weights.items()}
        inputs = {
            name: cost / share(replace(of[name], has_two_planes=False)) for name, cost in found.inputs.items()
        }
        return cls(_completed(planned, weights, FLOOR), _completed(planned, inputs, 0.0))

    def loss(self, p: Planned) -> float:
        """The part of the KL divergence that is a tensor's."""
        weights, inputs = self.weights.get(p.name, p.weights), self.inputs.get(p.name, 0.0)
        return self.scale * (weights * noise(p.type) + inputs * share(p))

    def total(self, planned: Sequence[Planned]) -> float:
        """The KL divergence of a file."""
        return sum(map(self.loss, planned))

    def see(self, planned: Sequence[Planned], loss: float) -> None:
        """Take what a file loses for the truth.

        One factor for all: with one for each matrix the next plan moves bits to where they seem to be worth
        more, and loses as much (docs/RECIPES.md). With one it can only become larger, or smaller.
        """
        self.scale *= max(loss, 1e-9) / self.total(planned)


def _completed(planned: Sequence[Planned], costs: Mapping[str, float], least: float) -> dict[str, float]:
    """Costs of all tensors: the mean for those that are not known, and ``least`` of it for all. Of a text of
    this length small costs are not known well, and some come out below nothing.
    """
    weights = {p.name: p.weights for p in planned}
    mean = max(sum(costs.values()), 1e-12) / sum(weights[name] for name in costs)
    return {name: max(costs.get(name, mean * n), least * mean * n) for name, n in weights.items()}


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
