# SPDX-License-Identifier: MIT
"""FP8: a byte per weight (E4M3 or E5M2), a scale for all of them, for each row, or for blocks of 128 x 128.

DeepSeek, Qwen and Mistral publish such models; transformers, fbgemm and ModelOpt make them.
"""

from __future__ import annotations

import re

from gguf_tools.errors import LutraError
from gguf_tools.sources.dequantize.checkpoint import Checkpoint
from gguf_tools.sources.dequantize.scales import scaled, spread
from gguf_tools.sources.safetensors import StoredTensor
from gguf_tools.sources.weights import Weights, as_stored

CODES = ("F8_E4M3", "F8_E5M2")


def restore(tensor: StoredTensor, checkpoint: Checkpoint) -> Weights | None:
    """What ``tensor`` stands for, a float where nothing is scaled; None if it belongs to another."""
    scale_of = re.fullmatch("(.+)_scale(_inv)?", tensor.name)
    if scale_of and scale_of[1] in checkpoint.tensors:
        return None
    name = tensor.name.rpartition(".")[2]
    scales = f"{name}_scale_inv", f"{name}_scale"  # factors both
    is_scaled = checkpoint.settings or checkpoint.beside(tensor, *scales)
    if tensor.dtype not in CODES or len(tensor.shape) < 2 or not is_scaled:
        return checkpoint.plain(tensor)
    scale = checkpoint.need(tensor, *scales)
    return scaled(as_stored(tensor), spread(scale, tensor.shape, _block(checkpoint)))


def _block(checkpoint: Checkpoint) -> tuple[int, int] | None:
    size = checkpoint.settings.get("weight_block_size", [128, 128])
    return None if size is None else block_of(size, checkpoint)


def block_of(size: object, checkpoint: Checkpoint) -> tuple[int, int]:
    """Rows and columns of a block. Raises LutraError when ``size`` is not two of them."""
    if isinstance(size, list) and len(size) == 2 and all(type(n) is int and n > 0 for n in size):
        return size[0], size[1]
    raise LutraError(f"{checkpoint.config}: blocks of {size!r} are none of rows and columns")
