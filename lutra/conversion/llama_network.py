# SPDX-License-Identifier: MIT
"""The network of the Llama and Qwen2 families, in torch, from tensors under their GGUF names.

It is written here, though transformers has it, for sources that are a GGUF, which has no config.json, and so
that torch is enough.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from gguf_tools.errors import LutraError
from gguf_tools.sources.tensors import Source
from lutra.conversion.slabs import Matrix

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from lutra.conversion.network import Predict, See, Weights


@dataclass(frozen=True)
class LlamaNetwork:
    """A decoder of the Llama or Qwen2 family: what its tensors do not say."""

    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    eps: float
    theta: float
    interleaved: bool  # rotary pairs are neighbours, not halves of the head
    tied: bool

    @classmethod
    def of(cls, source: Source) -> LlamaNetwork:
        """From GGUF metadata. Raises LutraError for what ``forward`` would compute wrongly."""
        arch = source.architecture

        def value(key: str, default: Any = None) -> Any:
            found = source.metadata.get(f"{arch}.{key}")
            return default if found is None else found.value

        def refuse(what: str) -> LutraError:
            return LutraError(f"{source.path}: --tune cannot compute {what}; convert without it")

        if arch not in ("llama", "qwen2"):
            raise refuse(f"the architecture {arch!r}")
        if value("rope.scaling.type", "none") != "none":
            raise refuse(f"positions of rope type {value('rope.scaling.type')!r}")
        names = {t.name for t in source.tensors}
        heads = int(value("attention.head_count"))
        head_dim = int(value("attention.key_length", value("embedding_length") // heads))
        if (turned := value("rope.dimension_count", head_dim)) != head_dim:
            raise refuse(f"heads of {head_dim} of which {turned} turn")
        network = cls(
            layers=int(value("block_count")),
            heads=heads,
            kv_heads=int(value("attention.head_count_kv", heads)),
            head_dim=head_dim,
            eps=float(value("attention.layer_norm_rms_epsilon")),
            theta=float(value("rope.freq_base", 10000.0)),
            interleaved=arch == "llama",
            tied="output.weight" not in names,
        )
        if unknown := sorted(names - set(network.names())):
            raise refuse(f"the tensor {unknown[0]!r}")
        return network

    def names(self) -> Iterator[str]:
        """Every tensor that ``forward`` knows."""
        yield from ("token_embd.weight", "output_norm.weight", "output.weight", "rope_freqs.weight")
        for i in range(self.layers):
            for part in ("attn_norm", "ffn_norm", "attn_output", "ffn_gate", "ffn_up", "ffn_down"):
                yield f"blk.{i}.{part}.weight"
            for part in ("attn_q", "attn_k", "attn_v"):
                yield from (f"blk.{i}.{part}.weight", f"blk.{i}.{part}.bias")

    def bound(self, weights: Weights) -> Predict:
        """See ``Network``."""
        return partial(self.forward, weights)

    def watched(self, weights: Weights, see: See) -> Predict:
        """See ``Network``."""
        matrices = (name for name, w in weights.items() if name.startswith("blk.") and w.dim() == 2)
        return self.bound({**weights, **{name: _Watched(name, weights[name], see) for name in matrices}})

    def cache(self, n: int, length: int, device: torch.device) -> Cache:
        """See ``Network``."""
        return Cache(self, n, length, device)

    def cache_bytes(self, length: int) -> int:
        """See ``Network``."""
        of_layer = 2 * self.kv_heads * length * self.head_dim  # keys and values
        return 2 * self.layers * of_layer + 4 * of_layer  # half precision, and of one layer single

    def forward(self, w: Weights, tokens: Tensor, cache: Cache | None = None) -> Tensor:
        """Logits (sequences, tokens, vocabulary) of ``tokens`` (sequences, tokens).

        With a ``cache`` they follow the tokens that it holds, and are added to it. Weights may have half
        precision; all is computed in single.
        """
        return _linear(w, self.output, self.hidden(w, tokens, cache))

    @property
    def output(self) -> str:
        """The name of the matrix whose products are logits, without its ending."""
        return "token_embd" if self.tied else "output"

    def hidden(
        self, w: Weights, tokens: Tensor, cache: Cache | None = None, recomputed: bool = False
    ) -> Tensor:
        """What logits are the products of, (sequences, tokens, k).

        ``recomputed``: for the gradients each block is computed again, so that only its inputs are kept.
        """
        from torch.utils.checkpoint import checkpoint

        x = _embedded(w["token_embd.weight"], tokens)
        turns = self._turns(w, cache.length if cache else 0, tokens)
        for i in range(self.layers):
            if recomputed:
                x = checkpoint(self._block, w, x, turns, i, use_reentrant=False, preserve_rng_state=False)
            else:
                x = self._block(w, x, turns, i, cache)
        if cache:
            cache.length += tokens.shape[1]
        return self._norm(x, w["output_norm.weight"])

    def _block(
        self, w: Weights, x: Tensor, turns: tuple[Tensor, Tensor], layer: int, cache: Cache | None = None
    ) -> Tensor:
        from torch.nn.functional import silu

        block = f"blk.{layer}."
        h = self._norm(x, w[block + "attn_norm.weight"])
        q, k, v = (_linear(w, block + name, h) for name in ("attn_q", "attn_k", "attn_v"))
        x = x + _linear(w, block + "attn_output", self._attention(q, k, v, turns, cache, layer))
        h = self._norm(x, w[block + "ffn_norm.weight"])
        inner = silu(_linear(w, block + "ffn_gate", h)) * _linear(w, block + "ffn_up", h)
        return x + _linear(w, block + "ffn_down", inner)

    def _norm(self, x: Tensor, w: Tensor) -> Tensor:
        return x * (x.square().mean(-1, keepdim=True) + self.eps).rsqrt() * w

    def _turns(self, w: Weights, start: int, tokens: Tensor) -> tuple[Tensor, Tensor]:
        import torch

        frequencies = self.theta ** (-torch.arange(0, self.head_dim, 2, device=tokens.device) / self.head_dim)
        if "rope_freqs.weight" in w:
            frequencies = frequencies / w["rope_freqs.weight"]
        positions = torch.arange(start, start + tokens.shape[1], device=tokens.device)
        angles = positions[:, None] * frequencies
        return angles.cos(), angles.sin()

    def _rotate(self, x: Tensor, turns: tuple[Tensor, Tensor]) -> Tensor:
        import torch

        cos, sin = turns
        a, b = (x[..., ::2], x[..., 1::2]) if self.interleaved else x.chunk(2, -1)
        # The order within a head does not matter where q meets k.
        return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)

    def _attention(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        turns: tuple[Tensor, Tensor],
        cache: Cache | None,
        layer: int,
    ) -> Tensor:
        import torch

        n, length, _ = q.shape
        q, k, v = (x.view(n, length, -1, self.head_dim).transpose(1, 2) for x in (q, k, v))
        q = self._rotate(q, turns).reshape(n, self.kv_heads, -1, self.head_dim)
        k = self._rotate(k, turns)
        if cache:
            k, v = cache.extended(layer, k, v)
        seen = k.shape[-2]
        scores = (q @ k.transpose(-1, -2)).view(n, self.heads, length, seen) * self.head_dim**-0.5
        if length > 1:
            hidden = torch.full((length, seen), -torch.inf, device=q.device).triu(1 + seen - length)
            scores = scores + hidden
        mixed = scores.softmax(-1).view(n, self.kv_heads, -1, seen) @ v
        return mixed.view(n, self.heads, length, self.head_dim).transpose(1, 2).reshape(n, length, -1)


def _linear(w: Weights, name: str, x: Tensor) -> Tensor:
    from torch.nn.functional import linear

    weights, bias = w[name + ".weight"], w.get(name + ".bias")
    if isinstance(weights, Matrix):
        y = weights.times(x)
        return y if bias is None else y + bias
    return linear(x, weights.float(), None if bias is None else bias.float())


def _embedded(weights: Tensor | Matrix, tokens: Tensor) -> Tensor:
    from torch.nn.functional import embedding

    return weights.chosen(tokens) if isinstance(weights, Matrix) else embedding(tokens, weights).float()


class _Watched(Matrix):
    """A tensor that tells ``see`` the gradients of its products."""

    def __init__(self, name: str, tensor: Tensor, see: See) -> None:
        n, k = tensor.shape
        super().__init__(n, k, tensor.device)
        self._name, self._tensor, self._see = name, tensor, see

    def times(self, x: Tensor) -> Tensor:
        """See ``Matrix``."""
        from torch.nn.functional import linear

        y = linear(x, self._tensor.float())
        if y.requires_grad:
            y.register_hook(partial(self._see, self._name))
        return y


class Cache:
    """Keys and values of at most ``length`` tokens of ``n`` sequences, in half precision."""

    def __init__(self, network: LlamaNetwork, n: int, length: int, device: torch.device) -> None:
        import torch

        shape = 2, network.layers, n, network.kv_heads, length, network.head_dim
        self._memory = torch.empty(shape, dtype=torch.bfloat16, device=device)
        self.length = 0  # tokens held

    def extended(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Add to a layer, and return all that it has."""
        stop = self.length + k.shape[-2]
        memory = self._memory[:, layer]
        for part, new in zip(memory, (k, v), strict=True):
            part[:, :, self.length : stop] = new
        keys, values = memory[:, :, :, :stop].float()
        return keys, values
