# SPDX-License-Identifier: MIT
"""BitNet: {-1, 0, 1} times a scale for each matrix, as transformers saves it.

Packed by four rows a byte, or not yet rounded ("online"), which its linear layers do each time they compute.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
from numpy.typing import NDArray

from gguf_tools.errors import LutraError
from gguf_tools.formats.floats import to_float32
from gguf_tools.sources.dequantize.checkpoint import Checkpoint, check, wrong_shape
from gguf_tools.sources.safetensors import StoredTensor
from gguf_tools.sources.weights import Weights

_ROWS = 4  # in a byte, from its lowest bits on: one of each quarter of the matrix
_LEAST = np.float32(1e-5)  # of the mean that weights are divided by
_STEP = 1 << 22  # weights that are added up at a time


def restore(tensor: StoredTensor, checkpoint: Checkpoint) -> Weights | None:
    """What ``tensor`` stands for; None if it belongs to another."""
    settings = checkpoint.settings
    if settings.get("use_rms_norm"):
        raise LutraError(
            f"{checkpoint.config}: use_rms_norm, a norm before each matrix, is none that llama.cpp computes; "
            "start from another model"
        )
    if tensor.name.endswith(".weight_scale"):
        return None
    if tensor.dtype == "U8":
        return _packed(tensor, checkpoint)
    weights = checkpoint.plain(tensor)
    left = settings.get("modules_to_not_convert") or []
    is_rounded = settings.get("quantization_mode") == "online" and ".layers." in tensor.name
    if not is_rounded or len(tensor.shape) < 2 or any(module in tensor.name for module in left):
        return weights
    return _rounded(weights)


def _packed(tensor: StoredTensor, checkpoint: Checkpoint) -> Weights:
    """The weights of codes, uint8 (rows / 4, k).

    AutoBitLinear multiplies by the scale, BitLinear divides by it: in bfloat16, so that 11 bits of a factor
    are more than there are, and half precision holds the weights.
    """
    if len(tensor.shape) != 2:
        raise wrong_shape(tensor, "bytes of four rows")
    quarter, k = tensor.shape
    scale = check(checkpoint.need(tensor, "weight_scale"), ("BF16", "F16", "F32"), (1,))
    number = to_float32(scale.array, scale.dtype, 1).reshape(())
    factor = number
    if checkpoint.settings.get("linear_class", "bitlinear") != "autobitlinear":
        with np.errstate(divide="ignore", over="ignore"):  # what is no number is refused where it is read
            factor = np.float16(1 / number).astype(np.float32)

    def load(rows: NDArray[np.intp]) -> NDArray[np.float32]:
        part, row = np.divmod(rows, quarter)
        codes = tensor.array[row] >> (2 * part).astype(np.uint8)[:, None] & 3
        return (codes.astype(np.float32) - 1) * factor

    return Weights(tensor.name, (_ROWS * quarter, k), "F32", tensor.path, load)


def _rounded(weights: Weights) -> Weights:
    """What the layer computes with: weights over their mean magnitude, to the nearest of -1, 0 and 1."""

    @cache
    def scale() -> float:
        step = max(1, _STEP // weights.shape[-1])
        pieces = (
            weights.load(np.arange(start, min(start + step, weights.rows)))
            for start in range(0, weights.rows, step)
        )
        total = sum(float(np.abs(piece).sum(dtype=np.float64)) for piece in pieces)
        mean = np.float32(total / (weights.rows * weights.shape[-1]))
        return float(np.float32(1) / max(mean, _LEAST))

    def load(rows: NDArray[np.intp]) -> NDArray[np.float32]:
        factor = np.float32(scale())
        levels = np.clip(np.rint(weights.load(rows) * factor), -1, 1)
        return _narrowed(np.asarray(levels / factor, np.float32), weights.dtype)

    return replace(weights, load=load)


def _narrowed(x: NDArray[np.float32], dtype: str) -> NDArray[np.float32]:
    """``x`` to the nearest numbers of the type that a model computes in, ties to even."""
    if dtype == "F16":
        return x.astype(np.float16).astype(np.float32)
    if dtype != "BF16":
        return x
    bits = x.view(np.uint32)
    near: NDArray[np.uint32] = bits + 0x7FFF + (bits >> 16 & 1) & np.uint32(0xFFFF0000)
    return near.view(np.float32)
