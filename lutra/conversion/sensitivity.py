# SPDX-License-Identifier: MIT
"""What errors in each matrix cost: the model predicts a text with noise in one group of matrices at a time.

The noise has a known size relative to the weights; its cost is the KL divergence of the predictions to those
of the untouched model. Small errors cost in proportion to their energy, and the costs of several matrices add
up, so that one measurement predicts what any type of any matrix will cost.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gguf_tools.formats.family import GROUP
from gguf_tools.reader import GGUFFile
from gguf_tools.sources.tensors import SourceTensor
from lutra.console import progress
from lutra.conversion import text as calibration
from lutra.runtime.model import Model

NOISE = 17.4  # dB below the weights: the error of 3-bit types
LENGTH = 128  # tokens of a sequence, at most
TOKENS = 512  # of the text, four times as many for small models
WORK = 4e12  # weights x tokens that may be computed before layers share a measurement: a minute on two cores
BANDS = 3  # of layers that share one, at least
BLOCK = 1 << 22  # weights in memory at a time, as float32

Array = NDArray[np.float32]


def measure(
    model: Path, tensors: Sequence[SourceTensor], text: Path, threads: int
) -> tuple[dict[str, float], str]:
    """The cost of noise in each matrix (KL divergence, nats per token) by name, and how it was measured.

    ``model`` has ``tensors`` in F16 and is written to: the runtime maps it and sees the changes. It is
    restored in the end. Raises LutraError when it cannot be loaded or the text is too short.
    """
    matrices = [t for t in tensors if not t.keeps_f32]
    weights = sum(t.rows * t.k for t in matrices)
    tokens = 4 * TOKENS if 4 * TOKENS * weights * len(matrices) < WORK else TOKENS
    groups = group([t.name for t in matrices], WORK / weights / tokens)
    with Model(model, threads=threads, n_ctx=LENGTH) as runtime:
        pieces = calibration.read_pieces(text, runtime, calibration.TOKENS)
        spread = np.unique(np.linspace(0, len(pieces) - 1, tokens // LENGTH).astype(int))
        pieces = [pieces[i][:LENGTH] for i in spread]
        predicted = sum(map(len, pieces))
        expected = [_predict(runtime, piece) for piece in pieces]
        weights_of = _Weights(model, matrices)
        costs: dict[str, float] = {}
        with progress(len(groups), "group", "measuring sensitivity") as bar:
            for names in groups:
                weights_of.write(names, NOISE)
                cost = sum(
                    float((np.exp(log_p) * (log_p - _predict(runtime, piece))).sum(dtype=np.float64))
                    for log_p, piece in zip(expected, pieces, strict=True)
                )
                weights_of.write(names)
                share = max(cost, 0.0) / (predicted * len(names))  # rounding may leave less than nothing
                costs |= dict.fromkeys(names, share)
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


class _Weights:
    """The matrices in a mapped F16 file, to be overwritten."""

    def __init__(self, model: Path, matrices: Sequence[SourceTensor]) -> None:
        with GGUFFile(model) as file:
            self._places = file.tensors
        self._file = np.memmap(model, np.float16, "r+")
        self._sources: Mapping[str, SourceTensor] = {t.name: t for t in matrices}

    def write(self, names: Sequence[str], noise: float | None = None) -> None:
        """Put the source's weights in place, with white noise ``noise`` dB below each group of 32 weights."""
        rng = np.random.default_rng(0)
        for name in names:
            tensor, start = self._sources[name], self._places[name].offset // 2
            step = max(1, BLOCK // tensor.k)
            for row in range(0, tensor.rows, step):
                w = tensor.read(row, row + step)
                if noise is not None:
                    w = w + 10 ** (-noise / 20) * _rms(w) * rng.standard_normal(w.shape, np.float32)
                self._file[start + row * tensor.k :][: w.size] = w.reshape(-1)


def _rms(w: Array) -> Array:
    """Root mean square of each weight's group, or of its row where rows are not whole groups; shape of w."""
    size = GROUP if w.shape[1] % GROUP == 0 else w.shape[1]
    squares = (w**2).reshape(len(w), -1, size).mean(axis=2)
    rms: Array = np.sqrt(squares).repeat(size, axis=1)
    return rms


def _predict(runtime: Model, tokens: list[int]) -> Array:
    """Logarithms of the probabilities of what follows each token, (tokens, vocabulary)."""
    logits: Array = np.ctypeslib.as_array(runtime.logits(tokens), (len(tokens), runtime.n_vocab))
    logits = logits - logits.max(axis=1, keepdims=True)
    log_p: Array = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return log_p
