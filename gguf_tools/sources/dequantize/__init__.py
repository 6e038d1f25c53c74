# SPDX-License-Identifier: MIT
"""Checkpoints that are saved quantized, as the weights that they stand for: exact, and read by rows.

A module for each way to save them, by what config.json calls it. Products of codes and scales are rounded to
float32 once, and nothing is put aside: only rows that are asked for are computed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path

from gguf_tools.errors import LutraError
from gguf_tools.formats.floats import STORED
from gguf_tools.sources.dequantize import awq, bitnet, compressed_tensors, fp8, gptq, modelopt
from gguf_tools.sources.dequantize.checkpoint import Checkpoint
from gguf_tools.sources.safetensors import StoredTensor
from gguf_tools.sources.weights import Weights

METHODS: dict[str, Callable[[StoredTensor, Checkpoint], Weights | None]] = {
    "fp8": fp8.restore,
    "fbgemm_fp8": fp8.restore,
    "modelopt": modelopt.restore,
    "compressed-tensors": compressed_tensors.restore,
    "gptq": gptq.restore,
    "awq": awq.restore,
    "bitnet": bitnet.restore,
}

# Of inputs and of the memory of attention, which are not quantized here.
_UNUSED = (
    "input_scale",
    "input_scale_ub",
    "activation_scale",
    "input_global_scale",
    ".q_scale",
    ".k_scale",
    ".v_scale",
)


def restored(stored: Iterable[StoredTensor], config: Path, settings: object) -> Iterator[Weights]:
    """The weights of a checkpoint; ``settings`` is ``quantization_config`` of ``config``, None for none.

    They may be left over from before the weights were restored. Raises LutraError for a way that is not read,
    and for a tensor that misses its scales, or has others than it should.
    """
    tensors = {tensor.name: tensor for tensor in stored if not tensor.name.endswith(_UNUSED)}
    require_known(config, settings, {tensor.dtype for tensor in tensors.values()})
    checkpoint = Checkpoint(tensors, config, settings if isinstance(settings, Mapping) else {})
    # Weights may be cast to FP8 without a word, and ModelOpt's are described in a file of their own.
    restore = METHODS.get(method_of(settings), _as_it_is) if settings else modelopt.restore
    for tensor in tensors.values():
        if weights := restore(tensor, checkpoint):
            yield weights


def require_known(config: Path, settings: object, dtypes: Collection[str]) -> None:
    """Raise LutraError if the way that ``settings`` name is not read, and tensors of ``dtypes`` need it."""
    if settings and method_of(settings) not in METHODS and not STORED.keys() >= set(dtypes):
        raise LutraError(
            f"{config}: the weights are quantized by {method_of(settings)}, which is not read "
            f"({', '.join(METHODS)} are); start from the model that it was made of"
        )


def method_of(settings: object) -> str:
    """What ``quantization_config`` calls the way that it describes."""
    return str(settings.get("quant_method", "unknown") if isinstance(settings, Mapping) else settings)


def _as_it_is(tensor: StoredTensor, checkpoint: Checkpoint) -> Weights:
    return checkpoint.plain(tensor)
