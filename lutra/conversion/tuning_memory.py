# SPDX-License-Identifier: MIT
"""How much memory tuning takes, the usual way and frugally, and what a device has.

All of it follows from shapes, types and the memory that is built in, not from what is free: which way is
taken decides on the last bits of a file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from gguf_tools.formats.family import GROUP, CBFormat
from gguf_tools.sources.tensors import EMBEDDING, SourceTensor
from lutra.conversion.codes import packed_bytes
from lutra.conversion.llama_network import LlamaNetwork
from lutra.conversion.slabs import SLAB
from lutra.conversion.text import PIECE
from lutra.runtime.memory import total_memory

if TYPE_CHECKING:
    import torch

    from lutra.conversion.network import Network

PROGRAM = 600 << 20  # bytes of Python, torch's libraries and what they have on a GPU
FREED = 1.5  # of what passes: the C library holds much of what several threads have freed
MAY_TAKE = {"cpu": 0.9, "cuda": 0.95}  # of all memory
ADAM = 10 * 4  # bytes per scale or entry: its value, change, best, gradients, moments
IN_SLAB = 32  # bytes per weight of a slab, while its gradient is reduced
LOGITS = 5  # copies of them, of their logarithms and gradients


@dataclass(frozen=True)
class Needs:
    """Memory that a tuning takes. ``types`` of the file's tensors, None for what is no codebook."""

    network: Network
    tensors: Sequence[SourceTensor]
    types: Mapping[str, CBFormat | None]
    device: str  # "cpu" or "cuda"
    tokens: int  # of a step
    shards: int  # of it, on CPUs and frugally

    def usual(self) -> int:
        """Bytes of the usual way; where transformers computes, without activations."""
        gpu = self.device == "cuda"
        held, passing = PROGRAM + _stored(self.tensors, halves=gpu), 0
        for tensor in self.tensors:
            weights, fmt = prod(tensor.shape), self.types.get(tensor.name)
            if not fmt:
                held += 4 * weights
                continue
            codes = len(fmt.layers) * (8 if gpu else 4)  # on a GPU sorted, too
            dequantized = 8 if gpu else 4  # there a recorded step keeps them beside those of another look
            held += weights * (codes + dequantized) + _adam(weights, fmt)
        if isinstance(self.network, LlamaNetwork):
            kept, of_block, _ = self._activations(self.network)
            largest = max(prod(t.shape) for t in self.tensors)
            its_gradient = 4 * 4 * largest * (1 if gpu else self.shards)  # while it is reduced
            logits = 4 * self.tokens * LOGITS * _vocabulary(self.tensors)
            passing = 4 * self.tokens * (self.network.layers * kept + of_block) + max(its_gradient, logits)
        return int(held + (passing if gpu else FREED * passing))

    def frugal(self) -> int | None:
        """Bytes of the frugal way, None where there is none."""
        if not isinstance(self.network, LlamaNetwork):
            return None
        held = float(PROGRAM + _stored(self.tensors, halves=True))
        for tensor in self.tensors:
            weights, fmt = prod(tensor.shape), self.types.get(tensor.name)
            if fmt:
                held += weights * (1 / GROUP + sum(map(packed_bytes, fmt.layers))) + _adam(weights, fmt)
            else:
                held += 4 * weights
        kept, of_block, hidden = self._activations(self.network)
        tokens = self.tokens / self.shards
        slab = min(SLAB[self.device], max(prod(t.shape) for t in self.tensors))
        passing = 4 * tokens * ((self.network.layers + 4) * hidden + kept + of_block)
        passing += IN_SLAB * slab + 4 * tokens * LOGITS * slab / hidden
        return int(held + passing * (1 if self.device == "cuda" else FREED * self.shards))

    def _activations(self, network: LlamaNetwork) -> tuple[int, int, int]:
        """Floats per token: kept of a block for its gradients, passing while it is computed, its input."""
        hidden = next(t.k for t in self.tensors if t.name == EMBEDDING)
        inner = max(t.rows for t in self.tensors if t.name.endswith("ffn_up.weight"))
        q, kv = network.heads * network.head_dim, network.kv_heads * network.head_dim
        scores = network.heads * PIECE
        return 6 * hidden + 2 * q + 4 * kv + scores + 4 * inner, 4 * hidden + 3 * scores + 3 * inner, hidden


def at_once(
    network: Network,
    tensors: Sequence[SourceTensor],
    device: torch.device,
    length: int,
    *,
    most: int,
    frugal: bool,
) -> int:
    """How many sequences of ``length`` tokens the original writes side by side on a GPU: ``most``, or as many
    as there is room for, a power of two.
    """
    weights = [prod(t.shape) for t in tensors]
    if frugal:
        passing = IN_SLAB * SLAB[device.type]
    else:  # in single precision
        passing = 4 * (max(weights) if isinstance(network, LlamaNetwork) else sum(weights))
    room = available(device) - PROGRAM - _stored(tensors, halves=True) - passing
    of_one = network.cache_bytes(length) + 4 * LOGITS * _vocabulary(tensors)
    return 1 << (max(1, min(most, room // of_one)).bit_length() - 1)


def available(device: torch.device) -> int:
    """Bytes that tuning may take of a device, whatever is free at the moment."""
    import torch

    if device.type == "cuda":
        return int(MAY_TAKE["cuda"] * torch.cuda.get_device_properties(device).total_memory)
    return int(MAY_TAKE["cpu"] * total_memory())


def _stored(tensors: Sequence[SourceTensor], *, halves: bool) -> int:
    return sum(prod(t.shape) * (2 if halves and t.dtype in ("F16", "BF16") else 4) for t in tensors)


def _vocabulary(tensors: Sequence[SourceTensor]) -> int:
    return next(t.rows for t in tensors if t.name == EMBEDDING)


def checkpoint_bytes(weights: int, fmt: CBFormat) -> int:
    """Of the file that keeps a tensor's state: what is tuned, the best of it, two moments, each 4 bytes."""
    return 4 * 4 * _parameters(weights, fmt)


def _adam(weights: int, fmt: CBFormat) -> int:
    return ADAM * _parameters(weights, fmt)


def _parameters(weights: int, fmt: CBFormat) -> int:
    return weights // fmt.sb + fmt.library_bytes
