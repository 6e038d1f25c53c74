# SPDX-License-Identifier: MIT
"""A tensor of a checkpoint as the numbers that it stands for, whatever they are stored as."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gguf_tools.errors import LutraError
from gguf_tools.formats.floats import to_float32
from gguf_tools.sources.safetensors import StoredTensor


@dataclass(frozen=True)
class Weights:
    """Read by rows: ``load`` gives those of the numbers (n,), of all ``rows``, as float32 (n, k).

    ``shape`` is (..., rows, k), or (k,) for a single row; ``dtype`` the float type that holds all of it
    without loss; ``path`` the file that it, or its greatest part, is in.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    path: Path
    load: Callable[[NDArray[np.intp]], NDArray[np.float32]] = field(repr=False)

    @property
    def rows(self) -> int:
        """Rows, all leading dimensions multiplied."""
        return prod(self.shape[:-1])


def as_stored(tensor: StoredTensor) -> Weights:
    """The numbers of a tensor of floats."""
    k = tensor.shape[-1] if tensor.shape else 1

    def load(rows: NDArray[np.intp]) -> NDArray[np.float32]:
        return to_float32(tensor.array.reshape(-1, k)[rows], tensor.dtype, k)

    dtype = "F32" if tensor.dtype.startswith("F8") else tensor.dtype
    return Weights(tensor.name, tensor.shape, dtype, tensor.path, load)


def half(tensor: Weights, part: int, name: str) -> Weights:
    """The first or second half of the rows of a matrix, or of each in a stack; ``part`` is 0 or 1.

    Raises ``LutraError`` where their number is odd.
    """
    *stack, rows, k = tensor.shape
    if rows % 2:
        raise LutraError(f"{tensor.path}: tensor {tensor.name!r} has {rows} rows, no two halves")
    height = rows // 2

    def load(numbers: NDArray[np.intp]) -> NDArray[np.float32]:
        matrix, row = np.divmod(numbers, height)
        return tensor.load(matrix * rows + part * height + row)

    return replace(tensor, name=name, shape=(*stack, height, k), load=load)
