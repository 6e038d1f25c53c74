#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Signal to noise of every type on normally distributed weights, and what a second layer of codes costs.

    scripts/layers.py types      # the figures of gguf_tools/formats/catalog.py and docs/RECIPES.md
    scripts/layers.py layers     # the table of docs/BAKEOFF.md: layer one as it is, and both fitted in turn

A million weights, libraries learned from all of them, no calibration; dB.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))
from gguf_tools.formats import codebook
from gguf_tools.formats.family import CB_FORMATS
from pyquant import encode_layers, in_order, learn, learn_second
from pyquant.arguments import Shape
from pyquant.codebook import encode_shape, learn_shape
from pyquant.layers import First, encode_layer, learn_layer, limits

WEIGHTS = np.random.default_rng(1).standard_normal((1024, 1024), dtype=np.float32)
# Bits per code and weights per code of first layers, and of second ones.
LAYERS = {
    (4, 1): [(1, 1), (2, 1), (4, 2), (3, 1), (4, 1)],
    (3, 1): [(1, 1), (4, 2)],
    (4, 2): [(1, 1), (2, 1), (4, 2)],
}
TURNS = 12


def decibels(w_hat: np.ndarray) -> float:
    """Signal to noise of all weights."""
    noise = np.square(WEIGHTS - w_hat, dtype=np.float64).sum()
    return float(10 * np.log10(np.square(WEIGHTS, dtype=np.float64).sum() / noise))


def types() -> Iterator[str]:
    """A line per type: what the encoder of ``lutra convert --no-calibration`` makes of the weights."""
    for fmt in sorted(CB_FORMATS.values(), key=lambda fmt: (-fmt.sb, fmt.bpw)):
        libraries = [learn(WEIGHTS, fmt)]
        if fmt.second:
            libraries.append(learn_second(WEIGHTS, libraries[0], fmt))
        parts = in_order([encode_layers(WEIGHTS, libraries, fmt)], libraries)
        data = np.concatenate([part.reshape(-1).view(np.uint8) for part in parts])
        yield f"{fmt.name:8} {fmt.bpw:.4f} {decibels(codebook.dequantize(data, *WEIGHTS.shape, fmt)):.2f}"


def layers() -> Iterator[str]:
    """A row per combination: one layer, two with the first as it is, both fitted in turn."""
    yield "| bits of layer one | of layer two | bpw | dB | both fitted | layer one of those |"
    yield "|---|---|---|---|---|---|"
    for (bits, pair), seconds in LAYERS.items():
        shape = Shape(bits, pair, 256)
        library = learn_shape(WEIGHTS, shape)
        codes, selectors, d, _ = encode_shape(WEIGHTS, library, shape)
        first, bpw = First.of(codes, selectors, d, library, shape), bits / pair + 0.3125
        yield f"| {named(shape)} | | {bpw:.2f} | {decibels(weights(first)):.2f} | | |"
        for second in (Shape(*other, 256) for other in seconds):
            own = learn_layer(first.rest(WEIGHTS), first, library, second)
            other, _ = encode_layer(first.rest(WEIGHTS), first, own, second)
            over = First.of(other, selectors, d, own, second)
            both = decibels(weights(first) + weights(over))
            fitted, of_first = in_turn(shape, second, codes, other, first, over)
            total = bpw + second.bits / second.pair
            cells = f"{total:.2f} | {both:.2f} | {fitted:.2f} | {of_first:.2f}"
            yield f"| {named(shape)} | {named(second)} | {cells} |"


def named(shape: Shape) -> str:
    """Its bits per code."""
    return f"{shape.bits} for two weights" if shape.pair == 2 else str(shape.bits)


def weights(layer: First) -> np.ndarray:
    """What a layer stands for."""
    return layer.entries * np.repeat(layer.d.astype(np.float32), 256, axis=1)


def in_turn(
    shape: Shape, second: Shape, codes: np.ndarray, other: np.ndarray, first: First, over: First
) -> tuple[float, float]:
    """dB of both layers, and of the first alone: each gets in turn the best entries beside the other layer,
    then the nearest codes.
    """
    for _ in range(TURNS):
        rest = over.rest(WEIGHTS)
        library = centroids(rest, codes, over, shape)
        codes, _ = encode_layer(rest, over, library, shape)
        first = First.of(codes, first.selectors, first.d, library, shape)
        rest = first.rest(WEIGHTS)
        library = centroids(rest, other, first, second)
        other, _ = encode_layer(rest, first, library, second)
        over = First.of(other, first.selectors, first.d, library, second)
    return decibels(weights(first) + weights(over)), decibels(weights(first))


def centroids(rest: np.ndarray, codes: np.ndarray, beside: First, shape: Shape) -> np.ndarray:
    """The library whose entries are best for these codes, beside another layer."""
    points = 32 // shape.pair
    table = np.repeat(beside.selectors.astype(np.intp), points, axis=1)
    d = np.repeat(beside.d.astype(np.float64), 256 // 32 * points, axis=1).reshape(-1)
    x = rest.reshape(len(rest), -1, shape.pair, points)
    library = np.zeros(shape.library_shape)
    for weight in range(shape.pair):
        place, size = (table << shape.bits | codes).reshape(-1), shape.tables << shape.bits
        share = np.bincount(place, d * x[:, :, weight].reshape(-1), size)
        library[:, weight] = (share / np.maximum(np.bincount(place, d * d, size), 1e-30)).reshape(
            shape.tables, -1
        )
    low, high = limits(codes, beside, shape)
    return np.clip(np.clip(np.rint(library), low, high), -127, 127).astype(np.int8)


def main() -> None:
    """Print one of the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("table", choices=("types", "layers"))
    for line in types() if parser.parse_args().table == "types" else layers():
        print(line, flush=True)


if __name__ == "__main__":
    main()
