# SPDX-License-Identifier: MIT
"""What each type loses of each matrix: a sample of its rows, really encoded, against what it multiplies.

The loss of an encoding q of weights w is ``sum of e H e^T`` with e = w - q, relative to ``sum of w H w^T``:
the squared error of the outputs, relative to them. H is the inputs' Hessian in the original model. A sample
is enough and bounds the time for large models: the conversion encodes anew anyway, behind quantized layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, quants
from numpy.typing import NDArray

from gguf_tools.errors import LutraError
from gguf_tools.formats.catalog import FLOATS, Type
from gguf_tools.formats.codebook import dequantize
from gguf_tools.formats.family import CB_FORMATS, ROWS
from gguf_tools.sources.tensors import EMBEDDING, SourceTensor
from lutra.console import progress
from lutra.conversion.calibrate import LOGITS, OUTPUT_SHARE
from lutra.conversion.encode import Matrix, codebook
from lutra.conversion.footprint import AT_ONCE
from lutra.conversion.jobs import Jobs
from lutra.runtime import quantize
from lutra.runtime.matmul_inputs import Capture
from pyquant import gptq
from pyquant.gptq import WIDEST, column_blocks, multiply

SAMPLE = 1 << 18  # weights of a matrix that are encoded per type
ERRORS = 128  # rows whose errors are kept
TOKENS = 8192  # of the text, at most
ROUNDED = 512  # inputs of a matrix that are rounded, about
LIKE = 17.4  # dB: the errors that are kept are those of the type nearest to this, 3 bits

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Losses:
    """Of one matrix: the loss of each type by its name, and the squared error, relative, of inputs that are
    rounded to 8 bits for the type. Types of floats round nothing.

    ``errors`` float32 (n, k): those of some rows in one of the types, relative to the length of the row;
    ``of_errors``: the loss of that type.
    """

    by_type: Mapping[str, float]
    rounding: Mapping[str, float]
    errors: Array
    of_errors: float


def measure_losses(
    model: Path,
    matrices: Mapping[str, tuple[SourceTensor, Sequence[Type]]],
    pieces: Sequence[Sequence[int]],
    jobs: Jobs,
    *,
    tied: bool,
    calibrated: bool,
    seed: int,
    threads: int,
) -> dict[str, Losses]:
    """The losses of ``matrices`` (with the types that each can have) by name.

    ``model`` has them in F16 and computes ``pieces``. ``calibrated``: codebooks are encoded against the
    Hessian, as the conversion will. Raises LutraError when the model cannot be computed.
    """
    found = {}
    with progress(sum(len(kinds) for _, kinds in matrices.values()), "type", "encoding samples") as bar:
        for names, hessian, rounding in _inputs(model, matrices, pieces, tied, threads):
            samples = {name: _sample(matrices[name][0]) for name in names}
            calls = [
                (name, samples[name], hessian, kind, kind.id_for(matrices[name][0].shape), calibrated, seed)
                for name in names
                for kind in matrices[name][1]
            ]
            results = iter(list(jobs.run(encoded, calls, at_once=AT_ONCE)))
            for name in names:
                own = {kind: next(results) for kind in matrices[name][1]}
                found[name] = _losses(samples[name], own, hessian, rounding, threads)
                bar.update(len(own))
    return found


def encoded(
    name: str,
    w: Array,
    hessian: Array,
    kind: Type,
    type_id: int,
    calibrated: bool,
    seed: int,
    *,
    threads: int,
) -> Array:
    """The job: what rows ``w`` (n, k) become in a type, as float32."""
    fmt = CB_FORMATS.get(type_id)
    try:
        if fmt and calibrated:
            form = hessian if len(hessian) > 1 else hessian[0]
            return gptq.quantize(w, form, fmt, seed=seed, threads=threads).weights()
        if fmt:
            matrix = Matrix(w.shape, len(w), lambda start, stop: w[start:stop])
            parts = codebook(name, matrix, fmt, None, seed, threads=threads)
            data = np.concatenate([part.reshape(-1).view(np.uint8) for part in parts])
            return dequantize(data, len(w), w.shape[1], fmt)
        stock = GGMLQuantizationType(type_id)
        if type_id in FLOATS:
            data = quants.quantize(w, stock)
        else:
            importance = np.concatenate([np.diag(block) for block in hessian])[: w.shape[1]]
            needed = importance if quantize.requires_importance(type_id) else None
            data = quantize.quantize(w, type_id, needed, threads)
        return quants.dequantize(data, stock).astype(np.float32, copy=False)
    except ValueError as error:
        raise LutraError(f"tensor {name!r}: {error}; --no-calibration does without the text") from None


def _losses(
    w: Array, own: Mapping[Type, Array], hessian: Array, rounding: Mapping[int, float], threads: int
) -> Losses:
    whole = _energy(w, hessian, threads) or 1.0
    by_type = {kind.name: _energy(w - q, hessian, threads) / whole for kind, q in own.items()}
    kept = min(own, key=lambda kind: abs((kind.snr or 99.0) - LIKE))
    rows = np.unique(np.linspace(0, len(w) - 1, ERRORS).astype(int))
    length = np.maximum(np.linalg.norm(w[rows], axis=1, keepdims=True), np.finfo(np.float32).tiny)
    errors = ((w - own[kept])[rows] / length).astype(np.float32)
    rounded = {kind.name: rounding.get(_block(kind, w.shape[1]), 0.0) for kind in own}
    return Losses(by_type, rounded, errors, by_type[kept.name])


def _block(kind: Type, k: int) -> int:
    """Inputs that share a scale where rows of ``k`` weights have this type: as many as weights of a block."""
    return next((block for block in kind.ids if k % block == 0), 1)


def _energy(e: Array, hessian: Array, threads: int) -> float:
    """The sum of e H e^T over the rows of ``e``, block by block."""
    total = 0.0
    for i, columns in enumerate(_blocks_of(e.shape[1], hessian)):
        part = np.ascontiguousarray(e[:, columns])
        form = np.ascontiguousarray(hessian[i, : part.shape[1], : part.shape[1]])
        total += float(np.vdot(multiply(part, form, threads), part))
    return max(total, 0.0)


def _blocks_of(k: int, hessian: Array) -> list[slice]:
    width = hessian.shape[1]
    return [slice(i, min(i + width, k)) for i in range(0, k, width)]


def _sample(tensor: SourceTensor) -> Array:
    """Rows spread evenly over the matrix, or over all matrices of a stack; whole strips, if there are any."""
    count = min(tensor.rows, max(ROWS, SAMPLE // tensor.k))
    count = count // ROWS * ROWS or count
    if count == tensor.rows:
        return tensor.read()
    rows = np.linspace(0, tensor.rows - 1, count).astype(int).tolist()
    return np.concatenate([tensor.read(row, row + 1) for row in rows])


def _inputs(
    model: Path,
    matrices: Mapping[str, tuple[SourceTensor, Sequence[Type]]],
    pieces: Sequence[Sequence[int]],
    tied: bool,
    threads: int,
) -> Iterator[tuple[list[str], Array, dict[int, float]]]:
    """Matrices with the same inputs, the Hessian of these, (blocks, b, b), and what rounding changes in them,
    by size of blocks.

    The Hessian is the identity for what is only looked up; tied embeddings have a part of each.
    """
    left, last = set(matrices), None
    group: list[str] = []
    hessian = np.empty(0, np.float32)
    rounding: dict[int, float] = {}
    with Capture(model, pieces, set(matrices), threads=threads, predictions=LOGITS, lookups=False) as capture:
        for matrix in capture:
            if matrix.name not in left or matrix.inputs is None:
                continue
            left.discard(matrix.name)
            if matrix.source != last and group:
                yield group, hessian, rounding
                group = []
            if matrix.source != last:
                tensor, kinds = matrices[matrix.name]
                hessian = _hessian(matrix.inputs, tensor, kinds, threads)
                some = matrix.inputs[:: max(1, len(matrix.inputs) // ROUNDED)]
                blocks = {block for _, known in matrices.values() for kind in known for block in kind.ids}
                rounding = {b: _rounding(some, b) for b in blocks if b > 1 and tensor.k % b == 0}
            last = matrix.source
            group.append(matrix.name)
            if matrix.name == EMBEDDING and tied:
                k = matrices[EMBEDDING][0].k
                hessian *= np.float32(OUTPUT_SHARE * k / np.trace(hessian, axis1=1, axis2=2).sum())
                hessian += np.float32(1 - OUTPUT_SHARE) * _identity(hessian)
    if group:
        yield group, hessian, rounding
    for name in sorted(left):
        tensor, kinds = matrices[name]
        yield [name], _identity(_hessian(np.zeros((1, tensor.k), np.float32), tensor, kinds, threads)), {}


def _hessian(inputs: Array, tensor: SourceTensor, kinds: Sequence[Type], threads: int) -> Array:
    """X^T X / tokens in the blocks of the codebooks among ``kinds``."""
    formats = (CB_FORMATS.get(kind.id_for(tensor.shape) or 0) for kind in kinds)
    fmt = next((fmt for fmt in formats if fmt), None)
    k = tensor.k
    blocks = column_blocks(k, fmt) if fmt else [slice(i, min(i + WIDEST, k)) for i in range(0, k, WIDEST)]
    out = np.zeros((len(blocks), blocks[0].stop, blocks[0].stop), np.float32)
    for i, columns in enumerate(blocks):
        x, m = np.ascontiguousarray(inputs[:, columns]), columns.stop - columns.start
        out[i, :m, :m] = multiply(np.ascontiguousarray(x.T), x, threads) / np.float32(max(1, len(x)))
    return out


def _rounding(x: Array, block: int) -> float:
    """The squared error of int8 with a scale per ``block``, relative to rows of ``x`` (n, k), in the mean."""
    parts = x.reshape(len(x), -1, block)
    scale = np.maximum(np.abs(parts).max(axis=2, keepdims=True) / 127, np.finfo(np.float32).tiny)
    error = ((parts - np.rint(parts / scale) * scale) ** 2).sum(axis=(1, 2), dtype=np.float64)
    return float(np.mean(error / np.maximum((parts**2).sum(axis=(1, 2), dtype=np.float64), 1e-30)))


def _identity(like: Array) -> Array:
    return np.broadcast_to(np.eye(like.shape[1], dtype=np.float32), like.shape)
