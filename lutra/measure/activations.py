# SPDX-License-Identifier: MIT
"""What activations and caches of fewer bits cost: the divergence of a model's predictions from its own.

The model computes in float32 throughout. One kind of matrix after the other, then all of them, get their
inputs in one format after the other (rounding.py). Keys and values get each type of the cache in flash
attention, the other of the two float16, which is what the runtime does.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gguf_tools.errors import LutraError
from gguf_tools.reader import GGUFFile
from lutra.console import progress
from lutra.measure.perplexity import Text
from lutra.measure.rounding import Format, formats
from lutra.measure.tables import markdown_table
from lutra.runtime.context import CACHE_TYPES, cache_types
from lutra.runtime.model import Model
from lutra.runtime.predictor import Array, Choice, Predictor

CHUNKS = 4  # of the text, unless others are asked for
TOGETHER = "together"
# Which matrices are of a kind, by their names: the paper's four, and the output.
KINDS = {
    "qkv": r"attn_(q|k|v|qkv)\.weight$",
    "o": r"attn_output\.weight$",
    "gate-up": r"ffn_(gate|up|gate_up)(_exps|_shexp)?\.weight$",
    "down": r"ffn_down(_exps|_shexp)?\.weight$",
    "output": r"^(output|token_embd)\.weight$",
}
_BLOCK = 1 << 22  # logits that are looked at together, as float64


def measure_activations(model: Path, text: Text, threads: int, directory: Path) -> dict[str, Any]:
    """What rounding costs ``model``, whose tensors are all F32.

    ``activations`` and ``cache`` have a record for each format: its name ``format``, ``bits`` per value, and
    by column (a kind of matrix, "keys", "values", or "together") the divergence ``kld`` from the model as it
    is, nats per token, its standard error ``kld_error``, and ``ppl``. The model's own ``ppl`` is over
    ``tokens``. ``directory`` takes its predictions meanwhile. Raises LutraError for less text than a chunk.
    """
    with GGUFFile(model) as file:
        names, caches = list(file.tensors), [kind for kind in cache_types(file) if kind != "f32"]
    kinds = {kind: p for kind, p in KINDS.items() if any(re.search(p, name) for name in names)}
    kinds[TOGETHER] = "|".join(kinds.values())
    pieces = _pieces(model, text)
    n = len(formats()) * len(kinds) + 3 * len(caches)
    with progress((1 + n) * len(pieces), "chunk", "activations") as bar:
        own = _Own(model, text, pieces, threads, directory, bar.update)
        with own.predictor() as predictor:
            own.remember(predictor)
            activations = [
                _record(f.name, f.bits, {k: own.loss(predictor, _choice(f, p)) for k, p in kinds.items()})
                for f in formats()
            ]
        cache = [_record(kind, CACHE_TYPES[kind][1], _cache_losses(own, kind)) for kind in caches]
    return {"ppl": own.ppl, "tokens": len(own.targets)} | {"activations": activations, "cache": cache}


def _choice(form: Format, pattern: str) -> Choice:
    return lambda name: form.rounding if re.search(pattern, name) else None


def _cache_losses(own: _Own, kind: str) -> dict[str, dict[str, float]]:
    losses = {}
    for column, types in {"keys": (kind, "f16"), "values": ("f16", kind), TOGETHER: (kind, kind)}.items():
        with own.predictor(types) as predictor:
            losses[column] = own.loss(predictor)
    return losses


def _record(name: str, bits: float, losses: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    figures = ("kld", "kld_error", "ppl")
    return {"format": name, "bits": bits} | {
        figure: {column: loss[figure] for column, loss in losses.items()} for figure in figures
    }


def _pieces(model: Path, text: Text) -> list[list[int]]:
    """The text in chunks as llama-perplexity cuts it: each begins as a text does."""
    with Model(model, weights=False) as tokenizer:
        tokens = tokenizer.tokenize(text.path.read_text("utf-8", "replace"))
        start = tokenizer.tokenize("")
    chunks = min(len(tokens) // text.ctx, text.chunks or CHUNKS)
    if not chunks:
        raise LutraError(f"{text.path}: {len(tokens)} tokens are less than a chunk of --ctx {text.ctx}")
    pieces = [tokens[i * text.ctx : (i + 1) * text.ctx] for i in range(chunks)]
    return [[*start, *piece[len(start) :]] for piece in pieces]


class _Own:
    """A model's own predictions for the second half of each chunk, and what others lose against them."""

    def __init__(
        self,
        model: Path,
        text: Text,
        pieces: Sequence[Sequence[int]],
        threads: int,
        directory: Path,
        on_chunk: Callable[[], object],
    ) -> None:
        self._model, self._threads, self._directory, self._on_chunk = model, threads, directory, on_chunk
        self._length, self._first = text.ctx - 1, text.ctx // 2  # what follows the last token is not known
        self._pieces = pieces
        self.targets = np.array([piece[self._first + 1 :] for piece in pieces]).ravel()
        self.ppl = math.nan
        self._logits: NDArray[np.float32] = np.empty(0, np.float32)

    def predictor(self, types: tuple[str, str] | None = None) -> Predictor:
        return Predictor(self._model, self._length, self._first, threads=self._threads, cache_types=types)

    def remember(self, predictor: Predictor) -> None:
        """Compute them, to a file: with a large vocabulary they are large."""
        shape = len(self.targets), predictor.n_vocab
        self._logits = np.memmap(self._directory / "logits", np.float32, "w+", shape=shape)
        at, losses = 0, []
        for logits in self._predict(predictor, None):
            self._logits[at : at + len(logits)] = logits
            losses.append(_losses(logits, logits, self.targets[at : at + len(logits)])[1])
            at += len(logits)
        self.ppl = math.exp(np.concatenate(losses).mean())

    def loss(self, predictor: Predictor, choose: Choice | None = None) -> dict[str, float]:
        """``kld``, ``kld_error`` and ``ppl`` of a predictor, or with inputs rounded as ``choose`` says."""
        at, parts = 0, []
        for logits in self._predict(predictor, choose):
            end = at + len(logits)
            parts.append(_losses(self._logits[at:end], logits, self.targets[at:end]))
            at = end
        kld, surprise = (np.concatenate(part) for part in zip(*parts, strict=True))
        error = kld.std(ddof=1) / math.sqrt(len(kld))
        return {"kld": float(kld.mean()), "kld_error": float(error), "ppl": math.exp(surprise.mean())}

    def _predict(self, predictor: Predictor, choose: Choice | None) -> Iterator[Array]:
        for piece in self._pieces:
            yield predictor.logits(piece[:-1], choose)
            self._on_chunk()


def _losses(
    expected: Array, logits: Array, targets: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """For each token the divergence from ``expected`` (tokens, vocabulary), and minus the log of the
    probability of what came. In float64: divergences near 1e-7 are wanted.
    """
    step = max(1, _BLOCK // logits.shape[1])
    divergences, surprises = [], []
    for at in range(0, len(logits), step):
        log_p, log_q = (_log_softmax(x[at : at + step]) for x in (expected, logits))
        divergences.append((np.exp(log_p) * (log_p - log_q)).sum(axis=1))
        surprises.append(-np.take_along_axis(log_q, targets[at : at + step, None], axis=1)[:, 0])
    return np.concatenate(divergences), np.concatenate(surprises)


def _log_softmax(logits: Array) -> NDArray[np.float64]:
    x = logits.astype(np.float64)
    x -= x.max(axis=1, keepdims=True)
    x -= np.log(np.exp(x).sum(axis=1, keepdims=True))
    return x


# ---- for people ----------------------------------------------------------------------------


def describe(results: Mapping[str, Any]) -> str:
    """The tables, in Markdown: divergences, and what all columns together add to the perplexity."""
    head = f"KL divergence, nats per token, over {results['tokens']} tokens; perplexity {results['ppl']:.4f}"
    tables = [_table(key, results[key], results["ppl"]) for key in ("activations", "cache") if results[key]]
    return "\n\n".join([head, *tables])


def _table(what: str, records: Sequence[Mapping[str, Any]], ppl: float) -> str:
    columns = list(records[0]["kld"])
    grid = [[what, *(r["format"] for r in records)], ["bits", *(f"{r['bits']:.2f}" for r in records)]]
    grid += [[column, *(f"{r['kld'][column]:.1e}" for r in records)] for column in columns]
    grid.append(["perplexity", *(f"{r['ppl'][TOGETHER] / ppl - 1:+.3%}" for r in records)])
    return markdown_table(grid)
