# SPDX-License-Identifier: MIT
"""NVIDIA's ModelOpt: FP8, and NVFP4 whose codes are called like other weights."""

from __future__ import annotations

from gguf_tools.sources.dequantize import fp4, fp8
from gguf_tools.sources.dequantize.checkpoint import Checkpoint
from gguf_tools.sources.safetensors import StoredTensor
from gguf_tools.sources.weights import Weights


def restore(tensor: StoredTensor, checkpoint: Checkpoint) -> Weights | None:
    """What ``tensor`` stands for; None if it belongs to another."""
    if tensor.name.endswith("_scale_2"):
        return None
    if tensor.dtype == "U8" and checkpoint.beside(tensor, "weight_scale_2"):
        return fp4.restore(tensor, tensor.name, checkpoint)
    return fp8.restore(tensor, checkpoint)
