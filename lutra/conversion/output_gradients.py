# SPDX-License-Identifier: MIT
"""What errors of a matrix's outputs do to the predictions: the other side of its Hessian.

To second order the KL divergence that an error E of a matrix costs is half the mean of (g^T E x)^2 over
tokens. x are the inputs; g is the gradient, with respect to the outputs, of the log-probability of a token
drawn from the model itself (the Fisher information). It is approximated by a Kronecker product, as in
"Model-Preserving Adaptive Rounding" (arXiv 2505.22988): rows make up for each other's errors as columns do.
Here g g^T x x^T is split evenly: tokens count by |g| in the Hessian of the inputs, and g g^T / |g| is that of
the outputs.

The split does not hold where rows are gated token by token: only the outputs of READERS are added up
(docs/CALIBRATION.md#both-sides has what each kind gains).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from gguf_tools.errors import LutraError
from gguf_tools.sources.tensors import EMBEDDING, Source
from lutra.console import progress
from lutra.conversion.network import network_of
from lutra.conversion.statistics import Array

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from lutra.conversion.network import Network, Weights

READERS = re.compile(r"\.(attn_v|attn_output|ffn_down)\.weight$")  # whose outputs are read as they are
NORM = "blk.0.attn_norm.weight"  # what nearly all networks begin with
SMALLEST = 1e-20  # of |g|


@dataclass(frozen=True)
class OutputGradients:
    """By name of the matrix: how much each token counts, float32 (tokens,), and E[g g^T / |g|], (n, n)."""

    tokens: dict[str, Array] = field(default_factory=dict)
    rows: dict[str, Array] = field(default_factory=dict)

    def arrays(self) -> dict[str, Array]:
        """Them by one name each."""
        kinds = {"tokens": self.tokens, "rows": self.rows}
        return {f"{kind} {name}": values for kind, of in kinds.items() for name, values in of.items()}

    @classmethod
    def of(cls, arrays: Mapping[str, Array]) -> OutputGradients:
        """From ``arrays``."""
        found = cls()
        for key, values in arrays.items():
            kind, name = key.split(" ", 1)
            getattr(found, kind)[name] = values
        return found

    def shared(self, names: Sequence[str]) -> OutputGradients:
        """Those of matrices with the same inputs, for which tokens count as in the mean of all."""
        known = [self.tokens[name] for name in names if name in self.tokens]
        rows = {name: self.rows[name] for name in names if name in self.rows}
        mean: Array | None = np.mean(known, axis=0) if known else None
        return OutputGradients({} if mean is None else dict.fromkeys(names, mean), rows)

    def weights(self, name: str, count: int) -> Array | None:
        """How much each of ``count`` tokens counts in the inputs of a matrix, with mean 1; None: all alike.

        The last block may have computed every n-th token only.
        """
        if name not in self.tokens or not count:
            return None
        sizes = self.tokens[name]
        sizes = sizes[:: -(-len(sizes) // count)]
        if len(sizes) != count:  # the runtime has other rows than one for each token
            return None
        counts: Array = (sizes / max(float(sizes.mean()), SMALLEST)).astype(np.float32)
        return counts


def measure(
    source: Source,
    original: Weights,
    pieces: Sequence[Sequence[int]],
    *,
    at_once: int,
    seed: int,
    threads: int,
) -> OutputGradients:
    """For the model ``source``, whose tensors are ``original`` (``tune.load``), on the text ``pieces``.

    ``at_once``: tokens that are computed together; on a CPU each sequence of them by itself, on ``threads``
    threads, of which the result does not depend. The same ``seed`` draws the same tokens. Raises LutraError
    when a prediction is not finite.
    """
    import torch

    network = network_of(source)
    device = original[EMBEDDING].device
    length = len(pieces[0])
    count, size = len(pieces) * length, max(1, at_once // length)
    is_cpu = device.type == "cpu"
    torch.set_num_threads(1)

    def of(numbers: range) -> _Sums:
        sums = _Sums(network, original)
        random = torch.Generator(device).manual_seed(seed * len(pieces) + numbers.start)
        sums.add(torch.tensor([pieces[i] for i in numbers], device=device), random)
        return sums

    tokens: dict[str, Array] = {}
    rows: dict[str, Tensor] = {}
    with (
        ThreadPoolExecutor(
            threads if is_cpu else 1, initializer=torch.set_num_threads, initargs=(1,)
        ) as pool,
        progress(count, "tok", "gradients") as bar,
    ):
        for start in range(0, len(pieces), size):
            stop = min(start + size, len(pieces))
            parts = [range(i, i + 1) for i in range(start, stop)] if is_cpu else [range(start, stop)]
            for numbers, sums in zip(parts, pool.map(of, parts), strict=True):
                # Copied: what a thread leaves among its large tensors would keep their memory.
                for name, sizes in sums.sizes.items():
                    known = tokens.setdefault(name, np.empty(count, np.float32))
                    known[numbers.start * length : numbers.stop * length] = sizes.cpu().numpy()
                for name, total in sums.rows.items():
                    rows[name] = rows[name] + total if name in rows else total.clone()
            bar.update((stop - start) * length)
    return OutputGradients(tokens, {name: (total / count).cpu().numpy() for name, total in rows.items()})


class _Sums:
    """Of some sequences: |g| of every token, and the sum of g g^T / |g|."""

    def __init__(self, network: Network, original: Weights) -> None:
        self._network, self._original = network, original
        self.sizes: dict[str, Tensor] = {}
        self.rows: dict[str, Tensor] = {}

    def add(self, tokens: Tensor, random: torch.Generator) -> None:
        import torch

        # Gradients are computed of what comes behind.
        first = NORM if NORM in self._original else EMBEDDING
        start = {first: self._original[first].detach().requires_grad_()}
        predict = self._network.watched({**self._original, **start}, self._see)
        likely = predict(tokens).log_softmax(-1)
        if likely.isnan().any():
            raise LutraError(
                "the model's predictions are not finite: its weights may be damaged, or too large; see "
                "whether it converts without --tune"
            )
        with torch.no_grad():
            drawn = torch.multinomial(likely.exp().flatten(0, 1), 1, generator=random)
        likely.flatten(0, 1).gather(1, drawn).sum().backward()

    def _see(self, name: str, gradient: Tensor) -> None:
        g = gradient.flatten(0, -2)
        size = self.sizes[name] = g.square().sum(-1).sqrt()
        if READERS.search(name):
            g = g / size.clamp(min=SMALLEST).sqrt()[:, None]
            self.rows[name] = g.T @ g
