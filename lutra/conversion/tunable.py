# SPDX-License-Identifier: MIT
"""What the codes of a finished file leave open, as parameters of torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod
from typing import TYPE_CHECKING

import numpy as np
from gguf import GGMLQuantizationType
from gguf.quants import dequantize
from numpy.typing import NDArray

from gguf_tools.formats import codebook
from gguf_tools.formats.family import CB_FORMATS, GROUP, ROWS, CBFormat
from gguf_tools.reader import GGUFFile, TensorInfo
from lutra.conversion.codes import Codes, Packed, Places, Sorted
from lutra.conversion.slabs import SLAB, Matrix

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from lutra.conversion.slabs import Rows

TABLE_RATE = 0.15  # of Adam at the start, in a file of CB2: entries by so much of an int8 step,
RATIO_RATE = 1.5e-3  # scales and norms by so much of themselves; see rate_share


class Codebook:
    """A codebook tensor: its codes are fixed, entries and scales are not.

    Both layers of a layered type move: what is cut from it later has tuned entries, too. With ``packed``
    codes it takes a sixth of the memory or less, and can be ``bound``.
    """

    def __init__(
        self,
        data: NDArray[np.uint8],
        shape: tuple[int, ...],
        fmt: CBFormat,
        device: torch.device,
        packed: bool = False,
    ) -> None:
        import torch

        rows, k = prod(shape[:-1]), shape[-1]
        self.fmt, self.codes = fmt, list[Codes]()  # of each layer
        self._data, self._shape = data, shape
        if packed:
            packed_codes, d = _packed(data, rows, k, fmt, device)
            self.codes += packed_codes
        else:
            codes, selectors, d, library = codebook.unpack(data, rows, k, fmt)
            layers = [(codes, library)]
            if fmt.second:
                layers.append(codebook.unpack_second(data, rows, k, fmt))
            first, kind = 0, Sorted if device.type == "cuda" else Places
            for own_codes, own in layers:
                places = np.arange(first, first + own.size, dtype=np.int32).reshape(own.shape)
                place = codebook.entries(own_codes, selectors, places)
                self.codes.append(kind(torch.from_numpy(place).flatten().to(device), fmt.library_bytes))
                first += own.size
        libraries = codebook.split(data, fmt).library.view(np.int8)
        self.d = torch.from_numpy(d.astype(np.float32)).to(device)
        self.entries = torch.from_numpy(libraries.astype(np.float32)).to(device)
        self.ratio = torch.zeros_like(self.d)  # of d to what it was, as a logarithm: d stays positive

    def parameters(self) -> list[tuple[Tensor, float]]:
        """What Adam changes, and its rates."""
        return [(self.entries, TABLE_RATE), (self.ratio, RATIO_RATE)]

    def weights(self, rounded: bool = False) -> Tensor:
        """What the tensor stands for, float32 in its shape; ``rounded``: as it will be in the file."""
        entries, scales = self.entries, self._scales()
        if rounded:
            entries, scales = self.rounded(), scales.half().float()
        return (self._sums(entries) * scales).view(self._shape)

    def reduce(self, gradient: Tensor) -> list[Tensor]:
        """Gradients of ``parameters`` from that of ``weights``."""
        import torch

        scaled = gradient.view(*self.d.shape, self.fmt.sb) * self._scales()
        of_entries = torch.zeros_like(self.entries)
        for codes in self.codes:
            of_entries += codes.sums(scaled.flatten())
        return [of_entries, (scaled * self._sums(self.entries)).sum(-1)]

    def bound(self, parameters: Sequence[Tensor], rounded: bool = False) -> Matrix:
        """``weights`` of packed codes, in slabs; ``parameters`` share its own's memory: leaves of autograd,
        if there are any.
        """
        return _InSlabs(self, parameters, rounded)

    def data(self) -> NDArray[np.uint8]:
        """The tensor's bytes with int8 entries and fp16 scales."""
        fmt, k = self.fmt, self._shape[-1]
        parts = codebook.split(self._data, fmt)
        strips = parts.strips.copy().view(codebook.block_dtype(fmt))
        d = self._scales().cpu().numpy().astype(np.float16).reshape(-1, ROWS, k // fmt.sb)
        strips["d"] = d.swapaxes(1, 2).reshape(-1, ROWS)
        library = self.rounded().cpu().numpy().astype(np.int8)
        return np.concatenate([strips.view(np.uint8), library.view(np.uint8), parts.second])

    def rounded(self) -> Tensor:
        """Entries of int8; those of a second layer add up to no more with any that they are added to."""
        entries = self.entries.round().clamp(-127, 127)
        if self.fmt.second:
            least, most = entries.new_zeros(len(entries)), entries.new_zeros(len(entries))
            for first, second in self._parts():
                met, place = first.picked(entries), second.places().long()
                least = least.scatter_reduce(0, place, met, "amin")
                most = most.scatter_reduce(0, place, met, "amax")
            own = slice(self.fmt.layers[0].library_bytes, None)
            entries[own] = entries[own].clamp(-127 - least[own], 127 - most[own]).clamp(-127, 127)
        return entries

    def _parts(self) -> Iterator[Sequence[Codes]]:
        """The codes of the layers: in slabs, if they are packed, or as a whole."""
        packed = [codes for codes in self.codes if isinstance(codes, Packed)]
        if packed:
            yield from ([codes.some(rows) for codes in packed] for rows in self.bound(()).slabs())
        else:
            yield self.codes

    def _sums(self, entries: Tensor) -> Tensor:
        """What the layers add up to for every weight, by super-block."""
        return _added(self.codes, entries).view(*self.d.shape, self.fmt.sb)

    def _scales(self) -> Tensor:
        return (self.d * self.ratio.exp())[..., None]


class _InSlabs(Matrix):
    """A codebook tensor of packed codes, as it is now."""

    def __init__(self, tensor: Codebook, parameters: Sequence[Tensor], rounded: bool) -> None:
        n, blocks = tensor.d.shape
        super().__init__(n, blocks * tensor.fmt.sb, tensor.d.device, parameters)
        self._tensor, self._rounded = tensor, rounded
        self._codes = [codes for codes in tensor.codes if isinstance(codes, Packed)]
        self._entries = tensor.rounded() if rounded else tensor.entries

    def rows(self, which: Rows) -> Tensor:
        """See ``Matrix``."""
        scales = self._scales(which)
        added = _added([codes.some(which) for codes in self._codes], self._entries)
        return added.view(*scales.shape[:2], -1).mul_(scales).flatten(1)

    def no_gradients(self) -> list[Tensor]:
        """See ``Matrix``."""
        return [parameter.new_zeros(parameter.shape) for parameter in self.parameters]

    def add_gradients(self, to: Sequence[Tensor], which: Rows, weights: Tensor, gradient: Tensor) -> None:
        """See ``Matrix``."""
        of_entries, of_ratio = to
        scales = self._scales(which)
        by_block = gradient.view(*scales.shape[:2], -1)
        part = (by_block * weights.view_as(by_block)).sum(-1)
        if isinstance(which, slice):
            of_ratio[which] += part
        else:
            of_ratio.index_add_(0, which, part)
        scaled = (by_block * scales).flatten()
        for codes in self._codes:
            of_entries += codes.some(which).sums(scaled)

    def _scales(self, which: Rows) -> Tensor:
        scales = self._tensor.d[which] * self._tensor.ratio[which].exp()
        return (scales.half().float() if self._rounded else scales)[..., None]


def _added(layers: Sequence[Codes], entries: Tensor) -> Tensor:
    first, *others = (codes.picked(entries) for codes in layers)
    return sum(others, first)


def _packed(
    data: NDArray[np.uint8], rows: int, k: int, fmt: CBFormat, device: torch.device
) -> tuple[list[Packed], NDArray[np.float16]]:
    """The codes of all layers, and d: read in slabs, as they are not packed at first."""
    import torch

    selectors = torch.empty(rows, k // GROUP, dtype=torch.uint8, device=device)
    d = np.empty((rows, k // fmt.sb), np.float16)
    layers, first = [], 0
    for layer in fmt.layers:
        layers.append(Packed.empty(layer, selectors, first, fmt.library_bytes))
        first += layer.library_bytes
    size = max(ROWS, SLAB["cpu"] // k // ROWS * ROWS)
    for start in range(0, rows, size):
        slab = slice(start, min(start + size, rows))
        part = codebook.some_rows(data, k, fmt, slab.start, slab.stop)
        codes, of_groups, d[slab], _ = codebook.unpack(part, slab.stop - slab.start, k, fmt)
        selectors[slab] = torch.from_numpy(of_groups).to(device)
        layers[0].put(slab, codes)
        if fmt.second:
            layers[1].put(slab, codebook.unpack_second(part, slab.stop - slab.start, k, fmt)[0])
    return layers, d


class Norm:
    """The weights of a norm."""

    def __init__(self, data: NDArray[np.uint8], device: torch.device) -> None:
        import torch

        self._start = torch.from_numpy(data.view(np.float32).copy()).to(device)
        self.ratio = torch.zeros_like(self._start)

    def parameters(self) -> list[tuple[Tensor, float]]:
        """As for ``Codebook``."""
        return [(self.ratio, RATIO_RATE)]

    def weights(self, rounded: bool = False) -> Tensor:
        """Float32 (k,), as it will be in the file."""
        return self._start * self.ratio.exp()

    def bound(self, parameters: Sequence[Tensor], rounded: bool = False) -> Tensor:
        """As for ``Codebook``."""
        return self._start * (parameters[0] if parameters else self.ratio).exp()

    def reduce(self, gradient: Tensor) -> list[Tensor]:
        """As for ``Codebook``."""
        return [gradient * self.weights()]

    def data(self) -> NDArray[np.uint8]:
        """The tensor's bytes."""
        data: NDArray[np.uint8] = self.weights().cpu().numpy().view(np.uint8)
        return data


def rate_share(file: GGUFFile) -> float:
    """What the rates are multiplied by: each bit of the codes more halves the rounding error, and steps that
    are no smaller lead away from what is left of it.
    """
    formats = [(t.weights, CB_FORMATS[t.type]) for t in file.tensors.values() if t.type in CB_FORMATS]
    return sum(n * 2 ** (2 - fmt.code_bits) for n, fmt in formats) / sum(n for n, _ in formats)


def open_tensor(
    file: GGUFFile, info: TensorInfo, device: torch.device, packed: bool = False
) -> Codebook | Norm | Tensor:
    """A tensor as what can be tuned, or as fixed weights."""
    import torch

    data = file.data(info)
    if fmt := CB_FORMATS.get(info.type):
        return Codebook(data, info.shape, fmt, device, packed)
    if info.name.endswith("_norm.weight"):  # float32 in a file of any type
        return Norm(data, device)
    weights = dequantize(data, GGMLQuantizationType(info.type)).astype(np.float32, copy=False)
    return torch.from_numpy(weights.reshape(info.shape).copy()).to(device)
