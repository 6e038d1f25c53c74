# SPDX-License-Identifier: MIT
"""Networks that can be tuned, in torch, from tensors under their GGUF names."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from gguf_tools.errors import LutraError
from gguf_tools.sources.tensors import Source
from lutra.conversion.llama_network import LlamaNetwork
from lutra.conversion.transformers_network import TransformersNetwork

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from lutra.runtime.sample import Writer

    Weights = Mapping[str, Tensor]  # by GGUF name
    See = Callable[[str, Tensor], None]


class Predict(Protocol):
    """A network with its weights."""

    def __call__(self, tokens: Tensor, cache: Any = None) -> Tensor:
        """Logits (sequences, tokens, vocabulary), float32, of ``tokens`` (sequences, tokens).

        With a ``cache`` they follow the tokens that it holds, and are added to it.
        """


class Network(Protocol):
    """What tensors do not say. Threads may use it side by side."""

    def bound(self, weights: Weights) -> Predict:
        """With these weights, which may have half precision; all is computed in single."""

    def watched(self, weights: Weights, see: See) -> Predict:
        """``bound``, and ``see`` is told the gradient of each matrix's products in the blocks, where there is
        one, with its name: float32 (sequences, tokens, rows), rows as in GGUF.
        """

    def cache(self, n: int, length: int, device: torch.device) -> Any:
        """Empty, for at most ``length`` tokens of ``n`` sequences."""

    def cache_bytes(self, length: int) -> int:
        """What a sequence of ``length`` tokens takes of it, with what passes while a layer is read."""


def network_of(source: Source) -> Network:
    """The network of ``source``. Raises LutraError for what would be computed wrongly."""
    try:
        return LlamaNetwork.of(source)
    except LutraError as error:
        if source.path.is_file():
            raise LutraError(f"{error}, or give the model's Hugging Face directory") from None
        if source.gguf:  # llama.cpp's converter made it: no family says which tensor is which
            raise
    return TransformersNetwork(source)


class NetworkSampling:
    """As ``lutra.runtime.sample.Sampling``, on a device of torch."""

    def __init__(self, network: Network, weights: Weights, *, length: int) -> None:
        self._network, self._weights, self._length = network, weights, length

    def write(
        self,
        writers: Sequence[Writer],
        temperatures: Sequence[float],
        seed: int,
        show: Callable[[int], object],
    ) -> list[list[int]]:
        """What each of ``writers`` wrote: see ``Sampling.write``."""
        import torch

        device = self._weights["token_embd.weight"].device
        random = torch.Generator(device).manual_seed(seed)
        cold = 1 / torch.tensor(temperatures, device=device)[:, None]
        cache = self._network.cache(len(writers), self._length, device)
        predict = self._network.bound(self._weights)
        written = [[next(writer)] for writer in writers]
        with torch.no_grad():
            while len(written[0]) < self._length:
                last = torch.tensor([tokens[-1:] for tokens in written], device=device)
                p = (predict(last, cache)[:, 0] * cold).softmax(-1)
                # The largest of p / exponential noise is a draw from p.
                noise = torch.empty_like(p).exponential_(generator=random)
                drawn = (p / noise).argmax(-1).tolist()
                for tokens, writer, token in zip(written, writers, drawn, strict=True):
                    tokens.append(writer.send(token))
                show(len(writers))
        return written
