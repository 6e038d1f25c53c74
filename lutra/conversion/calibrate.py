# SPDX-License-Identifier: MIT
"""Calibrated quantization: each matrix behind the layers already quantized, in one pass of the model.

Two copies of the model compute the calibration text side by side: the original, and one whose matrices
are replaced as soon as they are quantized. Before a matrix is used both stop. X are its inputs in the second
copy, X0 what they should have been; the Hessian is X^T X, and the target is moved towards the output W X0^T
that the original has (half of the way: all of it would fit the noise of a small text).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gguf_tools.errors import LutraError
from gguf_tools.formats import codebook
from gguf_tools.formats.family import ROWS
from gguf_tools.sources.tensors import EMBEDDING, OUTPUT, Source
from lutra.console import warn
from lutra.conversion.experts import Experts, encode_divided
from lutra.conversion.footprint import Footprint
from lutra.conversion.jobs import Jobs
from lutra.conversion.output_gradients import OutputGradients
from lutra.conversion.plan import Planned
from lutra.conversion.statistics import Array, Statistics
from lutra.conversion.targets import encode, targets
from lutra.conversion.text import TOKENS
from lutra.conversion.workdir import WorkDirectory
from lutra.runtime.matmul_inputs import Capture, MatmulInputs, bytes_needed
from lutra.runtime.memory import total_memory
from pyquant import in_order
from pyquant.gptq import SLAB, column_blocks

SMALL = 1 << 25  # weights of a model that is done in a minute with twice as many, and a second round
OUTPUT_SHARE = 0.8  # of tied embeddings' Hessian: blocks make up for errors of inputs, not of outputs
LOGITS = 1 << 27  # predictions that the runtime keeps at most, half a gigabyte; nobody reads them
SEQUENCES = 256  # that llama.cpp holds at most (LLAMA_MAX_SEQ)
MEMORY = 3 << 30  # bytes of both copies' activations, keys and values, and recurrent states


def copy_bytes(model: Path, length: int) -> Callable[[int], int]:
    """What one copy of the model takes, beside its weights, for a number of sequences of ``length`` tokens.

    It raises LutraError when the runtime cannot hold them.
    """

    def needed(sequences: int) -> int:
        return bytes_needed(model, sequences, length, predictions=LOGITS)

    return needed


def token_limit(
    source: Source,
    length: int,
    needed: Callable[[int], int],
    *,
    wanted: int | None = None,
    thorough: bool = False,
) -> int:
    """Tokens to calibrate a model with: as many as help, but both copies of the model stay within MEMORY.

    ``needed``: ``copy_bytes`` for sequences of ``length`` tokens. ``wanted``: tokens that the user asks for,
    whatever memory they take. ``thorough``: time is not what is short; four times as many, and twice the
    memory where that is a quarter of the machine's.
    """
    if wanted is not None:
        return min(max(1, wanted // length), SEQUENCES) * length
    is_small = sum(t.rows * t.k for t in source.tensors) <= SMALL
    tokens = TOKENS * (4 if thorough else 2 if is_small else 1)
    memory = max(MEMORY, min(2 * MEMORY, total_memory() // 4)) if thorough else MEMORY
    sequences = max(1, min(tokens // length, SEQUENCES))
    while sequences > 1 and (both := 2 * needed(sequences)) > memory:
        sequences = max(1, min(sequences - 1, sequences * memory // both))  # they grow alike
    return sequences * length


# ---- the pass ------------------------------------------------------------------------------


def matmul_order(model: Path, names: set[str], tokens: Sequence[int], threads: int) -> list[list[str]]:
    """The matrices among ``names`` that the graph of ``model`` multiplies by, in its order, and the token
    embeddings; those with the same inputs together. Nothing is known of what else is only looked up.

    Raises LutraError when the runtime cannot compute the model.
    """
    groups: list[list[str]] = []
    last, seen = None, set()
    with Capture(model, [tokens], names, threads=threads, predictions=LOGITS) as capture:
        for matrix in capture:
            if matrix.name in seen or _is_lookup(matrix):  # seen: tied embeddings, as the output
                continue
            seen.add(matrix.name)
            inputs = None if matrix.inputs is None else matrix.source
            if inputs is None or inputs != last:
                groups.append([])
            groups[-1].append(matrix.name)
            last = inputs
    return groups


def _is_lookup(matrix: MatmulInputs) -> bool:
    """Whether rows are looked up in what is no matrix of token embeddings."""
    return matrix.inputs is None and matrix.name != EMBEDDING


def embedding_hessian(
    model: Path, p: Planned, pieces: Sequence[Sequence[int]], tied: bool, threads: int
) -> Array:
    """For token embeddings, (blocks, b, b): the identity for their part as inputs, of which nothing is known;
    if they are the output matrix as well, mixed with what the original model multiplies them by.
    """
    assert p.fmt
    blocks = column_blocks(p.source.k, p.fmt)
    identity = np.zeros((len(blocks), blocks[0].stop, blocks[0].stop), np.float32)
    for block, columns in zip(identity, blocks, strict=True):
        block[np.diag_indices(columns.stop - columns.start)] = 1
    if not tied:
        return identity
    names = {p.name}
    with Capture(model, pieces, names, threads=threads, predictions=LOGITS, lookups=False) as capture:
        for matrix in capture:
            assert matrix.inputs is not None  # no lookups
            h = Statistics.of(matrix.inputs, matrix.inputs, blocks, threads).hessian
            h *= np.float32(OUTPUT_SHARE * p.source.k / np.trace(h, axis1=1, axis2=2).sum())
            h += np.float32(1 - OUTPUT_SHARE) * identity
            return h
    raise LutraError(f"{model}: the graph does not multiply by {p.name}")


def calibrate(
    model: Path,
    groups: Sequence[Sequence[str]],
    planned: Mapping[str, Planned],
    pieces: Sequence[Sequence[int]],
    work: WorkDirectory,
    jobs: Jobs,
    *,
    tied: bool,
    seed: int,
    threads: int,
    aims: Callable[[str, NDArray[np.float16]], None] | None = None,
    gradients: OutputGradients | None = None,
) -> Iterator[Planned]:
    """Quantize the matrices in ``groups`` (of ``matmul_order``) into ``work``; yields each as it is finished.

    ``model`` is their source as an F16 GGUF; ``tied``: its token embeddings are the output matrix too. What
    ``work`` has is not done again: the graph goes on with it. ``aims`` is told what each matrix is rounded
    from, (rows, k), but for experts that are done one by one. ``gradients`` are those on ``pieces``.
    Warns about experts that no token reached.
    """
    wanted = {name for group in groups for name in group}
    group_of = {group[0]: [planned[name] for name in group] for group in groups}
    rounds = 1 if sum(p.weights for p in planned.values()) > SMALL else 2
    embedding = None
    gradients = gradients or OutputGradients()
    if EMBEDDING in wanted and EMBEDDING not in work:
        embedding = embedding_hessian(model, planned[EMBEDDING], pieces, tied, threads)
    idle: list[str] = []
    with (
        Capture(model, pieces, wanted, threads=threads, predictions=LOGITS) as original,
        Capture(model, pieces, wanted, threads=threads, predictions=LOGITS) as quantized,
    ):
        for before, now in zip(original, quantized, strict=True):
            if _is_lookup(now):
                continue
            group = group_of.pop(now.name, [])  # tied embeddings come again as the output matrix
            left = [p for p in group if p.name not in work]
            if left:
                results = _encoded(
                    before, now, left, embedding, pieces, jobs, rounds, seed, threads, aims,
                    gradients.shared([p.name for p in group]),
                )  # fmt: skip
                for p, (parts, loss) in zip(left, results, strict=True):
                    work.save(p.name, parts, loss)
            if now.experts is not None and group:
                idle += [f"{p.name} {e}" for p in group for e in _idle(now.experts, p)]
            yield from group
            now.replace(dequantized(planned[now.name], work.load(now.name)[0]))
    if idle:
        warn(f"experts that no token reached, calibrated with the tokens of all: {', '.join(idle)}")


def _row_weight(p: Planned, pieces: Sequence[Sequence[int]]) -> Array | None:
    """For the rows of tokens: half by how often each occurs in the text, half alike."""
    if p.name not in (EMBEDDING, OUTPUT):
        return None
    counts: Array = np.bincount(np.concatenate(pieces), minlength=p.source.rows).astype(np.float32)
    weight: Array = counts + counts.mean()
    return weight


def _encoded(
    before: MatmulInputs,
    now: MatmulInputs,
    group: Sequence[Planned],
    embedding: Array | None,
    pieces: Sequence[Sequence[int]],
    jobs: Jobs,
    rounds: int,
    seed: int,
    threads: int,
    aims: Callable[[str, NDArray[np.float16]], None] | None,
    gradients: OutputGradients,
) -> Iterator[tuple[list[NDArray[Any]], float]]:
    """The bytes of each matrix in ``group``, which have the same inputs, in parts, and its loss."""
    footprint = Footprint(group[0], 0 if now.inputs is None else now.inputs.nbytes)
    if footprint.is_divided and now.experts is not None:
        experts = Experts.of(before, now, group[0], threads)
        yield from encode_divided(experts, group, footprint, jobs, rounds, seed)
        return
    hessian, corrections = _problem(before, now, group[0], embedding, gradients, threads)

    def target(p: Planned) -> NDArray[np.float16]:
        weights = targets(p, corrections, threads)
        if aims:
            aims(p.name, weights)
        return weights

    outputs = gradients.rows
    calls = (
        (p.name, target(p), hessian, p.fmt, _row_weight(p, pieces), rounds, seed, (), outputs.get(p.name))
        for p in group
    )
    for encoded in jobs.run(encode, calls, at_once=min(footprint.at_once, len(group))):
        yield in_order([encoded.layers(threads)], encoded.libraries), encoded.loss[-1]


def _problem(
    before: MatmulInputs,
    now: MatmulInputs,
    p: Planned,
    embedding: Array | None,
    gradients: OutputGradients,
    threads: int,
) -> tuple[Array, Array | None]:
    """Hessian and corrections of ``p`` and of all with the same inputs, per expert in a stack."""
    if now.inputs is None or before.inputs is None:
        assert embedding is not None  # the only matrix that is looked up
        return embedding if len(embedding) > 1 else embedding[0], None
    assert p.fmt
    if now.experts is not None:
        experts = Experts.of(before, now, p, threads)
        count = p.source.shape[0]
        hessian = experts.room(count)
        corrections = np.empty((count, *experts.every.hessian.shape), np.float32)
        for expert in range(count):
            hessian[expert], corrections[expert : expert + 1] = experts.problem(expert)
        return hessian, corrections
    blocks = column_blocks(p.source.k, p.fmt)
    weights = gradients.weights(p.name, len(now.inputs))
    every = Statistics.of(now.inputs, before.inputs, blocks, threads, weights)
    hessian = every.hessian if len(blocks) > 1 else every.hessian[0]
    return hessian, every.correction(blocks)[None]


def _idle(experts: NDArray[np.int32], p: Planned) -> list[int]:
    """The experts of a stack that no token reached."""
    idle: list[int] = np.setdiff1d(np.arange(p.source.shape[0]), experts).tolist()
    return idle


def dequantized(p: Planned, data: NDArray[np.uint8]) -> NDArray[np.float16]:
    """What the bytes of a tensor stand for, (rows, k)."""
    assert p.fmt
    k = p.source.k
    out = np.empty((p.source.rows, k), np.float16)
    step = max(ROWS, SLAB // k // ROWS * ROWS)
    for start in range(0, len(out), step):
        rows = out[start : start + step]
        part = codebook.some_rows(data, k, p.fmt, start, start + len(rows))
        rows[:] = codebook.dequantize(part, len(rows), k, p.fmt)
    return out
