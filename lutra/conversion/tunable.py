# SPDX-License-Identifier: MIT
"""What the codes of a finished file leave open, as parameters of torch."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

import numpy as np
from gguf import GGMLQuantizationType
from gguf.quants import dequantize
from numpy.typing import NDArray

from gguf_tools.formats import codebook
from gguf_tools.formats.family import CB_FORMATS, ROWS, CBFormat
from gguf_tools.reader import GGUFFile, TensorInfo

if TYPE_CHECKING:
    import torch
    from torch import Tensor

TABLE_RATE = 0.15  # of Adam at the start, in a file of CB2: entries by so much of an int8 step,
RATIO_RATE = 1.5e-3  # scales and norms by so much of themselves; see rate_share


class Codebook:
    """A codebook tensor: its codes are fixed, entries and scales are not.

    Both layers of a layered type move: what is cut from it later has tuned entries, too.
    """

    def __init__(
        self, data: NDArray[np.uint8], shape: tuple[int, ...], fmt: CBFormat, device: torch.device
    ) -> None:
        import torch

        rows, k = prod(shape[:-1]), shape[-1]
        codes, selectors, d, library = codebook.unpack(data, rows, k, fmt)
        layers = [(codes, library)]
        if fmt.second:
            layers.append(codebook.unpack_second(data, rows, k, fmt))
        libraries = np.concatenate([own.reshape(-1) for _, own in layers])
        self._places, first = [], 0  # of the entry of every weight, in each layer
        for own_codes, own in layers:
            places = np.arange(first, first + own.size, dtype=np.int32).reshape(own.shape)
            place = codebook.entries(own_codes, selectors, places)
            self._places.append(torch.from_numpy(place).flatten().to(device))
            first += own.size
        self._sorted = [_Sorted(p, first) for p in self._places] if device.type == "cuda" else []
        self._d = torch.from_numpy(d.astype(np.float32)).to(device)
        self._data, self._shape, self._fmt = data, shape, fmt
        self.entries = torch.from_numpy(libraries.astype(np.float32)).to(device)
        self.ratio = torch.zeros_like(self._d)  # of d to what it was, as a logarithm: d stays positive

    def parameters(self) -> list[tuple[Tensor, float]]:
        """What Adam changes, and its rates."""
        return [(self.entries, TABLE_RATE), (self.ratio, RATIO_RATE)]

    def weights(self, rounded: bool = False) -> Tensor:
        """What the tensor stands for, float32 in its shape; ``rounded``: as it will be in the file."""
        entries, scales = self.entries, self._scales()
        if rounded:
            entries, scales = self._rounded(), scales.half().float()
        return (self._sums(entries) * scales).view(self._shape)

    def reduce(self, gradient: Tensor) -> list[Tensor]:
        """Gradients of ``parameters`` from that of ``weights``."""
        import torch

        scaled = gradient.view(*self._d.shape, self._fmt.sb) * self._scales()
        of_entries = torch.zeros_like(self.entries)
        for by_place in self._sorted:
            of_entries += by_place.sums(scaled.flatten())
        for place in [] if self._sorted else self._places:
            of_entries.index_add_(0, place, scaled.flatten())
        return [of_entries, (scaled * self._sums(self.entries)).sum(-1)]

    def data(self) -> NDArray[np.uint8]:
        """The tensor's bytes with int8 entries and fp16 scales."""
        fmt, k = self._fmt, self._shape[-1]
        parts = codebook.split(self._data, fmt)
        strips = parts.strips.copy().view(codebook.block_dtype(fmt))
        d = self._scales().cpu().numpy().astype(np.float16).reshape(-1, ROWS, k // fmt.sb)
        strips["d"] = d.swapaxes(1, 2).reshape(-1, ROWS)
        library = self._rounded().cpu().numpy().astype(np.int8)
        return np.concatenate([strips.view(np.uint8), library.view(np.uint8), parts.second])

    def _sums(self, entries: Tensor) -> Tensor:
        """What the layers add up to for every weight, by super-block."""
        first, *others = (entries.index_select(0, place) for place in self._places)
        return sum(others, first).view(*self._d.shape, self._fmt.sb)

    def _rounded(self) -> Tensor:
        """Entries of int8; those of a second layer add up to no more with any that they are added to."""
        entries = self.entries.round().clamp(-127, 127)
        if self._fmt.second:
            met, place = entries.index_select(0, self._places[0]), self._places[1].long()
            none = entries.new_zeros(len(entries))
            least, most = (none.scatter_reduce(0, place, met, kind) for kind in ("amin", "amax"))
            second = slice(self._fmt.layers[0].library_bytes, None)
            entries[second] = entries[second].clamp(-127 - least[second], 127 - most[second])
            entries[second] = entries[second].clamp(-127, 127)
        return entries

    def _scales(self) -> Tensor:
        return (self._d * self.ratio.exp())[..., None]


class _Sorted:
    """Sums of values by place on a GPU, where index_add_ takes them in any order: in the order of places."""

    def __init__(self, place: Tensor, places: int) -> None:
        self._order = place.argsort(stable=True).int()
        self._lengths = place.bincount(minlength=places)

    def sums(self, values: Tensor) -> Tensor:
        """One sum for each place."""
        import torch

        ordered = values.index_select(0, self._order)
        return torch.segment_reduce(ordered, "sum", lengths=self._lengths, unsafe=True)  # they are right


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


def open_tensor(file: GGUFFile, info: TensorInfo, device: torch.device) -> Codebook | Norm | Tensor:
    """A tensor as what can be tuned, or as fixed weights."""
    import torch

    data = file.data(info)
    if fmt := CB_FORMATS.get(info.type):
        return Codebook(data, info.shape, fmt, device)
    if info.name.endswith("_norm.weight"):  # float32 in a file of any type
        return Norm(data, device)
    weights = dequantize(data, GGMLQuantizationType(info.type)).astype(np.float32, copy=False)
    return torch.from_numpy(weights.reshape(info.shape).copy()).to(device)
