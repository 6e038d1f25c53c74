# SPDX-License-Identifier: MIT
"""GPTQ, as AutoGPTQ and GPTQModel save it: integers of 2, 3, 4 or 8 bits, packed along the columns."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gguf_tools.errors import LutraError
from gguf_tools.sources.dequantize import bits
from gguf_tools.sources.dequantize.checkpoint import Checkpoint, check, wrong_shape
from gguf_tools.sources.dequantize.integers import restored, scales_of
from gguf_tools.sources.dequantize.scales import groups_of
from gguf_tools.sources.safetensors import StoredTensor
from gguf_tools.sources.weights import Weights

_LESS = {"gptq": 1, "gptq_v2": 0}  # what zero points are stored less, by the format


def restore(tensor: StoredTensor, checkpoint: Checkpoint) -> Weights | None:
    """What ``tensor`` stands for; None if it belongs to another, or is a bias that adds nothing."""
    if tensor.name.endswith((".qzeros", ".scales", ".g_idx")):
        return None
    if tensor.name.endswith(".bias") and checkpoint.beside(tensor, "qweight") and not tensor.array.any():
        return None  # AutoGPTQ gives one to every matrix
    if not tensor.name.endswith(".qweight"):
        return checkpoint.plain(tensor)
    return _restore(tensor, checkpoint)


def _restore(packed: StoredTensor, checkpoint: Checkpoint) -> Weights:
    """The weights of ``packed``, int32 (words, rows)."""
    width = checkpoint.number("bits", (2, 3, 4, 8))
    form = checkpoint.settings.get("checkpoint_format", "gptq")
    if form not in _LESS:
        raise LutraError(
            f"{checkpoint.config}: GPTQ's format {form!r} is not read; start from {' or '.join(_LESS)}"
        )
    if len(packed.shape) != 2:
        raise wrong_shape(packed, "words of rows")
    rows, k = packed.shape[1], packed.shape[0] * bits.WORD // width
    check(packed, ("I32",), packed.shape)
    scales = scales_of(packed, rows, k, checkpoint)
    stored_zeros = checkpoint.need(packed, "qzeros")
    check(stored_zeros, ("I32",), (scales.shape[0], bits.words_for(rows, width)))
    at = np.arange(k) * width

    def codes(numbers: NDArray[np.intp]) -> NDArray[np.uint8]:
        words = packed.array[:, numbers]
        found: NDArray[np.uint8] = bits.take(words.T, width, at).T
        return found

    def zeros(numbers: NDArray[np.intp]) -> NDArray[np.uint8]:
        found: NDArray[np.uint8] = bits.take(stored_zeros.array, width, numbers * width) + np.uint8(
            _LESS[form]
        )
        found &= (1 << width) - 1  # nor was there a borrow
        return found

    index = checkpoint.beside(packed, "g_idx")
    in_order = np.arange(k) // -(-k // scales.shape[0])
    columns = groups_of(index, k, scales.shape[0]) if index else in_order
    return restored(packed, k, scales, columns, codes, zeros)
