# SPDX-License-Identifier: MIT
"""A model's GGUF file, or all the parts of a split one, in numbers."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf_tools.formats.family import CB_FORMATS
from gguf_tools.reader import tensor_nbytes, type_id
from gguf_tools.sources.gguf import open_gguf


@dataclass(frozen=True)
class ModelFile:
    """Its size in bytes, bits per weight over all tensors, share of the weights by type, and key/values."""

    path: Path
    bytes: int
    bpw: float
    types: dict[str, float]
    values: dict[str, Any]

    @property
    def has_codebooks(self) -> bool:
        """Whether only Lutra reads it."""
        return any(type_id(kind) in CB_FORMATS for kind in self.types)

    @staticmethod
    def read(path: Path) -> ModelFile:
        """Of ``path``, with the other parts if it is the first of several. Raises LutraError."""
        with open_gguf(path, quantized=True) as source:
            weights: Counter[str] = Counter()
            for tensor in source.tensors:
                weights[tensor.dtype] += tensor.rows * tensor.k
            bits = 8 * sum(tensor_nbytes(type_id(t.dtype), t.shape) for t in source.tensors)
            parts = {path, *(tensor.path for tensor in source.tensors)}
            values = {key: value.value for key, value in source.metadata.items()}
        total = weights.total()
        types = {kind: n / total for kind, n in weights.most_common()}
        return ModelFile(path, sum(part.stat().st_size for part in parts), bits / total, types, values)
