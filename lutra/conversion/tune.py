# SPDX-License-Identifier: MIT
"""Tuning what the codes leave open: libraries, scales and norms follow the original model's predictions.

The codes and selectors of a finished file stay as they are. The entries of the libraries, the scale d of
every super-block and the norms are continuous, and Adam takes them down the KL divergence from the original
model's predictions to those of the file: distillation (arXiv 1503.02531) into few parameters. torch computes
both networks from the tensors under their GGUF names; it is optional and imported only here, when needed.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from gguf import GGMLQuantizationType
from gguf.quants import dequantize
from numpy.typing import NDArray

from gguf_tools.errors import LutraError
from gguf_tools.formats import codebook
from gguf_tools.formats.family import CB_FORMATS, ROWS, CBFormat
from gguf_tools.reader import GGUFFile, TensorInfo
from gguf_tools.sources.tensors import Source
from gguf_tools.writer import GGUFWriter, TensorSpec
from lutra.console import progress

if TYPE_CHECKING:
    from torch import Tensor

    Weights = Mapping[str, Tensor]  # by GGUF name, float32

TOKENS = 1 << 17  # of the text, at most
EPOCHS = 1
BATCH = 2048  # tokens of a step
SHARDS = 4  # of a step, computed side by side; fixed, so that sums do not depend on the number of threads
WARM_UP = 5  # steps
TABLE_RATE = 0.1  # of Adam at the start: entries by so much of an int8 step,
RATIO_RATE = 1e-3  # scales and norms by so much of themselves
BETAS = 0.9, 0.95


def require_torch() -> None:
    """Raise LutraError when torch is missing."""
    if importlib.util.find_spec("torch") is None:
        raise LutraError("--tune needs torch: run pip install torch, or convert without it")


def require(source: Source) -> None:
    """Raise LutraError, before any work, when torch is missing or ``source`` is a network unknown here."""
    require_torch()
    Network.of(source)


# ---- the network ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Network:
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
    def of(cls, source: Source) -> Network:
        """From GGUF metadata. Raises LutraError for what ``forward`` would compute wrongly."""
        arch = source.architecture

        def value(key: str, default: Any = None) -> Any:
            found = source.metadata.get(f"{arch}.{key}")
            return default if found is None else found.value

        def refuse(what: str) -> LutraError:
            return LutraError(f"{source.path}: --tune cannot compute {what}; convert without it")

        if arch not in ("llama", "qwen2"):
            raise refuse(f"the architecture {arch!r}, only llama and qwen2")
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

    def forward(self, w: Weights, tokens: Tensor) -> Tensor:
        """Logits (sequences, tokens, vocabulary) of ``tokens`` (sequences, tokens)."""
        from torch.nn.functional import embedding, silu

        x = embedding(tokens, w["token_embd.weight"])
        turns = self._turns(w, tokens.shape[1])
        for i in range(self.layers):
            block = f"blk.{i}."
            h = self._norm(x, w[block + "attn_norm.weight"])
            q, k, v = (_linear(w, block + name, h) for name in ("attn_q", "attn_k", "attn_v"))
            x = x + _linear(w, block + "attn_output", self._attention(q, k, v, turns))
            h = self._norm(x, w[block + "ffn_norm.weight"])
            inner = silu(_linear(w, block + "ffn_gate", h)) * _linear(w, block + "ffn_up", h)
            x = x + _linear(w, block + "ffn_down", inner)
        x = self._norm(x, w["output_norm.weight"])
        return _linear(w, "token_embd" if self.tied else "output", x)

    def _norm(self, x: Tensor, w: Tensor) -> Tensor:
        return x * (x.square().mean(-1, keepdim=True) + self.eps).rsqrt() * w

    def _turns(self, w: Weights, length: int) -> tuple[Tensor, Tensor]:
        import torch

        frequencies = self.theta ** (-torch.arange(0, self.head_dim, 2) / self.head_dim)
        if "rope_freqs.weight" in w:
            frequencies = frequencies / w["rope_freqs.weight"]
        angles = torch.arange(length)[:, None] * frequencies
        return angles.cos(), angles.sin()

    def _rotate(self, x: Tensor, turns: tuple[Tensor, Tensor]) -> Tensor:
        import torch

        cos, sin = turns
        a, b = (x[..., ::2], x[..., 1::2]) if self.interleaved else x.chunk(2, -1)
        # The order within a head does not matter where q meets k.
        return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)

    def _attention(self, q: Tensor, k: Tensor, v: Tensor, turns: tuple[Tensor, Tensor]) -> Tensor:
        import torch

        n, length, _ = q.shape
        q, k, v = (x.view(n, length, -1, self.head_dim).transpose(1, 2) for x in (q, k, v))
        q = self._rotate(q, turns).reshape(n, self.kv_heads, -1, self.head_dim)
        k = self._rotate(k, turns)
        scores = (q @ k.transpose(-1, -2)).view(n, self.heads, length, length) * self.head_dim**-0.5
        scores = scores + torch.full((length, length), -torch.inf).triu(1)
        mixed = scores.softmax(-1).view(n, self.kv_heads, -1, length) @ v
        return mixed.view(n, self.heads, length, self.head_dim).transpose(1, 2).reshape(n, length, -1)


def _linear(w: Weights, name: str, x: Tensor) -> Tensor:
    from torch.nn.functional import linear

    return linear(x, w[name + ".weight"], w.get(name + ".bias"))


# ---- what is tuned -------------------------------------------------------------------------


class Codebook:
    """A codebook tensor: its codes are fixed, entries and scales are not."""

    def __init__(self, data: NDArray[np.uint8], rows: int, k: int, fmt: CBFormat) -> None:
        import torch

        codes, selectors, d, library = codebook.unpack(data, rows, k, fmt)
        places = np.arange(library.size, dtype=np.int32).reshape(library.shape)
        place = codebook.entries(codes, selectors, places, fmt)
        self._place = torch.from_numpy(place).flatten()
        self._d = torch.from_numpy(d.astype(np.float32))
        self._data, self._shape, self._fmt = data, (rows, k), fmt
        self.entries = torch.from_numpy(library.astype(np.float32)).flatten()
        self.ratio = torch.zeros_like(self._d)  # of d to what it was, as a logarithm: d stays positive

    def parameters(self) -> list[tuple[Tensor, float]]:
        """What Adam changes, and its rates."""
        return [(self.entries, TABLE_RATE), (self.ratio, RATIO_RATE)]

    def weights(self) -> Tensor:
        """What the tensor stands for, float32 (rows, k)."""
        return (self._entries() * self._scales()).view(self._shape)

    def reduce(self, gradient: Tensor) -> list[Tensor]:
        """Gradients of ``parameters`` from that of ``weights``."""
        import torch

        scaled = gradient.view(*self._d.shape, self._fmt.sb) * self._scales()
        of_entries = torch.zeros_like(self.entries).index_add_(0, self._place, scaled.flatten())
        return [of_entries, (scaled * self._entries()).sum(-1)]

    def data(self) -> NDArray[np.uint8]:
        """The tensor's bytes with int8 entries and fp16 scales."""
        (rows, k), fmt = self._shape, self._fmt
        strips = self._data[: -fmt.library_bytes].copy().view(codebook.block_dtype(fmt))
        d = self._scales().numpy().astype(np.float16).reshape(rows // ROWS, ROWS, k // fmt.sb)
        strips["d"] = d.swapaxes(1, 2).reshape(-1, ROWS)
        library = self.entries.round().clamp(-127, 127).numpy().astype(np.int8)
        return np.concatenate([strips.view(np.uint8), library.view(np.uint8)])

    def _entries(self) -> Tensor:
        return self.entries[self._place].view(*self._d.shape, self._fmt.sb)

    def _scales(self) -> Tensor:
        return (self._d * self.ratio.exp())[..., None]


class Norm:
    """The weights of a norm."""

    def __init__(self, data: NDArray[np.uint8]) -> None:
        import torch

        self._start = torch.from_numpy(data.view(np.float32).copy())
        self.ratio = torch.zeros_like(self._start)

    def parameters(self) -> list[tuple[Tensor, float]]:
        """As for ``Codebook``."""
        return [(self.ratio, RATIO_RATE)]

    def weights(self) -> Tensor:
        """Float32 (k,)."""
        return self._start * self.ratio.exp()

    def reduce(self, gradient: Tensor) -> list[Tensor]:
        """As for ``Codebook``."""
        return [gradient * self.weights()]

    def data(self) -> NDArray[np.uint8]:
        """The tensor's bytes."""
        data: NDArray[np.uint8] = self.weights().numpy().view(np.uint8)
        return data


def _open(file: GGUFFile, info: TensorInfo) -> Codebook | Norm | Tensor:
    """A tensor as what can be tuned, or as fixed float32 weights."""
    import torch

    data = file.data(info)
    if fmt := CB_FORMATS.get(info.type):
        return Codebook(data, info.shape[0], info.shape[1], fmt)
    if info.name.endswith("_norm.weight"):  # float32 in a file of any type
        return Norm(data)
    weights = dequantize(data, GGMLQuantizationType(info.type)).astype(np.float32, copy=False)
    return torch.from_numpy(weights.reshape(info.shape).copy())


# ---- tuning --------------------------------------------------------------------------------


def tune(
    path: Path, source: Source, output: Path, pieces: Sequence[Sequence[int]], *, seed: int, threads: int
) -> None:
    """Write ``path``, a file made from ``source``, to ``output`` with other libraries, scales and norms.

    ``pieces``: sequences of tokens, all of one length, to predict. Nothing else in the file changes. The same
    ``seed`` gives the same file for any number of ``threads``, on one kind of CPU and version of torch.
    Memory: 12 bytes per weight, and activations and logits of BATCH tokens. Raises LutraError as ``require``.
    """
    require(source)
    with GGUFFile(path) as file:
        _tune(file, source, output, pieces, seed, threads)


def _tune(
    file: GGUFFile, source: Source, output: Path, pieces: Sequence[Sequence[int]], seed: int, threads: int
) -> None:
    import torch

    network = Network.of(source)
    original = {t.name: torch.from_numpy(t.read().reshape(t.shape)) for t in source.tensors}
    tensors = {name: _open(file, info) for name, info in file.tensors.items()}
    tuned = {name: t for name, t in tensors.items() if isinstance(t, Codebook | Norm)}
    fixed = {name: t for name, t in tensors.items() if name not in tuned}
    parameters = [p for t in tuned.values() for p in t.parameters()]
    adam = torch.optim.Adam([{"params": [p], "lr": rate} for p, rate in parameters], betas=BETAS)
    batches = list(_batches(np.array(pieces), np.random.default_rng(seed)))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        adam, lambda step: min(1, (step + 1) / WARM_UP) * (1 - step / len(batches))
    )
    torch.set_num_threads(1)  # here and in every thread: sums in one order, no threads that spin
    with (
        ThreadPoolExecutor(min(threads, SHARDS), initializer=torch.set_num_threads, initargs=(1,)) as pool,
        progress(sum(b.size for b in batches), "tok", "tuning") as bar,
    ):
        for batch in batches:
            weights = fixed | {name: t.weights() for name, t in tuned.items()}

            def shard(tokens: NDArray[np.int64], weights: Weights = weights) -> tuple[float, list[Tensor]]:
                return _gradients(network, original, weights, tuned, torch.from_numpy(tokens))

            loss = 0.0
            for p, _ in parameters:
                p.grad = torch.zeros_like(p)
            for part, gradients in pool.map(shard, np.array_split(batch, min(SHARDS, len(batch)))):
                loss += part / batch.size
                for (p, _), gradient in zip(parameters, gradients, strict=True):
                    p.grad += gradient / batch.size
            adam.step()
            schedule.step()
            bar.set_postfix_str(f"divergence {loss:.3f}")
            bar.update(batch.size)
    specs = [TensorSpec(t.name, t.type, t.shape, t.nbytes) for t in file.tensors.values()]
    with GGUFWriter(output, file.metadata, specs) as writer:
        for name, info in file.tensors.items():
            writer.write(tuned[name].data() if name in tuned else file.data(info))


def _batches(pieces: NDArray[np.int64], rng: np.random.Generator) -> Iterator[NDArray[np.int64]]:
    size = max(1, BATCH // pieces.shape[1])
    for _ in range(EPOCHS):
        order = rng.permutation(len(pieces))
        for start in range(0, len(order), size):
            yield pieces[order[start : start + size]]


def _gradients(
    network: Network,
    original: Weights,
    weights: Weights,
    tuned: Mapping[str, Codebook | Norm],
    tokens: Tensor,
) -> tuple[float, list[Tensor]]:
    """KL divergence, summed over ``tokens``, and its gradients in the order of all ``parameters``."""
    import torch
    from torch.nn.functional import kl_div

    reduced: dict[str, list[Tensor]] = {}

    def watched(name: str) -> Tensor:
        leaf = weights[name].detach().requires_grad_()  # the same memory, a gradient of its own

        def reduce(leaf: Tensor) -> None:  # at once: gradients of all weights would take much more memory
            reduced[name] = tuned[name].reduce(leaf.grad)
            leaf.grad = None

        leaf.register_post_accumulate_grad_hook(reduce)
        return leaf

    with torch.no_grad():
        target = network.forward(original, tokens).log_softmax(-1)
    leaves = {name: watched(name) if name in tuned else w for name, w in weights.items()}
    prediction = network.forward(leaves, tokens).log_softmax(-1)
    loss = kl_div(prediction, target, log_target=True, reduction="sum")
    loss.backward()
    return loss.item(), [gradient for name in tuned for gradient in reduced[name]]
