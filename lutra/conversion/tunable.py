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

TABLE_RATE = 0.1  # of Adam at the start: entries by so much of an int8 step,
RATIO_RATE = 1e-3  # scales and norms by so much of themselves


class Codebook:
    """A codebook tensor: its codes are fixed, entries and scales are not."""

    def __init__(
        self, data: NDArray[np.uint8], shape: tuple[int, ...], fmt: CBFormat, device: torch.device
    ) -> None:
        import torch

        rows, k = prod(shape[:-1]), shape[-1]
        codes, selectors, d, library = codebook.unpack(data, rows, k, fmt)
        places = np.arange(library.size, dtype=np.int32).reshape(library.shape)
        place = codebook.entries(codes, selectors, places)
        self._place = torch.from_numpy(place).flatten().to(device)
        self._sorted = _Sorted(self._place, library.size) if device.type == "cuda" else None
        self._d = torch.from_numpy(d.astype(np.float32)).to(device)
        self._data, self._shape, self._fmt = data, shape, fmt
        self.entries = torch.from_numpy(library.astype(np.float32)).flatten().to(device)
        self.ratio = torch.zeros_like(self._d)  # of d to what it was, as a logarithm: d stays positive

    def parameters(self) -> list[tuple[Tensor, float]]:
        """What Adam changes, and its rates."""
        return [(self.entries, TABLE_RATE), (self.ratio, RATIO_RATE)]

    def weights(self, rounded: bool = False) -> Tensor:
        """What the tensor stands for, float32 in its shape; ``rounded``: as it will be in the file."""
        entries, scales = self.entries, self._scales()
        if rounded:
            entries, scales = entries.round().clamp(-127, 127), scales.half().float()
        return (entries.index_select(0, self._place).view(*self._d.shape, self._fmt.sb) * scales).view(
            self._shape
        )

    def reduce(self, gradient: Tensor) -> list[Tensor]:
        """Gradients of ``parameters`` from that of ``weights``."""
        import torch

        scaled = gradient.view(*self._d.shape, self._fmt.sb) * self._scales()
        if self._sorted:
            of_entries = self._sorted.sums(scaled.flatten())
        else:
            of_entries = torch.zeros_like(self.entries).index_add_(0, self._place, scaled.flatten())
        entries = self.entries.index_select(0, self._place).view(*self._d.shape, self._fmt.sb)
        return [of_entries, (scaled * entries).sum(-1)]

    def data(self) -> NDArray[np.uint8]:
        """The tensor's bytes with int8 entries and fp16 scales."""
        fmt, k = self._fmt, self._shape[-1]
        strips = codebook.split(self._data, fmt).strips.copy().view(codebook.block_dtype(fmt))
        d = self._scales().cpu().numpy().astype(np.float16).reshape(-1, ROWS, k // fmt.sb)
        strips["d"] = d.swapaxes(1, 2).reshape(-1, ROWS)
        library = self.entries.round().clamp(-127, 127).cpu().numpy().astype(np.int8)
        return np.concatenate([strips.view(np.uint8), library.view(np.uint8)])

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
