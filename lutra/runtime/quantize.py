# SPDX-License-Identifier: MIT
"""Upstream's own types: float rows to bytes with ggml's quantizers (libggml-base, ctypes)."""

from __future__ import annotations

import ctypes
import functools
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from numpy.typing import NDArray

from lutra.runtime.native import load


@functools.cache
def _ggml() -> ctypes.CDLL:
    base = load("ggml-base")
    i64, pointer = ctypes.c_int64, ctypes.c_void_p
    base.ggml_quantize_chunk.argtypes = (ctypes.c_int, pointer, pointer, i64, i64, i64, pointer)
    base.ggml_quantize_chunk.restype = ctypes.c_size_t
    base.ggml_quantize_requires_imatrix.argtypes = (ctypes.c_int,)
    base.ggml_quantize_requires_imatrix.restype = ctypes.c_bool
    return base


def requires_importance(type_id: int) -> bool:
    """True for the types that ggml refuses to make without an importance matrix."""
    return bool(_ggml().ggml_quantize_requires_imatrix(type_id))


def quantize(
    rows: NDArray[np.float32], type_id: int, importance: NDArray[np.float32] | None, threads: int
) -> NDArray[np.uint8]:
    """Rows float32 (n, k) as the bytes of ggml type ``type_id``, uint8 (n, bytes per row).

    ``importance`` float32 (k,) weighs the squared error of each column. The result does not depend on
    ``threads``.
    """
    n, k = rows.shape
    block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(type_id)]
    rows = np.ascontiguousarray(rows, np.float32)
    out = np.empty((n, k // block * block_bytes), np.uint8)
    weights = None if importance is None else np.ascontiguousarray(importance, np.float32)

    def part(start: int, stop: int) -> None:
        pointer = None if weights is None else weights.ctypes.data
        _ggml().ggml_quantize_chunk(
            type_id, rows[start:].ctypes.data, out[start:].ctypes.data, 0, stop - start, k, pointer
        )

    bounds = [n * i // threads for i in range(threads + 1)]
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(part, bounds[:-1], bounds[1:]))
    return out
