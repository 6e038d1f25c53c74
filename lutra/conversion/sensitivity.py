# SPDX-License-Identifier: MIT
"""What errors in each matrix cost: the model predicts a text with errors in one group of matrices at a time.

The errors are drawn from those of a real encoding (``losses``): every row gets a random mixture of the errors
of some rows, so that they have the same directions. Their cost is the KL divergence of the predictions to
those of the untouched model. Small errors cost in proportion to the loss of the matrix's outputs, and the
costs of several matrices add up, so that one measurement predicts what any type of any matrix will cost.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gguf_tools.reader import GGUFFile
from gguf_tools.sources.tensors import SourceTensor
from lutra.console import progress
from lutra.conversion.losses import Losses
from lutra.runtime.model import Model

LENGTH = 128  # tokens of a sequence, at most
TOKENS = 512  # of the text, four times as many for small models
WORK = 4e12  # weights x tokens that may be computed before layers share a measurement: a minute on two cores
BANDS = 3  # of layers that share one, at least
BLOCK = 1 << 22  # weights in memory at a time, as float32

Array = NDArray[np.float32]


def measure(
    model: Path,
    tensors: Sequence[SourceTensor],
    losses: Mapping[str, Losses],
    pieces: Sequence[Sequence[int]],
    threads: int,
) -> tuple[dict[str, float], str]:
    """What a loss of 1 of each matrix's outputs costs (KL divergence, nats per token) by name, and how that
    was measured.

    ``model`` has ``tensors`` in F16 and is written to: the runtime maps it and sees the changes. It is
    restored in the end. ``pieces`` are the sequences to predict some of. Raises LutraError when the model
    cannot be loaded.
    """
    matrices = [t for t in tensors if t.name in losses]
    weights = sum(t.rows * t.k for t in matrices)
    tokens = 4 * TOKENS if 4 * TOKENS * weights * len(matrices) < WORK else TOKENS
    groups = group([t.name for t in matrices], WORK / weights / tokens)
    spread = np.unique(np.linspace(0, len(pieces) - 1, max(1, tokens // LENGTH)).astype(int))
    chosen = [list(pieces[i][:LENGTH]) for i in spread]
    predicted = sum(map(len, chosen))
    errors = Errors(model, tensors, losses)
    costs: dict[str, float] = {}
    with Model(model, threads=threads, n_ctx=LENGTH) as runtime:
        expected = [predict(runtime, piece) for piece in chosen]
        with progress(len(groups), "group", "measuring sensitivity") as bar:
            for names in groups:
                errors.write(dict.fromkeys(names, 1.0))
                cost = sum(
                    float((np.exp(log_p) * (log_p - predict(runtime, piece))).sum(dtype=np.float64))
                    for log_p, piece in zip(expected, chosen, strict=True)
                )
                errors.remove(names)
                lost = sum(losses[name].of_errors for name in names)
                # Rounding may leave less than nothing.
                costs |= dict.fromkeys(names, max(cost, 0.0) / predicted / lost if lost else 0.0)
                bar.update()
    how = f"{len(groups)} measurements for {len(matrices)} matrices, {predicted} tokens each"
    return costs, how


def group(names: Sequence[str], most: float) -> list[list[str]]:
    """The matrices that are measured together: each alone if there are at most ``most``, else the same ones
    of neighbouring layers, in at least BANDS bands. The first layer, more sensitive than others, is a band.
    """
    places = {name: re.fullmatch(r"blk\.(\d+)\.(.+)", name) for name in names}
    layers = 1 + max((int(place[1]) for place in places.values() if place), default=0)
    roles = len({place[2] if place else name for name, place in places.items()})
    bands = layers if len(names) <= most else min(layers, max(BANDS, int(most / roles)))
    groups: dict[tuple[str, int], list[str]] = {}
    for name, place in places.items():
        layer = int(place[1]) if place else 0
        key = (place[2] if place else name, layer and 1 + (layer - 1) * (bands - 1) // (layers - 1))
        groups.setdefault(key, []).append(name)
    return list(groups.values())


class Errors:
    """The matrices in a mapped F16 file, to be overwritten with errors such as encodings make."""

    def __init__(self, model: Path, tensors: Sequence[SourceTensor], losses: Mapping[str, Losses]) -> None:
        with GGUFFile(model) as file:
            self._places = file.tensors
        self._file = np.memmap(model, np.float16, "r+")
        self._sources = {t.name: t for t in tensors}
        self._losses = losses

    def write(self, sizes: Mapping[str, float]) -> None:
        """Put errors into matrices: by name, how large relative to those of ``losses``, squared."""
        rng = np.random.default_rng(0)
        for name, size in sizes.items():
            errors = self._losses[name].errors
            scale = np.float32(np.sqrt(size / len(errors)))
            for place, w in self._rows(name):
                mixture = rng.standard_normal((len(w), len(errors)), np.float32) @ errors
                place[:] = w + scale * np.linalg.norm(w, axis=1, keepdims=True) * mixture

    def remove(self, names: Sequence[str]) -> None:
        """Put the source's weights back."""
        for name in names:
            for place, w in self._rows(name):
                place[:] = w

    def _rows(self, name: str) -> Iterator[tuple[NDArray[np.float16], Array]]:
        """Where rows lie in the file, (n, k), and what the source has there."""
        tensor, start = self._sources[name], self._places[name].offset // 2
        step = max(1, BLOCK // tensor.k)
        for row in range(0, tensor.rows, step):
            w = tensor.read(row, min(row + step, tensor.rows))
            yield self._file[start + row * tensor.k :][: w.size].reshape(w.shape), w


def predict(runtime: Model, tokens: list[int]) -> Array:
    """Logarithms of the probabilities of what follows each token, (tokens, vocabulary)."""
    logits: Array = np.ctypeslib.as_array(runtime.logits(tokens), (len(tokens), runtime.n_vocab))
    logits = logits - logits.max(axis=1, keepdims=True)
    log_p: Array = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return log_p
