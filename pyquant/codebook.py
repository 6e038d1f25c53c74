# SPDX-License-Identifier: MIT
"""The library of a tensor: learned by k-means over tables, then used to encode its rows.

The error that both minimise is ``sum(importance * (w - d * entry)**2)`` over the weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gguf_tools.formats.family import ROWS, CBFormat
from pyquant._native import check, ffi, native, pointer, thread_count
from pyquant.arguments import (
    Rows,
    Shape,
    check_codes,
    check_importance,
    check_library,
    check_matrix,
    read_rows,
)

SAMPLE = 1 << 21  # weights that a library is learned from, at most
SMALLEST_BATCH = 1 << 14  # weights, where an eighth of the sample is less
CANDIDATES = 4  # tables per group whose error is computed exactly after the coarse search


def learn(
    rows: Rows | NDArray[Any],
    fmt: CBFormat,
    *,
    importance: NDArray[Any] | None = None,
    seed: int = 0,
    threads: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> NDArray[np.int8]:
    """Learn the library of a tensor.

    ``rows``: the weights, shape (rows, k). ``importance``: float32 (k,), or (e, k) for e experts whose
    rows follow each other. The same seed gives the same library whatever the number of threads
    (default: all CPUs). ``progress(n)`` is called as ``n`` more weights are done; the calls add up to
    rows * k. Memory: the sample, at most 2**21 weights (twice with importance).

    Returns int8, shape ``fmt.library_shape``. Raises ValueError for NaN or infinity, zero sizes and wrong
    shapes.
    """
    return learn_shape(
        rows, Shape.of(fmt), importance=importance, seed=seed, threads=threads, progress=progress
    )


def learn_shape(
    rows: Rows | NDArray[Any],
    shape: Shape,
    *,
    importance: NDArray[Any] | None = None,
    seed: int = 0,
    threads: int | None = None,
    progress: Callable[[int], object] | None = None,
    full: bool = False,
) -> NDArray[np.int8]:
    """``learn`` for any member of the family; ``full`` searches all tables, to measure what pruning costs."""
    n, k = check_matrix(rows.shape, shape)
    importance = check_importance(importance, n, k)
    threads = thread_count(threads)
    rng = np.random.default_rng(seed)
    w, weight = _sample(rows, shape, importance, rng)
    library = _initial_library(w, shape, rng)
    doing = f"learning from {w.size} weights"
    created = ffi.new("struct lutra_learner **")
    check(
        native().lutra_learner_new(
            shape.native(), len(w), pointer(w, "float"), pointer(weight, "float"), created
        ),
        doing,
    )
    learner, error = created[0], ffi.new("double *")
    steps = _schedule(len(w), shape.sb)
    try:
        done, total = 0, sum(step.blocks for step in steps)
        for step in steps:
            check(native().lutra_learner_step(
                learner, step.first, step.blocks, step.scales, step.memory, step.revive,
                0 if full else step.candidates, threads, pointer(library, "int8_t"), error,
            ), doing)  # fmt: skip
            if progress:
                before = n * k * done // total
                done += step.blocks
                progress(n * k * done // total - before)
    finally:
        native().lutra_learner_free(learner)
    return library


def encode(
    w: NDArray[Any],
    library: NDArray[np.int8],
    fmt: CBFormat,
    *,
    importance: NDArray[Any] | None = None,
    threads: int | None = None,
) -> NDArray[np.uint8]:
    """Encode rows into strips; of a layered format, into its first layer (``layers`` has the second).

    ``w``: float32 (n, k), n a multiple of 8. ``library``: int8, ``fmt.library_shape``. ``importance``:
    as for ``learn``. How the rows of a tensor are divided over calls does not change the result.

    Returns uint8, the bytes of whole rows. Raises ValueError as ``learn`` does.
    """
    shape = Shape.of(fmt)
    _check_strips(len(w))
    codes, selectors, d, _ = encode_shape(w, library, shape, importance=importance, threads=threads)
    return pack(codes, selectors, d, fmt, threads=threads)


def pack(
    codes: NDArray[np.uint8],
    selectors: NDArray[np.uint16],
    d: NDArray[np.float16],
    fmt: CBFormat,
    *,
    threads: int | None = None,
) -> NDArray[np.uint8]:
    """The result of ``encode_shape`` as strips, uint8, the bytes of whole rows.

    Raises ValueError for rows that are no whole strips, and for codes and selectors that do not exist.
    """
    shape = Shape.of(fmt)
    n, k = check_codes(codes, selectors, d, shape)
    _check_strips(n)
    strips = np.empty(n // ROWS * fmt.block_bytes * (k // fmt.sb), np.uint8)
    check(native().lutra_pack(
        shape.native(), n, k, pointer(codes, "uint8_t"), pointer(selectors, "uint16_t"),
        pointer(d, "uint16_t"), thread_count(threads), pointer(strips, "uint8_t"),
    ), f"packing {n * k} weights")  # fmt: skip
    return strips


def encode_shape(
    w: NDArray[Any],
    library: NDArray[np.int8],
    shape: Shape,
    *,
    importance: NDArray[Any] | None = None,
    threads: int | None = None,
    full: bool = False,
) -> tuple[NDArray[np.uint8], NDArray[np.uint16], NDArray[np.float16], float]:
    """``encode`` for any member of the family, not packed; ``full`` searches all tables.

    Returns codes uint8 (n, k / pair), group by group; selectors uint16 (n, k / group); scales float16
    (n, k / sb); and the weighted squared error.
    """
    n, k = check_matrix(w.shape, shape)
    importance = check_importance(importance, n, k)
    library = check_library(library, shape)
    w = read_rows(w, 0, n)
    codes = np.empty((n, k // shape.pair), np.uint8)
    selectors = np.empty((n, k // shape.group), np.uint16)
    d = np.empty((n, k // shape.sb), np.float16)
    parts = 1 if importance is None else len(importance)
    total, error = 0.0, ffi.new("double *")
    for i in range(parts):
        part = slice(i * n // parts, (i + 1) * n // parts)
        check(native().lutra_encode(
            shape.native(), n // parts, k, pointer(w[part], "float"),
            pointer(None if importance is None else importance[i], "float"), pointer(library, "int8_t"),
            0 if full else CANDIDATES, thread_count(threads), pointer(codes[part], "uint8_t"),
            pointer(selectors[part], "uint16_t"), pointer(d[part], "uint16_t"), error,
        ), f"encoding {w.size} weights")  # fmt: skip
        total += error[0]
    return codes, selectors, d, total


def decode_shape(
    codes: NDArray[np.uint8],
    selectors: NDArray[np.uint16],
    d: NDArray[np.float16],
    library: NDArray[np.int8],
    shape: Shape,
) -> NDArray[np.float32]:
    """The weights that ``encode_shape`` stands for, float32 (n, k)."""
    n, groups = selectors.shape
    entries = np.take_along_axis(  # (n, groups, pair, points)
        library[selectors], codes.reshape(n, groups, 1, shape.group // shape.pair).astype(np.intp), axis=3
    )
    return (entries.reshape(n, -1, shape.sb) * d.astype(np.float32)[..., None]).reshape(n, -1)


def look_up(
    codes: NDArray[np.uint8],
    selectors: NDArray[np.uint16],
    d: NDArray[Any],
    entries: NDArray[Any],
    shape: Shape,
) -> NDArray[np.float32]:
    """The weights if ``entries``, which need not be int8, were the library, and ``d`` the scales; (n, k)."""
    n, k = len(codes), codes.shape[1] * shape.pair
    w = np.empty((n, k), np.float32)
    check(native().lutra_look_up(
        shape.native(), n, k, pointer(np.ascontiguousarray(entries, np.float32), "float"),
        pointer(np.ascontiguousarray(codes), "uint8_t"), pointer(np.ascontiguousarray(selectors), "uint16_t"),
        pointer(np.ascontiguousarray(d, np.float32), "float"), pointer(w, "float"),
    ), f"decoding {w.size} weights")  # fmt: skip
    return w


def _check_strips(n: int) -> None:
    if n % ROWS:
        raise ValueError(f"{n} rows: strips need a multiple of {ROWS}")


def runs(n: int, k: int) -> list[slice]:
    """The rows of a sample: all of them when they fit, evenly spread runs as long as a strip otherwise."""
    wanted = min(n, max(1, SAMPLE // k))
    if wanted == n:
        return [slice(0, n)]
    run = min(ROWS, wanted)
    starts = np.unique(np.linspace(0, n - run, -(-wanted // run)).astype(np.int64))
    return [slice(start, start + run) for start in starts.tolist()]


def _sample(
    rows: Rows | NDArray[Any], shape: Shape, importance: NDArray[np.float32] | None, rng: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
    """Super-blocks to learn from in random order, (blocks, sb), and their importances."""
    n, k = rows.shape
    pieces, weights = [], []
    for run in runs(n, k):
        pieces.append(read_rows(rows, run.start, run.stop).reshape(-1, shape.sb))
        if importance is not None:
            expert = np.arange(run.start, run.stop) // (n // len(importance))
            weights.append(importance[expert].reshape(-1, shape.sb))
    order = rng.permutation(sum(len(p) for p in pieces))
    sample = np.concatenate(pieces)[order]
    return sample, np.concatenate(weights)[order] if weights else None


def _initial_library(w: NDArray[np.float32], shape: Shape, rng: np.random.Generator) -> NDArray[np.int8]:
    """Tables of random points, each scaled to the energy of a random group."""
    tables, pair, entries = shape.library_shape
    groups = w.reshape(-1, shape.group)
    amax = np.repeat(np.abs(w).max(axis=1), shape.sb // shape.group)
    chosen = rng.integers(len(groups), size=(tables, 1 + entries))
    scale = 127 / np.maximum(amax[chosen], 1e-30)
    x = groups[chosen] * scale[..., None]
    rms = np.sqrt((x**2).mean(axis=2))
    position = rng.integers(shape.group // pair, size=(tables, entries, 1))
    codes = x[:, 1:].reshape(tables, entries, pair, -1)
    points = np.take_along_axis(codes, position[..., None], axis=3)[..., 0]
    points *= (rms[:, :1] / np.maximum(rms[:, 1:], 1e-9))[..., None]
    return np.ascontiguousarray(np.clip(np.rint(points), -127, 127).astype(np.int8).transpose(0, 2, 1))


@dataclass(frozen=True)
class Step:
    """One call of lutra_learner_step."""

    first: int
    blocks: int
    scales: bool
    memory: float
    revive: float
    candidates: int


def _schedule(blocks: int, sb: int) -> list[Step]:
    """Eighths of the sample with a memory: a rough search while tables still move to where the error is,
    a finer one to settle them; then all of the sample once, with the scales.
    """
    batch = min(blocks, max(blocks // 8, SMALLEST_BATCH // sb))
    starts = [i * batch % (blocks - batch + 1) for i in range(28)]
    return [
        *(Step(first, batch, False, 0.3, 0.5, 1) for first in starts),
        *(Step(first, batch, False, 0.5, 0.0, 2) for first in starts),
        Step(0, blocks, True, 0.0, 0.0, CANDIDATES),
    ]
