"""Calibrated quantization: each matrix behind the layers already quantized, in one pass of the model.

Two copies of the model compute the calibration text side by side: the original, and one whose matrices
are replaced as soon as they are quantized. Before a matrix is used both stop. X are its inputs in the second
copy, X0 what they should have been; the Hessian is X^T X, and the target is moved towards the output W X0^T
that the original has (half of the way: all of it would fit the noise of a small text).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gguf_tools import layout
from gguf_tools.errors import LutraError
from gguf_tools.types import ROWS, CBFormat
from lutra.jobs import Jobs
from lutra.observe import Observer, Stop
from lutra.plan import EMBEDDING, OUTPUT, Planned
from lutra.runtime import Model
from lutra.template import ChatTemplate, Message
from lutra.text import warn
from lutra.workdir import WorkDirectory
from pyquant.feedback import DAMPING, Encoded, multiply, quantize, slices

PIECE = 256  # tokens of a sequence
TOKENS = 16384  # calibration tokens, at most
SMALL = 1 << 25  # weights of a model that is done in a minute with twice as many
SHIFT = 0.5  # of the way from the output behind the quantized layers to the original one
OUTPUT_SHARE = 0.8  # of tied embeddings' Hessian: blocks make up for errors of inputs, not of outputs
SLICE_WEIGHTS = 1 << 20  # dequantized at a time
LOGITS = 1 << 28  # predictions that the runtime keeps at most; nobody reads them

Array = NDArray[np.float32]


# ---- the text ------------------------------------------------------------------------------


def read_pieces(path: Path, model: Model, weights: int) -> list[list[int]]:
    """The calibration text as sequences of PIECE tokens, spread evenly over it when it is longer than needed.

    ``model`` tokenizes; its number of ``weights`` decides how much of the text is used.
    JSON lines hold {"text": ...} or {"messages": [...]} (through the model's chat template, if it has one
    that works); any other file is one text. Raises LutraError when there is less than one sequence.
    """
    documents = list(read_documents(path))
    render = _renderer(model, documents)
    tokens = [token for document in documents for token in model.tokenize(render(document))]
    wanted = (TOKENS if weights > SMALL else 2 * TOKENS) // PIECE
    if len(tokens) < PIECE:
        raise LutraError(f"{path}: {len(tokens)} tokens; calibration needs {PIECE}, better {TOKENS}")
    # The last sequence of a short text overlaps the one before it, so that all of the text is used.
    count = min(wanted, -(-len(tokens) // PIECE))
    starts = np.linspace(0, len(tokens) - PIECE, count).astype(int)
    return [tokens[start : start + PIECE] for start in starts]


def read_documents(path: Path) -> Iterator[str | list[Message]]:
    """Texts and conversations of a calibration text. Raises LutraError naming the line that is neither."""
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
            document = entry["text"] if "text" in entry else entry["messages"]
            if not isinstance(document, str) and not all(
                isinstance(message["role"], str) and isinstance(message["content"], str)
                for message in document
            ):
                raise TypeError
            yield document
        except (ValueError, KeyError, TypeError):
            raise LutraError(f'{path}:{number}: needs {{"text": ...}} or {{"messages": [...]}}') from None


def _renderer(model: Model, documents: Sequence[str | list[Message]]) -> Callable[[str | list[Message]], str]:
    """How documents become text: conversations through the model's template, or as plain lines."""
    template = ChatTemplate.of(model) if model.chat_template else None

    def render(document: str | list[Message]) -> str:
        if isinstance(document, str):
            return document
        if template:
            return template.render(document, prompt=False)
        return "\n".join(message["content"] for message in document)

    try:
        list(map(render, documents))
    except LutraError as error:
        warn(f"{error}; dialogues of the calibration text are taken as plain lines")
        template = None
    return render


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

    def targets(self, matrices: Sequence[Array], threads: int) -> list[Array]:
        """The weights to aim at: ``matrices`` and their drift, as far as these inputs can make up for it."""
        w = np.concatenate(matrices)
        h = self.hessian.astype(np.float64)
        h += DAMPING * np.trace(h) / len(h) * np.eye(len(h))
        drift = multiply(w, self.drift, threads).astype(np.float64)
        w += np.float32(SHIFT) * np.linalg.solve(h, drift.T).T.astype(np.float32)
        return np.split(w, np.cumsum([len(matrix) for matrix in matrices])[:-1])


def survey(model: Path, names: set[str], tokens: Sequence[int], threads: int) -> list[list[str]]:
    """The matrices among ``names`` that the graph of ``model`` uses, in its order; those with the same inputs
    together. Raises LutraError when the runtime cannot compute the model.
    """
    groups: list[list[str]] = []
    last, seen = None, set()
    observer = Observer(model, [tokens], names, threads=threads, predictions=LOGITS)
    try:
        for stop in observer:
            if stop.name in seen:  # tied embeddings, as the output
                continue
            seen.add(stop.name)
            inputs = None if stop.inputs is None else stop.source
            if inputs is None or inputs != last:
                groups.append([])
            groups[-1].append(stop.name)
            last = inputs
    finally:
        observer.close()
    return groups


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
    model: Path,
    groups: Sequence[Sequence[str]],
    planned: Mapping[str, Planned],
    pieces: Sequence[Sequence[int]],
    work: WorkDirectory,
    jobs: Jobs,
    *,
    seed: int,
    threads: int,
) -> Iterator[Planned]:
    """Quantize the matrices in ``groups`` (of ``survey``) into ``work``; yields each as it is finished.

    ``model`` is their source as an F16 GGUF. What is in ``work`` already is not done again: the graph goes
    on with it.
    """
    wanted = {name for group in groups for name in group}
    group_of = {group[0]: [planned[name] for name in group] for group in groups}
    looked_up = None
    if OUTPUT not in planned and EMBEDDING in wanted and EMBEDDING not in work:
        looked_up = embedding_hessian(model, EMBEDDING, pieces, threads)
    original, quantized = (
        Observer(model, pieces, wanted, threads=threads, predictions=LOGITS) for _ in range(2)
    )
    try:
        for before, now in zip(original, quantized, strict=True):
            group = group_of.pop(now.name, [])  # tied embeddings come again as the output matrix
            left = [p for p in group if p.source.name not in work]
            if left:
                calls = [
                    (w, hessian, p.fmt, seed)
                    for p, w, hessian in _problems(before, now, group, looked_up, threads)
                    if p in left
                ]
                results = jobs.run(_quantize, calls, at_once=len(calls))
                for p, encoded in zip(left, results, strict=True):
                    parts = encoded.strips(threads), encoded.library
                    work.save(p.source.name, parts, encoded.loss[-1])
            yield from group
            now.replace(dequantized(planned[now.name], work.load(now.name)[0]))
    finally:
        original.close()
        quantized.close()


def _problems(
    before: Stop, now: Stop, group: Sequence[Planned], looked_up: Array | None, threads: int
) -> list[tuple[Planned, Array, Array]]:
    """For each matrix of a group the weights to aim at and the Hessian."""
    matrices = [p.source.read() for p in group]
    if now.inputs is None or before.inputs is None:
        hessian = np.eye(matrices[0].shape[1], dtype=np.float32) if looked_up is None else looked_up
    else:
        statistics = Statistics.of(now.inputs, before.inputs, threads)
        hessian, matrices = statistics.hessian, statistics.targets(matrices, threads)
    return [(p, w, hessian) for p, w in zip(group, matrices, strict=True)]


def _quantize(w: Array, hessian: Array, fmt: CBFormat, seed: int, *, threads: int) -> Encoded:
    return quantize(w, hessian, fmt, seed=seed, threads=threads)


def dequantized(p: Planned, data: NDArray[np.uint8]) -> NDArray[np.float16]:
    """What the bytes of a tensor stand for, (rows, k)."""
    assert p.fmt
    k, row_bytes = p.source.k, p.fmt.row_bytes(p.source.k)
    library = data[p.source.rows * row_bytes :]
    out = np.empty((p.source.rows, k), np.float16)
    step = max(ROWS, SLICE_WEIGHTS // k // ROWS * ROWS)
    for start in range(0, len(out), step):
        rows = out[start : start + step]
        strips = data[start * row_bytes : (start + len(rows)) * row_bytes]
        rows[:] = layout.dequantize(np.concatenate([strips, library]), len(rows), k, p.fmt)
    return out
