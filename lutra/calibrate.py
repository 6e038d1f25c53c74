"""Calibrated quantization: each matrix behind the layers already quantized, in one pass of the model.

Two copies of the model compute the calibration text side by side: the original, and one whose matrices
are replaced as soon as they are quantized. Before a matrix is used both stop. X are its inputs in the second
copy, X0 what they should have been; the Hessian is X^T X, and the target is moved towards the output W X0^T
that the original has (half of the way: all of it would fit the noise of a small text).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from gguf_tools.errors import LutraError
from lutra.observe import Observer
from lutra.plan import EMBEDDING, OUTPUT, Planned
from lutra.runtime import Model
from lutra.template import ChatTemplate
from pyquant.feedback import DAMPING, Encoded, multiply, quantize, slices

PIECE = 256  # tokens of a sequence
TOKENS = 16384  # calibration tokens, at most
SMALL = 1 << 25  # weights of a model that is done in a minute with twice as many
SHIFT = 0.5  # of the way from the output behind the quantized layers to the original one
OUTPUT_SHARE = 0.8  # of tied embeddings' Hessian: blocks make up for errors of inputs, not of outputs
LOGITS = 1 << 28  # predictions that the runtime keeps at most; nobody reads them

Array = NDArray[np.float32]


# ---- the text ------------------------------------------------------------------------------


def read_pieces(path: Path, model: Path, weights: int) -> list[list[int]]:
    """The calibration text as sequences of PIECE tokens, spread over the whole of it.

    ``model`` tokenizes; its number of ``weights`` decides how much of the text is used.
    JSON lines hold {"text": ...} or {"messages": [...]} (through the model's chat template, if it has one);
    any other file is one text. Raises LutraError when there is less than one sequence.
    """
    runtime = Model(model, threads=1, weights=False)
    template = ChatTemplate.of(runtime) if runtime.chat_template else None
    tokens = [token for text in _documents(path, template) for token in runtime.tokenize(text)]
    count = min(len(tokens), TOKENS if weights > SMALL else 2 * TOKENS) // PIECE
    if not count:
        raise LutraError(f"{path}: {len(tokens)} tokens; calibration needs {PIECE}, better {TOKENS}")
    starts = np.linspace(0, len(tokens) - PIECE, count).astype(int)
    return [tokens[start : start + PIECE] for start in starts]


def _documents(path: Path, template: ChatTemplate | None) -> Iterator[str]:
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise LutraError(f"{path}: cannot be read as a UTF-8 text: {error}") from None
    if path.suffix != ".jsonl":
        yield text
        return
    for number, line in enumerate(text.splitlines(), 1):
        try:
            entry = json.loads(line)
            if "text" in entry:
                yield entry["text"]
            elif template:
                yield template.render(entry["messages"], prompt=False)
            else:
                yield "\n".join(message["content"] for message in entry["messages"])
        except (ValueError, KeyError, TypeError):
            raise LutraError(f'{path}:{number}: needs {{"text": ...}} or {{"messages": [...]}}') from None


# ---- the pass ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Statistics:
    """Of the inputs of a matrix: the Hessian X^T X / tokens, and the drift (X0 - X)^T X / tokens."""

    hessian: Array
    drift: Array

    @classmethod
    def of(cls, inputs: Array, original: Array, threads: int) -> Statistics:
        """From inputs (tokens, k) behind the quantized layers and in the original model."""
        tokens, k = inputs.shape
        hessian, drift = np.empty((k, k), np.float32), np.empty((k, k), np.float32)
        difference = original - inputs

        def part(rows: slice) -> None:
            np.matmul(inputs[:, rows].T, inputs, out=hessian[rows])
            np.matmul(difference[:, rows].T, inputs, out=drift[rows])

        slices(k, part, threads)
        return cls((hessian + hessian.T) / np.float32(2 * tokens), drift / np.float32(tokens))

    def target(self, w: Array, threads: int) -> Array:
        """The weights to aim at: ``w`` and its drift, as far as these inputs can make up for it."""
        h = self.hessian.astype(np.float64)
        h += DAMPING * np.trace(h) / len(h) * np.eye(len(h))
        drift = multiply(w, self.drift, threads).astype(np.float64)
        with threadpool_limits(1, user_api="blas"):  # the same bits for any number of threads
            shift = np.linalg.solve(h, drift.T).T
        return w + np.float32(SHIFT) * shift.astype(np.float32)


def embedding_hessian(model: Path, name: str, pieces: Sequence[Sequence[int]], threads: int) -> Array:
    """For token embeddings ``name`` that are the output matrix as well: of what the original model multiplies
    them by, and the identity for their part as inputs, of which nothing is known.
    """
    observer = Observer(model, pieces, {name}, threads=threads, predictions=LOGITS, lookups=False)
    try:
        for stop in observer:
            assert stop.inputs is not None  # no lookups
            h = Statistics.of(stop.inputs, stop.inputs, threads).hessian
            h *= np.float32(OUTPUT_SHARE * len(h) / np.trace(h))
            return h + np.float32(1 - OUTPUT_SHARE) * np.eye(len(h), dtype=np.float32)
    finally:
        observer.close()
    raise LutraError(f"{model}: the graph does not multiply by {name}")


def calibrate(
    model: Path, planned: Sequence[Planned], pieces: Sequence[Sequence[int]], seed: int, threads: int
) -> Iterator[tuple[Planned, Encoded]]:
    """Yield the codebook matrices of ``planned`` as they are quantized, in the order of the graph.

    ``model`` is their source as an F16 GGUF. Matrices that its graph does not multiply by (experts) are not
    among them.
    """
    wanted = {p.source.name: p for p in planned if p.fmt}
    tied = all(p.source.name != OUTPUT for p in planned)
    looked_up = embedding_hessian(model, EMBEDDING, pieces, threads) if tied and EMBEDDING in wanted else None
    original, quantized = (
        Observer(model, pieces, set(wanted), threads=threads, predictions=LOGITS) for _ in range(2)
    )
    done: set[str] = set()
    source, statistics = 0, None
    try:
        for before, now in zip(original, quantized, strict=True):
            if now.name in done:  # tied embeddings come again as the output matrix
                continue
            done.add(now.name)
            p = wanted[now.name]
            assert p.fmt  # as all that are wanted
            w = p.source.read()
            if now.inputs is None or before.inputs is None:
                hessian = np.eye(p.source.k, dtype=np.float32) if looked_up is None else looked_up
                encoded = quantize(w, hessian, p.fmt, seed=seed, threads=threads)
            else:
                if statistics is None or now.source != source:
                    statistics = Statistics.of(now.inputs, before.inputs, threads)
                    source = now.source
                target = statistics.target(w, threads)
                encoded = quantize(target, statistics.hessian, p.fmt, seed=seed, threads=threads)
            now.replace(encoded.weights())
            yield p, encoded
    finally:
        original.close()
        quantized.close()
