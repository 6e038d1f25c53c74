# SPDX-License-Identifier: MIT
"""The bytes of one tensor without calibration.

Codebooks by k-means, exact, or with tables of odd integers; upstream's types by ggml.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gguf_tools.errors import LutraError
from gguf_tools.formats.family import ROWS, CBFormat
from lutra.conversion.plan import Planned
from lutra.runtime import quantize
from pyquant import encode_layers, in_order, learn, learn_second
from pyquant.bipolar import encode_bipolar, libraries
from pyquant.exact import encode_exact, grids

BLOCK_WEIGHTS = 1 << 23  # weights in memory at a time, as float32


@dataclass(frozen=True)
class Matrix:
    """A tensor as matrices (rows, k), one or one per expert, read in pieces.

    Sent to another process it takes its weights along.
    """

    shape: tuple[int, int]  # rows of all experts together
    matrix_rows: int
    read: Callable[[int, int], NDArray[np.float32]]  # rows start..stop-1

    @classmethod
    def of(cls, p: Planned) -> Matrix:
        """The weights of a planned tensor."""
        tensor = p.source
        rows = tensor.shape[-2] if len(tensor.shape) > 1 else 1
        return cls((tensor.rows, tensor.k), rows, tensor.read)

    def __reduce__(self) -> tuple[Callable[..., Matrix], tuple[NDArray[np.float32], int]]:
        return _in_memory, (self.read(0, self.shape[0]), self.matrix_rows)

    def blocks(
        self, importance: NDArray[np.float32] | None
    ) -> Iterator[tuple[NDArray[np.float32], NDArray[np.float32] | None]]:
        """(rows, their importance) in pieces: whole strips, never across two experts.

        ``importance`` float32 is (k,) or, for a stack of experts, (experts, k).
        """
        rows, k = self.shape
        step = max(8, BLOCK_WEIGHTS // k // 8 * 8)
        for first in range(0, rows, self.matrix_rows):
            weights = importance
            if importance is not None and importance.ndim == 2:
                weights = importance[first // self.matrix_rows]
            for start in range(first, first + self.matrix_rows, step):
                yield self.read(start, min(start + step, first + self.matrix_rows)), weights


def _in_memory(w: NDArray[np.float32], matrix_rows: int) -> Matrix:
    return Matrix(w.shape, matrix_rows, lambda start, stop: w[start:stop])


def codebook(
    name: str,
    matrix: Matrix,
    fmt: CBFormat,
    importance: NDArray[np.float32] | None,
    seed: int,
    *,
    threads: int,
) -> list[NDArray[Any]]:
    """A tensor of a codebook type in pieces, in their order; its libraries are learned from the whole tensor.

    ``importance`` as ``Matrix.blocks`` takes it. Raises LutraError with ``name`` for weights that cannot be
    encoded.
    """
    try:
        learned = [learn(matrix, fmt, importance=importance, seed=seed, threads=threads)]
        if fmt.second:
            learned.append(learn_second(matrix, learned[0], fmt, importance=importance, threads=threads))
        pieces = [
            encode_layers(rows, learned, fmt, importance=weights, threads=threads)
            for rows, weights in matrix.blocks(importance)
        ]
    except ValueError as error:
        raise LutraError(f"tensor {name!r}: {error}") from None
    return in_order(pieces, learned)


def is_exact(matrix: Matrix, fmt: CBFormat, threads: int) -> bool:
    """Whether a codebook can stand for the very same numbers.

    A few rows decide in nearly all cases; zeros alone say nothing.
    """
    library, first = grids(fmt), matrix.read(0, ROWS)
    try:
        if not first.any() or encode_exact(first, library, fmt, threads=threads) is None:
            return False
        pieces = (encode_exact(rows, library, fmt, threads=threads) for rows, _ in matrix.blocks(None))
        return all(piece is not None for piece in pieces)
    except ValueError:  # weights that no codebook can have: whatever encodes them says so, with their name
        return False


def encode_exactly(name: str, matrix: Matrix, fmt: CBFormat, threads: int) -> list[NDArray[Any]]:
    """A tensor that ``is_exact``, in pieces; the library comes last."""
    library = grids(fmt)
    pieces: list[NDArray[Any]] = []
    for rows, _ in matrix.blocks(None):
        strips = encode_exact(rows, library, fmt, threads=threads)
        if strips is None:
            raise LutraError(f"tensor {name!r}: its file changed while it was read; start again")
        pieces.append(strips)
    return [*pieces, library]


def bipolar(name: str, matrix: Matrix, fmt: CBFormat, threads: int) -> list[NDArray[Any]]:
    """A tensor whose tables are odd integers times scales, in pieces, in their order."""
    try:
        pieces = [encode_bipolar(rows, fmt, threads=threads) for rows, _ in matrix.blocks(None)]
    except ValueError as error:
        raise LutraError(f"tensor {name!r}: {error}") from None
    return in_order(pieces, libraries(fmt))


def stock(p: Planned, importance: NDArray[np.float32] | None, threads: int) -> Iterator[NDArray[np.uint8]]:
    """A tensor of one of upstream's types in pieces."""
    if p.is_kept:
        assert p.source.stored
        yield p.source.stored()
        return
    for rows, weights in Matrix.of(p).blocks(importance):
        try:
            yield quantize.quantize(rows, p.id, weights, threads)
        except ValueError as error:
            raise LutraError(f"{p.source.path}: tensor {p.name!r}: {error}") from None
