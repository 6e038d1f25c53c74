# SPDX-License-Identifier: MIT
"""What the functions of this package take: the shape of a format, rows of weights; and what they refuse."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from gguf_tools.formats.family import GROUP, TABLES, CBFormat
from pyquant._native import ffi, native, pointer

LIMIT = 65504.0 * 127  # largest magnitude that fp16 scale x int8 entry can hold
SMALLEST = -127  # of an entry


class Rows(Protocol):
    """A matrix read in pieces; numpy arrays are accepted beside it."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(rows, k)."""

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Rows start..stop-1 as float32, shape (stop - start, k)."""


@dataclass(frozen=True)
class Shape:
    """What the learner needs to know of a format; other groups and numbers of tables serve comparisons.

    Raises ValueError for one that the native library does not know.
    """

    bits: int
    pair: int
    sb: int
    group: int = GROUP
    tables: int = TABLES

    def __post_init__(self) -> None:
        known = (
            1 <= self.bits <= 6
            and self.pair in (1, 2)
            and self.group in (16, 32, 64)
            and 1 <= self.tables <= 1024
            and self.sb >= self.group
            and self.sb % self.group == 0
        )
        if not known:
            raise ValueError(
                f"{self}: needed 1 to 6 bits, 1 or 2 weights per code, groups of 16, 32 or 64, up to 1024 "
                "tables, a super-block of whole groups"
            )

    @classmethod
    def of(cls, fmt: CBFormat) -> Shape:
        """The shape of a frozen format; of a layered one, that of its first layer."""
        return cls(fmt.bits, fmt.pair, fmt.sb)

    @classmethod
    def of_second(cls, fmt: CBFormat) -> Shape:
        """The shape of the second layer of a layered format."""
        assert fmt.second
        return cls(fmt.second.bits, fmt.second.pair, fmt.sb)

    @property
    def library_shape(self) -> tuple[int, int, int]:
        """(table, weight of the pair, code)."""
        return (self.tables, self.pair, 1 << self.bits)

    def native(self) -> Any:
        """As the C library takes it."""
        return ffi.new("struct lutra_shape *", [self.bits, self.pair, self.group, self.tables, self.sb])


def check_matrix(matrix: tuple[int, ...], shape: Shape) -> tuple[int, int]:
    """(rows, k) of a matrix that can be encoded."""
    if len(matrix) != 2:
        raise ValueError(f"shape {tuple(matrix)}: needed (rows, k)")
    n, k = matrix
    if n == 0 or k == 0:
        raise ValueError(f"shape {tuple(matrix)}: no weights")
    if k % shape.sb:
        raise ValueError(f"rows of {k} weights: needed a multiple of {shape.sb}")
    return n, k


def read_rows(rows: Rows | NDArray[Any], start: int, stop: int) -> NDArray[np.float32]:
    """Rows start..stop-1, float32, contiguous, checked."""
    w = rows[start:stop] if isinstance(rows, np.ndarray) else rows.read(start, stop)
    with np.errstate(over="ignore"):  # what becomes infinite is refused
        w = np.ascontiguousarray(w, np.float32)
    if w.shape != (stop - start, rows.shape[1]):
        raise ValueError(
            f"rows {start}..{stop - 1} have shape {w.shape}, needed {(stop - start, rows.shape[1])}"
        )
    bad = native().lutra_find_bad(w.size, pointer(w, "float"))
    if bad >= 0:
        row, column = divmod(bad, w.shape[1])
        what = (
            f"beyond {LIMIT:.3g}, which fp16 scales cannot hold"
            if np.isfinite(w[row, column])
            else "not finite"
        )
        raise ValueError(f"weight {w[row, column]} in row {start + row}, column {column} is {what}")
    return w


def check_importance(importance: NDArray[Any] | None, n: int, k: int) -> NDArray[np.float32] | None:
    """float32 (e, k), about 1 in the mean; None for none, and where all of it is zero."""
    if importance is None:
        return None
    with np.errstate(over="ignore"):  # what becomes infinite is refused
        importance = np.ascontiguousarray(np.atleast_2d(importance), np.float32)
    if importance.ndim != 2 or importance.shape[1] != k or len(importance) == 0 or n % len(importance):
        raise ValueError(f"importance of shape {importance.shape} for weights of shape {(n, k)}")
    if not np.isfinite(importance).all() or (importance < 0).any():
        raise ValueError("importance is negative, NaN or infinite")
    # A column that the calibration text never used still has to be a weight of some precision; one
    # scale for all experts and columns keeps float sums far from their limits.
    mean = np.float32(importance.mean(dtype=np.float64))
    if mean == 0.0:
        return None
    result: NDArray[np.float32] = np.maximum(importance / mean, np.float32(1e-4))
    return result


def check_library(library: NDArray[Any], shape: Shape) -> NDArray[np.int8]:
    """A library that serves ``shape``, contiguous."""
    if library.shape != shape.library_shape or library.dtype != np.int8:
        raise ValueError(f"library is {library.dtype} {library.shape}, needed: int8 {shape.library_shape}")
    if library.min() < SMALLEST:
        raise ValueError(f"library has an entry of {library.min()}, needed: {SMALLEST} to 127")
    return np.ascontiguousarray(library)


def check_codes(
    codes: NDArray[Any], selectors: NDArray[Any], d: NDArray[Any], shape: Shape
) -> tuple[int, int]:
    """(rows, k) of a matrix in codes (n, k / pair), selectors (n, k / group) and scales (n, k / sb)."""
    if codes.ndim != 2 or selectors.ndim != 2 or d.ndim != 2:
        raise ValueError(
            f"codes {codes.shape}, selectors {selectors.shape}, d {d.shape}: needed (rows, n) each"
        )
    n, k = check_matrix((len(codes), codes.shape[1] * shape.pair), shape)
    needed = (n, k // shape.group), (n, k // shape.sb)
    if (selectors.shape, d.shape) != needed:
        raise ValueError(
            f"selectors {selectors.shape}, d {d.shape}: needed {needed[0]}, {needed[1]} for {k} weights a row"
        )
    if codes.dtype != np.uint8 or selectors.dtype != np.uint16 or d.dtype != np.float16:
        raise ValueError(
            f"codes {codes.dtype}, selectors {selectors.dtype}, d {d.dtype}: needed uint8, uint16, float16"
        )
    if codes.max() >= 1 << shape.bits:
        raise ValueError(f"a code is {codes.max()}, needed: less than {1 << shape.bits}")
    if selectors.max() >= shape.tables:
        raise ValueError(f"a selector is {selectors.max()}, needed: less than {shape.tables}")
    return n, k
