# SPDX-License-Identifier: MIT
"""How far a file's predictions are from the original's, on sequences kept aside from the calibration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lutra.console import progress
from lutra.conversion.sensitivity import predict
from lutra.runtime.model import Model

TOKENS = 8192  # that are computed, at most; half of them count


@dataclass(frozen=True)
class Divergence:
    """KL divergence from the original model and the rise of the cross entropy, nats per token.

    ``kld_error`` and ``rise_error`` are standard errors over ``tokens``.
    """

    kld: float
    kld_error: float
    rise: float
    rise_error: float
    tokens: int

    @property
    def loss(self) -> float:
        """What bounds are compared with: the divergence, or the rise where it is clearly larger.

        A model that predicts the text as well as it can rises by its divergence. Where it does not, the rise
        says little, and less the fewer tokens there are.
        """
        return max(self.kld, self.rise - 2 * self.rise_error)

    def __str__(self) -> str:
        rise, error = 100 * np.expm1(self.rise), 100 * np.exp(self.rise) * self.rise_error
        return (
            f"KL divergence {self.kld:.5f} ± {self.kld_error:.5f}, perplexity {rise:+.2f} ± {error:.2f} %, "
            f"{self.tokens} tokens"
        )


def divergence(
    model: Path,
    other: Path,
    pieces: Sequence[Sequence[int]],
    threads: int,
    cache: str = "f16",
) -> Divergence:
    """Of ``other``, with keys and values of a type, from ``model``, over the second halves of ``pieces``.

    Raises LutraError when one of them cannot be computed.
    """
    length = max(map(len, pieces))
    diverging, rising = [], []
    with (
        Model(model, threads=threads, n_ctx=length) as original,
        Model(other, threads=threads, n_ctx=length, cache_types=(cache, cache)) as changed,
        progress(sum(map(len, pieces)), "tok", "measuring the loss") as bar,
    ):
        for piece in pieces:
            half = slice(len(piece) // 2, len(piece) - 1)
            tokens, here = list(piece), np.arange(half.stop - half.start)
            before, now = predict(original, tokens)[half], predict(changed, tokens)[half]
            difference = before - now
            diverging.append((np.exp(before) * difference).sum(axis=1, dtype=np.float64))
            rising.append(difference[here, tokens[half.start + 1 : half.stop + 1]].astype(np.float64))
            bar.update(len(piece))
    kld, rise = np.concatenate(diverging), np.concatenate(rising)
    root = np.sqrt(max(1, len(kld) - 1))
    return Divergence(
        float(kld.mean()), float(kld.std() / root), float(rise.mean()), float(rise.std() / root), len(kld)
    )
