"""The library of a tensor: learned by k-means over tables, then used to encode its rows.

The error that both minimise is ``sum(importance * (w - d * entry)**2)`` over the weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from gguf_tools.formats.family import GROUP, ROWS, TABLES, CBFormat
from pyquant._native import ffi, native, pointer, thread_count

SAMPLE = 1 << 21  # weights that a library is learned from, at most
SMALLEST_BATCH = 1 << 14  # weights, where an eighth of the sample is less
CANDIDATES = 4  # tables per group whose error is computed exactly after the coarse search
LIMIT = 65504.0 * 127  # largest magnitude that fp16 scale x int8 entry can hold


class Rows(Protocol):
    """A matrix read in pieces; numpy arrays are accepted beside it."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(rows, k)."""

    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows start..stop-1 as float32, shape (stop - start, k)."""


@dataclass(frozen=True)
class Shape:
    """What the learner needs to know of a format; other groups and numbers of tables serve comparisons."""

    bits: int
    pair: int
    sb: int
    group: int = GROUP
    tables: int = TABLES

    @classmethod
    def of(cls, fmt: CBFormat) -> Shape:
        """The shape of a frozen format."""
        return cls(fmt.bits, fmt.pair, fmt.sb)

    @property
    def library_shape(self) -> tuple[int, int, int]:
        """(table, weight of the pair, code)."""
        return (self.tables, self.pair, 1 << self.bits)

    def native(self):
        """As the C library takes it."""
        return ffi.new("struct lutra_shape *", [self.bits, self.pair, self.group, self.tables, self.sb])


def learn(
    rows: Rows | np.ndarray,
    fmt: CBFormat,
    *,
    importance: np.ndarray | None = None,
    seed: int = 0,
    threads: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> np.ndarray:
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
    rows: Rows | np.ndarray,
    shape: Shape,
    *,
    importance: np.ndarray | None = None,
    seed: int = 0,
    threads: int | None = None,
    progress: Callable[[int], object] | None = None,
    full: bool = False,
) -> np.ndarray:
    """``learn`` for any member of the family; ``full`` searches all tables, to measure what pruning costs."""
    n, k = _check_matrix(rows.shape, shape)
    importance = _check_importance(importance, n, k)
    rng = np.random.default_rng(seed)
    w, weight = _sample(rows, shape, importance, rng)
    library = _initial_library(w, shape, rng)
    learner = native().lutra_learner_new(
        shape.native(), len(w), pointer(w, "float"), pointer(weight, "float")
    )
    steps = _schedule(len(w), shape.sb)
    if learner == ffi.NULL:
        raise MemoryError(f"learning from {w.size} weights")
    try:
        done, total = 0, sum(step.blocks for step in steps)
        for step in steps:
            error = native().lutra_learner_step(
                learner, step.first, step.blocks, step.scales, step.memory, step.revive,
                0 if full else step.candidates, thread_count(threads), pointer(library, "int8_t"),
            )  # fmt: skip
            if error < 0:
                raise MemoryError(f"learning from {w.size} weights")
            if progress:
                before = n * k * done // total
                done += step.blocks
                progress(n * k * done // total - before)
    finally:
        native().lutra_learner_free(learner)
    return library


def encode(
    w: np.ndarray,
    library: np.ndarray,
    fmt: CBFormat,
    *,
    importance: np.ndarray | None = None,
    threads: int | None = None,
) -> np.ndarray:
    """Encode rows into strips.

    ``w``: float32 (n, k), n a multiple of 8. ``library``: int8, ``fmt.library_shape``. ``importance``:
    as for ``learn``. How the rows of a tensor are divided over calls does not change the result.

    Returns uint8 (n * fmt.row_bytes(k),). Raises ValueError as ``learn`` does.
    """
    shape = Shape.of(fmt)
    if w.ndim == 2 and w.shape[0] % ROWS:
        raise ValueError(f"{w.shape[0]} rows: strips need a multiple of {ROWS}")
    codes, selectors, d, _ = encode_shape(w, library, shape, importance=importance, threads=threads)
    return pack(codes, selectors, d, fmt, threads=threads)


def pack(
    codes: np.ndarray, selectors: np.ndarray, d: np.ndarray, fmt: CBFormat, *, threads: int | None = None
) -> np.ndarray:
    """The result of ``encode_shape`` as strips, uint8 (n * fmt.row_bytes(k),)."""
    n, k = len(codes), codes.shape[1] * fmt.pair
    shape = Shape.of(fmt)
    strips = np.empty(n * fmt.row_bytes(k), np.uint8)
    if not native().lutra_pack(
        shape.native(), n, k, pointer(codes, "uint8_t"), pointer(selectors, "uint16_t"),
        pointer(d, "uint16_t"), thread_count(threads), pointer(strips, "uint8_t"),
    ):  # fmt: skip
        raise MemoryError(f"packing {n * k} weights")
    return strips


def encode_shape(
    w: np.ndarray,
    library: np.ndarray,
    shape: Shape,
    *,
    importance: np.ndarray | None = None,
    threads: int | None = None,
    full: bool = False,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """``encode`` for any member of the family, not packed; ``full`` searches all tables.

    Returns codes uint8 (n, k / pair), group by group; selectors uint16 (n, k / group); scales float16
    (n, k / sb); and the weighted squared error.
    """
    n, k = _check_matrix(w.shape, shape)
    importance = _check_importance(importance, n, k)
    if library.shape != shape.library_shape or library.dtype != np.int8:
        raise ValueError(f"library is {library.dtype} {library.shape}, needed: int8 {shape.library_shape}")
    w = np.ascontiguousarray(w, np.float32)
    _check_values(w)
    library = np.ascontiguousarray(library)
    codes = np.empty((n, k // shape.pair), np.uint8)
    selectors = np.empty((n, k // shape.group), np.uint16)
    d = np.empty((n, k // shape.sb), np.float16)
    parts = 1 if importance is None else len(importance)
    total = 0.0
    for i in range(parts):
        part = slice(i * n // parts, (i + 1) * n // parts)
        error = native().lutra_encode(
            shape.native(), n // parts, k, pointer(w[part], "float"),
            pointer(None if importance is None else importance[i], "float"), pointer(library, "int8_t"),
            0 if full else CANDIDATES, thread_count(threads), pointer(codes[part], "uint8_t"),
            pointer(selectors[part], "uint16_t"), pointer(d[part], "uint16_t"),
        )  # fmt: skip
        if error < 0:
            raise MemoryError(f"encoding {w.size} weights")
        total += error
    return codes, selectors, d, total


def decode_shape(
    codes: np.ndarray, selectors: np.ndarray, d: np.ndarray, library: np.ndarray, shape: Shape
) -> np.ndarray:
    """The weights that ``encode_shape`` stands for, float32 (n, k)."""
    n, groups = selectors.shape
    entries = np.take_along_axis(  # (n, groups, pair, points)
        library[selectors], codes.reshape(n, groups, 1, shape.group // shape.pair).astype(np.intp), axis=3
    )
    return (entries.reshape(n, -1, shape.sb) * d.astype(np.float32)[..., None]).reshape(n, -1)


def _check_matrix(matrix: tuple[int, ...], shape: Shape) -> tuple[int, int]:
    if len(matrix) != 2:
        raise ValueError(f"shape {tuple(matrix)}: needed (rows, k)")
    n, k = matrix
    if n == 0 or k == 0:
        raise ValueError(f"shape {tuple(matrix)}: no weights")
    if k % shape.sb:
        raise ValueError(f"rows of {k} weights: needed a multiple of {shape.sb}")
    return n, k


def _check_importance(importance: np.ndarray | None, n: int, k: int) -> np.ndarray | None:
    if importance is None:
        return None
    importance = np.ascontiguousarray(np.atleast_2d(importance), np.float32)
    if importance.ndim != 2 or importance.shape[1] != k or n % len(importance):
        raise ValueError(f"importance of shape {importance.shape} for weights of shape {(n, k)}")
    if not np.isfinite(importance).all() or (importance < 0).any():
        raise ValueError("importance is negative, NaN or infinite")
    # A column that the calibration text never used still has to be a weight of some precision; one
    # scale for all experts and columns keeps float sums far from their limits.
    mean = float(importance.mean(dtype=np.float64))
    if mean == 0.0:
        return None
    return np.maximum(importance / np.float32(mean), np.float32(1e-4))


def _check_values(w: np.ndarray, first_row: int = 0) -> None:
    bad = native().lutra_find_bad(w.size, pointer(w, "float"), LIMIT)
    if bad >= 0:
        row, column = divmod(bad, w.shape[1])
        what = (
            f"beyond {LIMIT:.3g}, which fp16 scales cannot hold"
            if np.isfinite(w[row, column])
            else "not finite"
        )
        raise ValueError(f"weight {w[row, column]} in row {first_row + row}, column {column} is {what}")


def _sample(
    rows: Rows | np.ndarray, shape: Shape, importance: np.ndarray | None, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray | None]:
    """Super-blocks to learn from in random order, (blocks, sb), and their importances.

    Whole strips of rows, all of them when they fit and evenly spread ones otherwise.
    """
    n, k = rows.shape
    wanted = min(n, max(1, SAMPLE // k))
    run = min(ROWS, wanted)
    starts = (
        np.unique(np.linspace(0, n - run, -(-wanted // run)).astype(np.int64))
        if wanted < n
        else np.array([0])
    )
    run = run if wanted < n else n
    pieces, weights = [], []
    for start in starts.tolist():
        stop = start + run
        w = np.asarray(
            rows[start:stop] if isinstance(rows, np.ndarray) else rows.read(start, stop), np.float32
        )
        if w.shape != (run, k):
            raise ValueError(f"rows {start}..{stop - 1} have shape {w.shape}, needed {(run, k)}")
        w = np.ascontiguousarray(w)
        _check_values(w, start)
        pieces.append(w.reshape(-1, shape.sb))
        if importance is not None:
            expert = np.arange(start, stop) // (n // len(importance))
            weights.append(importance[expert].reshape(-1, shape.sb))
    order = rng.permutation(sum(len(p) for p in pieces))
    sample = np.concatenate(pieces)[order]
    return sample, np.concatenate(weights)[order] if weights else None


def _initial_library(w: np.ndarray, shape: Shape, rng: np.random.Generator) -> np.ndarray:
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
