# SPDX-License-Identifier: MIT
"""What rounding each matrix costs in a file, from two measurements with the errors of a real encoding, and
what rounding its inputs does.

*Alone*: a matrix has its errors in an otherwise exact model. In a calibrated file these cost less, for the
matrices behind it make up for some of what they do. *In the file*: the matrix becomes exact, and what makes
up for its errors stays, so that this wins less than they cost. The truth is in the middle: docs/RECIPES.md.
Inputs get a second plane of int8, which rounds next to nothing.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gguf_tools.reader import GGUFFile
from lutra.console import progress
from lutra.runtime.model import Model
from lutra.runtime.predictor import Predictor

LENGTH = 128  # tokens of a sequence, at most
TOKENS = 512, 1024  # of the text, for large models and for small ones
WORK = 3e12  # weights x tokens that may be computed before layers share a measurement: a minute on two cores
BANDS = 3  # of layers that share one, at least

Array = NDArray[np.float32]


class Measured(NamedTuple):
    """Nats per token, by matrix: that its weights are rounded, that its inputs are, to 8 bits; and how that
    was measured.
    """

    weights: dict[str, float]
    inputs: dict[str, float]
    how: str


class Matrices:
    """The matrices in a GGUF of F16, flat. The runtime, which maps the file, computes with what is written to
    them, if they are ``writable``.
    """

    def __init__(self, path: Path, *, writable: bool = False) -> None:
        with GGUFFile(path) as file:
            self._places = file.tensors
        self._file = np.memmap(path, np.float16, "r+" if writable else "r")

    def __getitem__(self, name: str) -> NDArray[np.float16]:
        place = self._places[name]
        weights: NDArray[np.float16] = self._file[place.offset // 2 :][: place.weights]
        return weights


def measure(
    original: Path,
    encoded: Path,
    scratch: Path,
    aims: Path,
    rounded: Mapping[str, Callable[[], NDArray[np.float16]]],
    pieces: Sequence[Sequence[int]],
    threads: int,
) -> Measured:
    """KL divergences from ``original``.

    ``encoded`` is a file, ``rounded`` what its matrices stand for, by name, ``aims`` what they were rounded
    from; ``scratch`` becomes a copy of ``original`` that is written to. Raises LutraError when a model cannot
    be computed.
    """
    shutil.copyfile(original, scratch)
    exact, aim, now = Matrices(original), Matrices(aims), Matrices(scratch, writable=True)
    names = list(rounded)
    weights = sum(len(exact[name]) for name in names)
    pieces = sample(pieces, weights)
    tokens = sum(map(len, pieces))
    bands, groups = group(names, 0), group(names, WORK / weights / tokens)
    with Model(original, threads=threads, n_ctx=LENGTH) as model:
        expected = [predict(model, list(piece)) for piece in pieces]

    def cost(predicted: Callable[[list[int]], Array]) -> float:
        lost = (
            float((np.exp(log_p) * (log_p - predicted(list(piece)))).sum(dtype=np.float64))
            for log_p, piece in zip(expected, pieces, strict=True)
        )
        return sum(lost) / tokens

    inputs: dict[str, float] = {}
    with (
        Predictor(encoded, len(pieces[0]), 0, threads=threads, cache_types=("f16", "f16")) as predictor,
        Model(scratch, threads=threads, n_ctx=LENGTH) as model,
        progress(2 * len(bands) + len(groups), "group", "measuring sensitivity") as bar,
    ):

        def with_planes(finer: Sequence[str]) -> float:
            planes = dict.fromkeys(names, 1) | dict.fromkeys(finer, 2)
            return cost(lambda tokens: log_softmax(predictor.logits(tokens, planes=planes)))

        together, in_two = with_planes([]), with_planes(names)
        for band in bands:
            inputs[band[0]] = max(together - with_planes(band), 0.0)
            bar.update()
        alone: dict[str, float] = {}
        for matrices in groups:
            for name in matrices:
                now[name][:] += rounded[name]().reshape(-1) - aim[name]
            alone |= dict.fromkeys(matrices, max(cost(partial(predict, model)), 0.0) / len(matrices))
            for name in matrices:
                now[name][:] = exact[name]
            bar.update()
        for name, weights_of in rounded.items():
            now[name][:] = weights_of().reshape(-1)
        whole = cost(partial(predict, model))
        won: dict[str, float] = {}
        for band in bands:
            for name in band:
                now[name][:] = aim[name]
            won[band[0]] = whole - cost(partial(predict, model))
            for name in band:
                now[name][:] = rounded[name]().reshape(-1)
            bar.update()
    of_weights: dict[str, float] = {}
    of_inputs: dict[str, float] = {}
    together_share = max(together - in_two, 0.0) / max(sum(inputs.values()), 1e-12)
    for band in bands:
        share = won[band[0]] / max(sum(alone[name] for name in band), 1e-12)
        of_weights |= {name: (1 + min(max(share, 0.0), 1.0)) / 2 * alone[name] for name in band}
        of_inputs |= dict.fromkeys(band, together_share * inputs[band[0]] / len(band))
    how = f"{2 * len(bands) + len(groups)} measurements for {len(names)} matrices, {tokens} tokens each"
    return Measured(of_weights, of_inputs, how)


def sample(pieces: Sequence[Sequence[int]], weights: int) -> list[list[int]]:
    """The sequences to measure a model of so many weights with."""
    fewest, most = TOKENS
    tokens = min(most, max(fewest, int(WORK / weights / (8 * BANDS))))
    spread = np.unique(np.linspace(0, len(pieces) - 1, max(1, tokens // LENGTH)).astype(int))
    return [list(pieces[i][:LENGTH]) for i in spread]


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


def predict(runtime: Model, tokens: list[int]) -> Array:
    """Logarithms of the probabilities of what follows each token, (tokens, vocabulary)."""
    return log_softmax(np.ctypeslib.as_array(runtime.logits(tokens), (len(tokens), runtime.n_vocab)))


def log_softmax(logits: Array) -> Array:
    """Logarithms of probabilities, of each row."""
    logits = logits - logits.max(axis=1, keepdims=True)
    log_p: Array = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return log_p
