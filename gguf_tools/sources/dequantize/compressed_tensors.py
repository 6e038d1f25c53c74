# SPDX-License-Identifier: MIT
"""compressed-tensors, which LLM Compressor writes: floats and integers of 4 and 8 bits, plain or packed.

What a module has says how it is saved; config.json, what the tensors do not: bits, groups, blocks.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gguf_tools.errors import LutraError
from gguf_tools.sources.dequantize import bits, fp4, fp8
from gguf_tools.sources.dequantize.checkpoint import Checkpoint, check, wrong_shape
from gguf_tools.sources.dequantize.scales import Spread, groups_of, scaled, spread
from gguf_tools.sources.safetensors import StoredTensor
from gguf_tools.sources.weights import Weights, as_stored

_PARTS = tuple(f".weight_{part}" for part in ("scale", "shape", "zero_point", "g_idx", "global_scale"))


def restore(tensor: StoredTensor, checkpoint: Checkpoint) -> Weights | None:
    """What ``tensor`` stands for; None if it belongs to another."""
    if tensor.name.endswith(_PARTS):
        return None
    module, _, name = tensor.name.rpartition(".")
    if name == "weight_packed":
        restored = fp4.restore if tensor.dtype == "U8" else _packed
        return restored(tensor, f"{module}.weight", checkpoint)
    if tensor.dtype not in ("I8", *fp8.CODES) or len(tensor.shape) < 2:
        return checkpoint.plain(tensor)
    block = _block(_scheme(module, checkpoint), checkpoint)
    columns = _columns(tensor, tensor.shape[-1], checkpoint)
    scale = spread(checkpoint.need(tensor, f"{name}_scale"), tensor.shape, block, columns)
    if zero := checkpoint.beside(tensor, f"{name}_zero_point"):
        return scaled(as_stored(tensor), scale, spread(zero, tensor.shape, block, columns))
    return scaled(as_stored(tensor), scale)


def _packed(packed: StoredTensor, name: str, checkpoint: Checkpoint) -> Weights:
    """Integers in words, shifted to be positive."""
    scheme = _scheme(name.rpartition(".")[0], checkpoint)
    width = checkpoint.number("num_bits", range(1, 9), scheme)
    rows, k = (int(n) for n in check(checkpoint.need(packed, "weight_shape"), ("I64", "I32"), (2,)).array)
    at = _offsets(packed, k, width)
    check(packed, ("I32",), (rows, *packed.shape[1:]))

    def load(numbers: NDArray[np.intp]) -> NDArray[np.float32]:
        return bits.take(packed.array[numbers], width, at).astype(np.float32)

    block, columns = _block(scheme, checkpoint), _columns(packed, k, checkpoint)
    scale = checkpoint.need(packed, "weight_scale")
    codes = Weights(name, (rows, k), "F32", packed.path, load)
    factor = spread(scale, codes.shape, block, columns)
    middle = np.float32(1 << (width - 1))
    zero = checkpoint.beside(packed, "weight_zero_point")
    if zero is None:
        return scaled(codes, factor, lambda _: np.full((1, 1), middle))
    if zero.dtype == "I8":
        offset = spread(zero, codes.shape, block, columns)
        return scaled(codes, factor, lambda numbers: offset(numbers) + middle)
    check(zero, ("I32",), (*zero.shape[:1], *scale.shape[1:]))
    if columns is None:
        columns = np.arange(k) // (block[1] if block else k)
    return scaled(codes, factor, _packed_zeros(zero, rows, width, columns))


def _packed_zeros(zero: StoredTensor, rows: int, width: int, columns: NDArray[np.intp]) -> Spread:
    """Zero points, which are packed along the rows; ``columns`` (k,): the group of each."""
    at = _offsets(zero, rows, width, axis=0)

    def load(numbers: NDArray[np.intp]) -> NDArray[np.float32]:
        found = bits.take(zero.array.T, width, at[numbers]).astype(np.float32)
        return np.asarray(found[columns].T)

    return load


def _offsets(packed: StoredTensor, count: int, width: int, axis: int = 1) -> NDArray[np.intp]:
    """Where the codes are, in bits. Raises LutraError unless ``axis`` has the words of ``count`` codes."""
    per_word = bits.WORD // width
    there = packed.shape[axis] if len(packed.shape) == 2 and count > 0 else 0
    if there == bits.words_for(count, width):
        return np.arange(count) * width
    if there == -(-count // per_word):  # older files: no code goes on in the next word
        return np.arange(count) // per_word * bits.WORD + np.arange(count) % per_word * width
    raise wrong_shape(packed, f"words of {count} times {width} bits")


def _scheme(module: str, checkpoint: Checkpoint) -> Mapping[str, Any]:
    """How config.json says that the weights of ``module`` are saved. Raises LutraError if it does not."""
    groups = checkpoint.settings.get("config_groups")
    found = (
        [group for group in groups.values() if isinstance(group, dict)] if isinstance(groups, dict) else []
    )
    named = [group for group in found if any(_names(target, module) for target in group.get("targets") or ())]
    scheme = (named or found or [{}])[0].get("weights")
    if not isinstance(scheme, dict):
        raise LutraError(f"{checkpoint.config}: its quantization_config says nothing about {module}")
    return scheme


def _names(target: object, module: str) -> bool:
    """Whether a target, which may be a class of modules too, means ``module`` by its name."""
    text = str(target)
    if text.startswith("re:"):
        try:
            return re.match(text[3:], module) is not None
        except re.error:
            return False
    return text == module


def _block(scheme: Mapping[str, Any], checkpoint: Checkpoint) -> tuple[int, int] | None:
    """Rows and columns that share a scale, where it is not all of a row that does."""
    if (size := scheme.get("block_structure")) is not None:
        return fp8.block_of(size, checkpoint)
    if scheme.get("group_size") in (None, -1, 0):
        return None
    return 1, checkpoint.number("group_size", range(1, 1 << 31), scheme)


def _columns(tensor: StoredTensor, k: int, checkpoint: Checkpoint) -> NDArray[np.intp] | None:
    """The group of each column, where they are not in order."""
    index = checkpoint.beside(tensor, "weight_g_idx")
    if index is None or (check(index, ("I32", "I64"), (k,)).array < 0).any():  # -1 where they are in order
        return None
    scale = checkpoint.need(tensor, "weight_scale")
    return groups_of(index, k, scale.shape[-1])
