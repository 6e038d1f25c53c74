# SPDX-License-Identifier: MIT
"""Stacks of matrices: the inputs that each expert meets, and encoding expert by expert.

The Hessians of a hundred experts take gigabytes. So the library of such a stack is learned from a few of
them, and each is encoded as a matrix of its own with that library: the bytes do not depend on how many are in
work.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lutra.conversion.footprint import Footprint
from lutra.conversion.jobs import Jobs
from lutra.conversion.plan import Planned
from lutra.conversion.statistics import Array, Statistics
from lutra.conversion.targets import encode, learn, targets
from lutra.runtime.matmul_inputs import MatmulInputs
from pyquant import in_order
from pyquant.gptq import SAMPLE, column_blocks


@dataclass(frozen=True)
class Experts:
    """The inputs of a stack behind the quantized layers, row by row beside those of the original model."""

    now: MatmulInputs
    originals: Array
    every: Statistics
    blocks: Sequence[slice]
    threads: int

    @classmethod
    def of(cls, before: MatmulInputs, now: MatmulInputs, p: Planned, threads: int) -> Experts:
        """Of ``p`` and of all stacks with the same inputs."""
        assert p.fmt
        assert now.inputs is not None
        blocks, found = column_blocks(p.source.k, p.fmt), originals(before, now)
        return cls(now, found, Statistics.of(now.inputs, found, blocks, threads), blocks, threads)

    def statistics(self, expert: int) -> Statistics:
        """Of the tokens of an expert, which leans on those of all where they are few."""
        inputs, experts = self.now.inputs, self.now.experts
        assert inputs is not None
        assert experts is not None
        token, slot = np.nonzero(experts == expert)
        per_token = len(inputs) // len(experts)
        rows = token * per_token + (slot if per_token > 1 else 0)
        own = Statistics.of(inputs[rows], self.originals[rows], self.blocks, self.threads)
        return own.blended(self.every)

    def room(self, count: int) -> Array:
        """For the Hessians of so many experts."""
        one = self.every.hessian if len(self.blocks) > 1 else self.every.hessian[0]
        return np.empty((count, *one.shape), np.float32)

    def problem(self, expert: int) -> tuple[Array, Array]:
        """Its Hessian as ``quantize`` takes it, and the corrections as ``targets`` does."""
        own = self.statistics(expert)
        hessian = own.hessian if len(self.blocks) > 1 else own.hessian[0]
        return hessian, own.correction(self.blocks)[None]


def originals(before: MatmulInputs, now: MatmulInputs) -> Array:
    """The inputs of the original model, row by row beside those of ``now``.

    Where each expert has inputs of its own and the original model asked another expert, there are none: then
    those of ``now``, which is no drift.
    """
    assert now.inputs is not None
    assert before.inputs is not None
    if now.experts is None or before.experts is None or len(now.inputs) == len(now.experts):
        return before.inputs
    used = now.experts.shape[1]
    same = now.experts[:, :, None] == before.experts[:, None, :]
    token, slot = np.nonzero(same.any(axis=2))
    out: Array = now.inputs.copy()
    out[token * used + slot] = before.inputs[token * used + same.argmax(axis=2)[token, slot]]
    return out


def encode_divided(
    experts: Experts, group: Sequence[Planned], footprint: Footprint, jobs: Jobs, rounds: int, seed: int
) -> Iterator[tuple[list[NDArray[Any]], float]]:
    """The bytes of each stack in ``group``, which have the same inputs, in parts, and its loss."""
    learned = _learned(experts, group, footprint, jobs, rounds, seed)

    def calls() -> Iterator[tuple[Any, ...]]:
        for expert in range(footprint.experts):
            hessian, correction = experts.problem(expert)
            for p, libraries in zip(group, learned, strict=True):
                target = targets(p, correction, experts.threads, _rows(p, expert, footprint))
                yield p.name, target, hessian, p.fmt, None, rounds, seed, libraries

    layers: list[list[list[NDArray[np.uint8]]]] = [[] for _ in group]
    error, energy = np.zeros((2, len(group)))
    for i, encoded in enumerate(jobs.run(encode, calls(), footprint.at_once)):
        own = i % len(group)
        layers[own].append(encoded.layers(experts.threads))
        error[own] += encoded.loss[-1] * encoded.energy
        energy[own] += encoded.energy
    for own, libraries in enumerate(learned):
        yield in_order(layers[own], libraries), float(error[own] / (energy[own] or 1.0))


def _learned(
    experts: Experts, group: Sequence[Planned], footprint: Footprint, jobs: Jobs, rounds: int, seed: int
) -> list[list[NDArray[np.int8]]]:
    """The libraries of each stack, from evenly spread rows of some experts."""
    learners = footprint.learners()
    samples: list[list[NDArray[np.float16]]] = [[] for _ in group]
    hessian = experts.room(len(learners))
    for place, expert in enumerate(learners.tolist()):
        hessian[place], correction = experts.problem(expert)
        for p, sample in zip(group, samples, strict=True):
            rows = _rows(p, expert, footprint)
            each = rows.stop - rows.start
            count = min(each, max(1, SAMPLE // p.source.k // len(learners)))
            spread = np.linspace(0, each - 1, count).astype(np.intp)
            sample.append(targets(p, correction, experts.threads, rows)[spread])
    calls = (
        (p.name, np.concatenate(sample), hessian, p.fmt, rounds, seed)
        for p, sample in zip(group, samples, strict=True)
    )
    return list(jobs.run(learn, calls))


def _rows(p: Planned, expert: int, footprint: Footprint) -> slice:
    each = p.source.rows // footprint.experts
    return slice(expert * each, (expert + 1) * each)
