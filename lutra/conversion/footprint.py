# SPDX-License-Identifier: MIT
"""How much memory calibration takes: what it does in pieces, and whether the machine has as much."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gguf_tools.errors import LutraError
from gguf_tools.formats.family import GROUP
from lutra.conversion.plan import Planned
from lutra.runtime.memory import free_memory
from pyquant.gptq import SAMPLE, SLAB, column_blocks

AT_ONCE = 2  # matrices that are encoded together in one process
WHOLE = 256 << 20  # bytes of a stack's Hessians and weights, beyond which it is done expert by expert
LEARNED = 512 << 20  # bytes of the Hessians of those experts that the library of such a stack is learned from
SMALL_HESSIAN = 64 << 20  # bytes of the Hessian of an expert, up to which several of them are in work
PROGRAM = 300 << 20  # bytes of Python, libraries and what llama.cpp has beside graphs


@dataclass(frozen=True)
class Footprint:
    """What calibrating a matrix, or a stack of them, takes in bytes; how a stack is divided.

    It depends on shapes only: the bytes of a file do not depend on the machine's memory.
    """

    planned: Planned
    inputs: int  # bytes of what it is multiplied by
    outputs: int = 0  # rows of the Hessian of its outputs, if it has one

    @property
    def experts(self) -> int:
        """Matrices in the stack, 1 for a matrix alone."""
        shape = self.planned.source.shape
        return int(shape[0]) if len(shape) > 2 else 1

    @property
    def hessian(self) -> int:
        """Of one expert: the Hessian of its inputs, and as much the drift or the correction."""
        assert self.planned.fmt
        blocks = column_blocks(self.planned.source.k, self.planned.fmt)
        return 4 * len(blocks) * int(blocks[0].stop) ** 2

    @property
    def is_divided(self) -> bool:
        """Whether experts are encoded one by one, with a library learned from ``learners``."""
        weights = 2 * self.planned.weights
        return self.experts > 1 and self.experts * 2 * self.hessian + weights > WHOLE

    def learners(self) -> NDArray[np.intp]:
        """The experts that the library is learned from, evenly spread."""
        count = min(self.experts, max(2, LEARNED // self.hessian))
        return np.unique(np.linspace(0, self.experts - 1, count).astype(np.intp))

    @property
    def at_once(self) -> int:
        """Experts of a divided stack, or else matrices with the same inputs, that are encoded together."""
        return AT_ONCE if not self.is_divided or self.hessian <= SMALL_HESSIAN else 1

    def peak(self, together: int) -> int:
        """Bytes, beside both copies of the model, while ``together`` matrices with these inputs are done."""
        result, replaced = together * self.planned.nbytes, 2 * self.planned.weights
        # Rows that lie apart are copied, or those of the original model sorted; then the statistics of all.
        shown = 2 * self.inputs + 2 * self.hessian
        if not self.is_divided:
            hessians = (2 * self.experts + 3) * self.hessian
            learning = self.experts * self.hessian  # damped
            encoding = min(self.at_once, together) * (learning + self._encoding(self.planned.weights))
            return shown + result + max(hessians + encoding, replaced)
        weights = self.planned.weights // self.experts
        learning = (2 * len(self.learners()) + 5) * self.hessian + self._encoding(weights + SAMPLE)
        prepared = 2 * self.at_once  # by joblib
        expert = (
            (5 + prepared) * self.hessian + prepared * 2 * weights + self.at_once * self._encoding(weights)
        )
        return shown + result + max(learning, expert, replaced)

    def _encoding(self, weights: int) -> int:
        """Of ``pyquant.gptq.quantize``: target, codes, and what its docstring says."""
        assert self.planned.fmt
        fmt = self.planned.fmt
        width = int(column_blocks(self.planned.source.k, fmt)[0].stop)
        codes = (
            sum(weights // layer.pair for layer in fmt.layers) + 2 * weights // GROUP + 2 * weights // fmt.sb
        )
        more = 8 * (len(fmt.layers) - 1)
        learning, slab = (12 + more) * min(weights, SAMPLE), (24 + more) * min(weights, SLAB)
        rows = 4 * weights + 28 * self.outputs**2 if self.outputs else 0
        return 2 * weights + codes + learning + slab + 36 * width**2 + rows


def require_memory(
    models: int, groups: Sequence[Sequence[Planned]], tokens: int, used: int, two_sided: Collection[str] = ()
) -> None:
    """Raises LutraError when the machine has less free memory than calibration takes.

    ``models``: bytes of both copies' activations, keys and values. ``groups``: matrices with the same inputs,
    ``tokens`` of them. Each token meets ``used`` experts, of which the last matrix has inputs of its own.
    ``two_sided``: matrices with a Hessian of their outputs.
    """

    def inputs(p: Planned) -> int:
        is_own = len(p.source.shape) > 2 and "_down" in p.name
        return 4 * tokens * (used if is_own else 1) * p.source.k

    def footprint(group: Sequence[Planned]) -> Footprint:
        outputs = max(p.source.rows if p.name in two_sided else 0 for p in group)
        return Footprint(group[0], inputs(group[0]), outputs)

    largest = max(footprint(group).peak(len(group)) for group in groups)
    needed, free = PROGRAM + models + largest, free_memory()
    if needed > free:
        raise LutraError(
            f"calibration takes about {needed / 1e9:.1f} GB of memory, {free / 1e9:.1f} GB are free: "
            "end other programs, take fewer --calibration-tokens, or add --no-calibration"
        )
