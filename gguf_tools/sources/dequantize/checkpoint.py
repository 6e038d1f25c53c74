# SPDX-License-Identifier: MIT
"""What is there of a quantized checkpoint: its tensors by name, and what config.json says of the way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf_tools.errors import LutraError
from gguf_tools.sources.safetensors import StoredTensor
from gguf_tools.sources.weights import Weights, as_stored


@dataclass(frozen=True)
class Checkpoint:
    """``settings`` is ``quantization_config`` of the file ``config``; empty where there is none."""

    tensors: Mapping[str, StoredTensor]
    config: Path
    settings: Mapping[str, Any]

    def beside(self, tensor: StoredTensor, *names: str) -> StoredTensor | None:
        """The first that is there of the tensors ``names`` of the same module."""
        module = tensor.name.rpartition(".")[0]
        found = (self.tensors.get(f"{module}.{name}" if module else name) for name in names)
        return next((part for part in found if part is not None), None)

    def need(self, tensor: StoredTensor, *names: str) -> StoredTensor:
        """The same; raises LutraError when none is there."""
        if part := self.beside(tensor, *names):
            return part
        raise LutraError(
            f"{tensor.path}: tensor {tensor.name!r} has no {names[0]!r} beside it; download the model again"
        )

    def plain(self, tensor: StoredTensor) -> Weights:
        """The numbers of a tensor that is not quantized; raises LutraError if it is none of floats."""
        if tensor.is_float:
            return as_stored(tensor)
        raise LutraError(
            f"{tensor.path}: tensor {tensor.name!r} is {tensor.dtype}, which is no float, and "
            f"{self.config.name} does not say how it is quantized; start from the original model"
        )

    def number(
        self, key: str, choices: range | tuple[int, ...], values: Mapping[str, Any] | None = None
    ) -> int:
        """A whole number of ``values``, by default of the settings; raises LutraError if it is no choice."""
        value = (self.settings if values is None else values).get(key)
        if not isinstance(value, int) or isinstance(value, bool) or value not in choices:
            raise LutraError(f"{self.config}: {key!r} of its quantization is {value!r}, which is not read")
        return value


def wrong_shape(tensor: StoredTensor, wanted: str) -> LutraError:
    """The error about a part that does not fit the tensor it belongs to."""
    return LutraError(
        f"{tensor.path}: tensor {tensor.name!r} is {tensor.dtype} {list(tensor.shape)}, not {wanted}; "
        "download the model again"
    )


def check(tensor: StoredTensor, dtypes: tuple[str, ...], shape: tuple[int, ...]) -> StoredTensor:
    """``tensor`` itself; raises LutraError if its type or shape is another."""
    if tensor.dtype not in dtypes or tensor.shape != shape:
        raise wrong_shape(tensor, f"{' or '.join(dtypes)} {list(shape)}")
    return tensor
