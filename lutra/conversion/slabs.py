# SPDX-License-Identifier: MIT
"""Matrices that stay as small as they are stored: a slab of rows at a time is in single precision.

A network that computes with them needs room for what is stored and for one slab, whatever its size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    Rows: TypeAlias = slice | Tensor  # from one to another, or the numbers of some, int64 (n,)

SLAB = {"cpu": 1 << 20, "cuda": 1 << 24}  # weights: what a cache holds, and what keeps a GPU busy


class Matrix:
    """A matrix (n, k). ``parameters``, leaves of autograd, are what it is computed from, if anything."""

    def __init__(self, n: int, k: int, device: torch.device, parameters: Sequence[Tensor] = ()) -> None:
        self.n, self.k, self.device, self.parameters = n, k, device, parameters

    def __len__(self) -> int:
        return self.n

    def rows(self, which: Rows) -> Tensor:
        """Some of its rows, float32."""
        raise NotImplementedError

    def no_gradients(self) -> list[Tensor]:
        """Zeros in the shapes of its parameters."""
        return []

    def add_gradients(self, to: Sequence[Tensor], which: Rows, weights: Tensor, gradient: Tensor) -> None:
        """Add what the ``gradient`` of some rows, which are ``weights``, means for its parameters."""

    def slabs(self) -> Iterator[slice]:
        """All rows, in parts."""
        size = max(1, SLAB[self.device.type] // self.k)
        for start in range(0, self.n, size):
            yield slice(start, min(start + size, self.n))

    def times(self, x: Tensor) -> Tensor:
        """Products of ``x`` (..., k) with all rows, float32 (..., n)."""
        from lutra.conversion.slab_functions import Product

        product: Tensor = Product.apply(x, self, *self.parameters)
        return product

    def chosen(self, numbers: Tensor) -> Tensor:
        """Rows by their numbers (...), float32 (..., k)."""
        from lutra.conversion.slab_functions import Chosen

        rows: Tensor = Chosen.apply(numbers, self, *self.parameters)
        return rows


class Stored(Matrix):
    """A tensor of any floating type."""

    def __init__(self, tensor: Tensor) -> None:
        n, k = tensor.shape
        super().__init__(n, k, tensor.device)
        self._tensor = tensor

    def rows(self, which: Rows) -> Tensor:
        """See ``Matrix``."""
        return self._tensor[which].float()
