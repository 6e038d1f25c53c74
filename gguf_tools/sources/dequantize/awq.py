# SPDX-License-Identifier: MIT
"""AWQ, as AutoAWQ saves it: integers of 4 bits, eight rows in a word, in an order of their own."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gguf_tools.errors import LutraError
from gguf_tools.sources.dequantize import bits
from gguf_tools.sources.dequantize.checkpoint import Checkpoint, check, wrong_shape
from gguf_tools.sources.dequantize.integers import restored, scales_of
from gguf_tools.sources.safetensors import StoredTensor
from gguf_tools.sources.weights import Weights

_WIDTH = 4  # bits of a code
_PLACES = np.array([0, 4, 1, 5, 2, 6, 3, 7])  # of eight rows in their word


def restore(tensor: StoredTensor, checkpoint: Checkpoint) -> Weights | None:
    """What ``tensor`` stands for; None if it belongs to another."""
    if tensor.name.endswith((".qzeros", ".scales")):
        return None
    return _restore(tensor, checkpoint) if tensor.name.endswith(".qweight") else checkpoint.plain(tensor)


def _restore(packed: StoredTensor, checkpoint: Checkpoint) -> Weights:
    """The weights of ``packed``, int32 (k, words)."""
    checkpoint.number("bits", (_WIDTH,))
    version = str(checkpoint.settings.get("version", "gemm")).lower()
    if version != "gemm":
        raise LutraError(
            f"{checkpoint.config}: AWQ's version {version!r} is not read; start from one of 'gemm'"
        )
    if len(packed.shape) != 2:
        raise wrong_shape(packed, "words of columns")
    k, rows = packed.shape[0], packed.shape[1] * len(_PLACES)
    check(packed, ("I32",), packed.shape)
    scales = scales_of(packed, rows, k, checkpoint)
    stored_zeros = checkpoint.need(packed, "qzeros")
    check(stored_zeros, ("I32",), (scales.shape[0], packed.shape[1]))

    def at(numbers: NDArray[np.intp]) -> NDArray[np.intp]:
        word, place = np.divmod(numbers, len(_PLACES))
        found: NDArray[np.intp] = word * bits.WORD + _PLACES[place] * _WIDTH
        return found

    def codes(numbers: NDArray[np.intp]) -> NDArray[np.uint8]:
        return bits.take(packed.array, _WIDTH, at(numbers))

    def zeros(numbers: NDArray[np.intp]) -> NDArray[np.uint8]:
        return bits.take(stored_zeros.array, _WIDTH, at(numbers))

    columns = np.arange(k) // -(-k // scales.shape[0])
    return restored(packed, k, scales, columns, codes, zeros)
