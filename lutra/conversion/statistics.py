# SPDX-License-Identifier: MIT
"""What calibration knows of a matrix: the Hessian of its inputs, and their drift from the original's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pyquant.gptq import slices

RIDGE = 0.02  # of the Hessian's mean diagonal, in the regression on the drift
SHIFT = 0.5  # of the way from the output behind the quantized layers to the original one
PRIOR = 512  # tokens of all that count beside the tokens of one expert

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Statistics:
    """Of the inputs of a matrix: the Hessian X^T X / tokens, and the drift (X0 - X)^T X / tokens.

    Both float32 (blocks, b, b), of the ``column_blocks`` of the matrix; zero beyond its last column.
    """

    tokens: int
    hessian: Array
    drift: Array

    @classmethod
    def of(
        cls,
        inputs: Array,
        original: Array,
        blocks: Sequence[slice],
        threads: int,
        weights: Array | None = None,
    ) -> Statistics:
        """From inputs (tokens, k) behind the quantized layers and in the original model; ``weights``, float32
        (tokens,) of mean 1: how much each token counts.
        """
        tokens, b = len(inputs), blocks[0].stop
        hessian, drift = (np.zeros((len(blocks), b, b), np.float32) for _ in range(2))
        scale = np.float32(1 / max(tokens, 1))
        for i, columns in enumerate(blocks):
            m = columns.stop - columns.start
            _sums(
                inputs[:, columns], original[:, columns], weights,
                hessian[i, :m, :m], drift[i, :m, :m], scale, threads,
            )  # fmt: skip
        return cls(tokens, hessian, drift)

    def blended(self, prior: Statistics) -> Statistics:
        """With those of all tokens counting as PRIOR more."""
        share = np.float32(self.tokens / (self.tokens + PRIOR))
        hessian = share * self.hessian + (1 - share) * prior.hessian
        return Statistics(self.tokens, hessian, share * self.drift + (1 - share) * prior.drift)

    def correction(self, blocks: Sequence[slice]) -> Array:
        """Adding ``w @ correction``, block by block, moves the outputs of weights w towards those of the
        original model, as far as these inputs can make up for the drift.
        """
        out = np.zeros_like(self.drift)
        for i, columns in enumerate(blocks):
            m = columns.stop - columns.start
            h = self.hessian[i, :m, :m].copy()
            h[np.diag_indices(m)] += max(RIDGE * h.trace() / m, np.finfo(np.float32).tiny)
            out[i, :m, :m] = np.float32(SHIFT) * np.linalg.solve(h, self.drift[i, :m, :m].T).T
        return out


def _sums(
    x: Array,
    original: Array,
    weights: Array | None,
    hessian: Array,
    drift: Array,
    scale: np.float32,
    threads: int,
) -> None:
    """x^T x and (original - x)^T x, times ``scale``; of the former, which is symmetric, half is computed."""

    def part(columns: slice) -> None:
        own = x[:, columns]
        moved = original[:, columns] - own
        if weights is not None:
            own, moved = own * weights[:, None], moved * weights[:, None]
        hessian[columns, columns.start :] = scale * (own.T @ x[:, columns.start :])
        hessian[columns.start :, columns] = hessian[columns, columns.start :].T
        drift[columns] = scale * (moved.T @ x)

    slices(x.shape[1], part, threads)
