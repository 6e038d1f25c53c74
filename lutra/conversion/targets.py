# SPDX-License-Identifier: MIT
"""What a matrix is rounded to in calibration, and the jobs that round it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from gguf_tools.errors import LutraError
from gguf_tools.formats.family import CBFormat
from lutra.conversion.plan import Planned
from lutra.conversion.statistics import Array
from pyquant.gptq import SLAB, Encoded, column_blocks, learn_libraries, multiply, quantize


def targets(
    p: Planned, corrections: Array | None, threads: int, rows: slice | None = None
) -> NDArray[np.float16]:
    """The weights to aim at, (rows, k): ``rows`` (all by default) of ``p``, with corrections, if any:
    (experts, blocks, b, b), of as many experts.

    Half precision is a hundred times finer than any codebook, and halves what large matrices take.
    """
    assert p.fmt
    rows = rows or slice(0, p.source.rows)
    out = np.empty((rows.stop - rows.start, p.source.k), np.float16)
    blocks = column_blocks(p.source.k, p.fmt)
    each = len(out) // (1 if corrections is None else len(corrections))
    step = min(each, max(1, SLAB // p.source.k))
    for expert in range(0, len(out), each):
        for start in range(expert, expert + each, step):
            stop = min(start + step, expert + each)
            out[start:stop] = w = p.source.read(rows.start + start, rows.start + stop)
            if corrections is None:
                continue
            for columns, correction in zip(blocks, corrections[expert // each], strict=True):
                m = columns.stop - columns.start
                out[start:stop, columns] = w[:, columns] + multiply(
                    w[:, columns], correction[:m, :m], threads
                )
    return out


def encode(
    name: str,
    target: NDArray[np.float16],
    hessian: Array,
    fmt: CBFormat,
    row_weight: Array | None,
    rounds: int,
    seed: int,
    libraries: Sequence[NDArray[np.int8]] = (),
    outputs: Array | None = None,
    *,
    threads: int,
) -> Encoded:
    """The job: ``quantize``. Raises LutraError with the tensor's name for what cannot be encoded."""
    with _naming(name):
        return quantize(
            target, hessian, fmt, rounds=rounds, seed=seed, threads=threads,
            row_weight=row_weight, libraries=libraries, outputs=outputs,
        )  # fmt: skip


def learn(
    name: str,
    sample: NDArray[np.float16],
    hessian: Array,
    fmt: CBFormat,
    rounds: int,
    seed: int,
    *,
    threads: int,
) -> list[NDArray[np.int8]]:
    """The job: ``learn_libraries``. Raises as ``encode`` does."""
    with _naming(name):
        return learn_libraries(sample, hessian, fmt, rounds=rounds, seed=seed, threads=threads)


@contextmanager
def _naming(name: str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise LutraError(f"tensor {name!r}: {error}; --no-calibration does without the text") from None
