# SPDX-License-Identifier: MIT
"""The codes of a codebook tensor for torch: which of its entries each weight is, and sums by entry."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from gguf_tools.formats.family import GROUP, TABLES
from gguf_tools.formats.family import Codes as Layer

if TYPE_CHECKING:
    from torch import Tensor

    from lutra.conversion.slabs import Rows


class Codes(Protocol):
    """The codes of a layer. Entries are those of all layers, one behind the other; weights are flat."""

    def places(self) -> Tensor:
        """The entry's number for every weight, int32."""

    def picked(self, entries: Tensor) -> Tensor:
        """The entry of every weight."""

    def sums(self, values: Tensor) -> Tensor:
        """Values of all weights, summed for every entry, in an order that does not change."""


class Places:
    """On a CPU: 4 bytes per weight."""

    def __init__(self, place: Tensor, entries: int) -> None:
        self._place, self._count = place, entries

    def places(self) -> Tensor:
        """See ``Codes``."""
        return self._place

    def picked(self, entries: Tensor) -> Tensor:
        """See ``Codes``."""
        return entries.index_select(0, self._place)

    def sums(self, values: Tensor) -> Tensor:
        """See ``Codes``."""
        return values.new_zeros(self._count).index_add_(0, self._place, values)


class Sorted(Places):
    """On a GPU, where index_add_ takes values in any order, or slowly: 8 bytes per weight."""

    def __init__(self, place: Tensor, entries: int) -> None:
        super().__init__(place, entries)
        self._order = place.argsort(stable=True).int()
        self._lengths = place.bincount(minlength=entries)

    def sums(self, values: Tensor) -> Tensor:
        """See ``Codes``: in the order of places."""
        import torch

        ordered = values.index_select(0, self._order)
        return torch.segment_reduce(ordered, "sum", lengths=self._lengths, unsafe=True)  # they are right


class Packed:
    """A byte for one code of 5 or more bits, two of 3 or 4, and so on; a selector per group of 32 weights.

    ``first``: the number of the layer's first entry.
    """

    def __init__(self, layer: Layer, codes: Tensor, selectors: Tensor, first: int, entries: int) -> None:
        self._layer, self._codes, self._selectors = layer, codes, selectors
        self._first, self._count = first, entries

    @classmethod
    def empty(cls, layer: Layer, selectors: Tensor, first: int, entries: int) -> Packed:
        """Of a tensor with these selectors (rows, groups), without codes."""
        in_group = GROUP // layer.pair // _in_byte(layer)
        codes = selectors.new_empty(*selectors.shape, in_group)
        return cls(layer, codes, selectors, first, entries)

    def put(self, rows: slice, codes: NDArray[np.uint8]) -> None:
        """Give some rows their codes, (rows, codes of a row)."""
        import torch

        count, width = _in_byte(self._layer), _width(self._layer)
        parts = codes.reshape(len(codes), -1, count, GROUP // self._layer.pair // count)
        shifts = np.arange(0, 8, width, dtype=np.uint8)[:, None]
        packed = np.bitwise_or.reduce(parts << shifts, axis=2)
        self._codes[rows] = torch.from_numpy(packed).to(self._codes.device)

    def some(self, which: Rows) -> Packed:
        """Of some rows."""
        return Packed(self._layer, self._codes[which], self._selectors[which], self._first, self._count)

    def places(self) -> Tensor:
        """See ``Codes``."""
        import torch

        layer, codes = self._layer, self._unpacked().int()
        table = self._selectors.flatten().int() * (layer.pair << layer.bits) + self._first
        # A pair's weights are 16 apart: all first ones of a group, then all second ones.
        weights = torch.arange(layer.pair, dtype=torch.int32, device=codes.device) << layer.bits
        return ((table[:, None] + weights)[:, :, None] + codes[:, None]).flatten()

    def picked(self, entries: Tensor) -> Tensor:
        """See ``Codes``."""
        return entries.index_select(0, self.places())

    def sums(self, values: Tensor) -> Tensor:
        """See ``Codes``."""
        total = values.new_zeros(self._count)
        if values.device.type == "cpu":
            return total.index_add_(0, self.places(), values)
        layer = self._layer
        stop = self._first + layer.library_bytes
        total[self._first : stop] = self.by_table(values).flatten()
        return total

    def by_table(self, values: Tensor) -> Tensor:
        """Sums (table, entry of the table) without an order of all weights: within groups, then of groups."""
        import torch

        layer, codes = self._layer, self._unpacked()[:, None]
        values = values.view(len(codes), layer.pair, -1)
        parts = [torch.where(codes == code, values, 0).sum(-1) for code in range(1 << layer.bits)]
        of_group = torch.stack(parts, -1).flatten(1)
        tables = values.new_zeros(TABLES, layer.pair << layer.bits)
        return tables.index_add_(0, self._selectors.flatten().long(), of_group)  # of few, in order there, too

    def _unpacked(self) -> Tensor:
        """Codes (groups, codes of a group)."""
        import torch

        packed = self._codes.flatten(0, 1)
        if _in_byte(self._layer) == 1:
            return packed
        width = _width(self._layer)
        return torch.cat([packed >> shift & (1 << width) - 1 for shift in range(0, 8, width)], -1)


def _width(layer: Layer) -> int:
    """Bits that a packed code takes: 1, 2, 4 or 8."""
    return 1 << (layer.bits - 1).bit_length()


def _in_byte(layer: Layer) -> int:
    return 8 // _width(layer)


def packed_bytes(layer: Layer) -> float:
    """Bytes of ``Packed`` per weight, without selectors."""
    return _width(layer) / 8 / layer.pair
