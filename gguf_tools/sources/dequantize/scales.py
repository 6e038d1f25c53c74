# SPDX-License-Identifier: MIT
"""Scales and zero points: one number for all weights, for each row, or for each block of a matrix."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import prod

import numpy as np
from numpy.typing import NDArray

from gguf_tools.formats.floats import to_float32
from gguf_tools.sources.dequantize.checkpoint import check, wrong_shape
from gguf_tools.sources.safetensors import StoredTensor
from gguf_tools.sources.weights import Weights

# What belongs to the weights of rows (n,): float32 (n, k), or (n, 1) and (1, 1) where columns share it.
Spread = Callable[[NDArray[np.intp]], NDArray[np.float32]]


def spread(
    scale: StoredTensor,
    shape: tuple[int, ...],
    block: tuple[int, int] | None = None,
    columns: NDArray[np.intp] | None = None,
) -> Spread:
    """The numbers of ``scale``, floats, int8, or exponents of two in bytes, for weights (..., rows, k).

    There is one for all, for each matrix, for each row, or for each ``block`` of rows and columns, the last
    of which may be cut off. ``columns`` (k,): the number of its row that a column has, where that is not its
    block's. Raises LutraError when ``scale`` has another shape.
    """
    *leading, rows, k = shape
    if not scale.is_float and scale.dtype not in ("U8", "I8"):
        raise wrong_shape(scale, "numbers")
    if prod(scale.shape) == 1:
        return lambda _: _numbers(scale.array.reshape(1, 1), scale.dtype)
    grids = {(rows,): (rows, 1), (rows, 1): (rows, 1)}
    if leading:
        grids |= {(): (1, 1), (1, 1): (1, 1)}
    if block:
        blocks = (-(-rows // block[0]), -(-k // block[1]))
        grids[blocks] = blocks
    matrices, grid = scale.shape[: len(leading)], scale.shape[len(leading) :]
    if matrices != tuple(leading) or grid not in grids:
        each = f"for each row or block of {list(block)}" if block else "for each row"
        raise wrong_shape(scale, f"one for all of {list(shape)} or {each}")
    down, across = grids[grid]
    height = block[0] if block and grid == blocks else rows // down

    def load(numbers: NDArray[np.intp]) -> NDArray[np.float32]:
        matrix, row = np.divmod(numbers, rows)
        found = _numbers(scale.array.reshape(-1, across)[matrix * down + row // height], scale.dtype)
        if across == 1 or not block:
            return found
        return found[:, columns] if columns is not None else np.repeat(found, block[1], axis=1)[:, :k]

    return load


def _numbers(array: NDArray[np.generic], dtype: str) -> NDArray[np.float32]:
    return to_float32(array, "F8_E8M0" if dtype == "U8" else dtype, array.shape[-1])


def scaled(codes: Weights, scale: Spread, zero: Spread | None = None) -> Weights:
    """``codes``, less their zero points, times their scales: the difference is exact, the product rounded."""

    def load(rows: NDArray[np.intp]) -> NDArray[np.float32]:
        found = codes.load(rows)
        return (found - zero(rows) if zero else found) * scale(rows)

    return replace(codes, dtype="F32", load=load)


def groups_of(index: StoredTensor, k: int, groups: int) -> NDArray[np.intp]:
    """The group, of so many, of each of ``k`` columns. Raises LutraError when ``index`` has others."""
    found = check(index, ("I32", "I64"), (k,)).array
    if found.min() < 0 or found.max() >= groups:
        raise wrong_shape(index, f"numbers of {groups} groups")
    return found.astype(np.intp)
