# SPDX-License-Identifier: MIT
"""Mixtures of experts: here each expert has tensors of its own, in GGUF a block has stacks of them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gguf_tools.errors import LutraError
from gguf_tools.formats.floats import to_float32
from gguf_tools.sources.safetensors import StoredTensor

_EXPERT = re.compile(r"(.+\.experts)\.(0|[1-9]\d{0,5})\.(\w+\.weight)")


@dataclass(frozen=True)
class Stack:
    """The same matrix of every expert of a block, ``name`` without the expert's number."""

    name: str
    experts: list[StoredTensor]

    @property
    def dtype(self) -> str:
        """The stored type."""
        return self.experts[0].dtype

    @property
    def path(self) -> Path:
        """The file that holds the first of them."""
        return self.experts[0].path

    @property
    def shape(self) -> tuple[int, ...]:
        """(experts, rows, k)."""
        return len(self.experts), *self.experts[0].shape

    def load(self, start: int, stop: int) -> NDArray[np.float32]:
        """Rows ``start`` to ``stop`` of all experts' rows, as (n, k)."""
        _, rows, k = self.shape
        parts = [
            to_float32(tensor.array[max(start - i * rows, 0) : stop - i * rows], tensor.dtype, k)
            for i, tensor in enumerate(self.experts)
            if start < (i + 1) * rows and stop > i * rows
        ]
        return np.concatenate(parts) if parts else np.empty((0, k), np.float32)


def stacked(stored: Collection[StoredTensor], count: int) -> Iterator[StoredTensor | Stack]:
    """``stored`` with stacks of ``count`` experts for their matrices, in place of the last one of a block.

    Raises ``LutraError`` naming a matrix that is missing or differs in its shape from the others.
    """
    matches = {tensor.name: _EXPERT.fullmatch(tensor.name) for tensor in stored} if count else {}
    left = Counter(match[1] for match in matches.values() if match)
    blocks: dict[str, dict[str, dict[int, StoredTensor]]] = {}
    for tensor in stored:
        match = matches.get(tensor.name)
        if not match:
            yield tensor
            continue
        block, number, part = match.groups()
        blocks.setdefault(block, {}).setdefault(part, {})[int(number)] = tensor
        left[block] -= 1
        if not left[block]:
            for part, matrices in sorted(blocks.pop(block).items()):
                yield _stack(f"{block}.{part}", matrices, count)


def _stack(name: str, matrices: dict[int, StoredTensor], count: int) -> Stack:
    first = next(iter(matrices.values()))
    for i in range(count):
        if i not in matrices:
            raise LutraError(f"{first.path}: {name} of expert {i} is missing; download the model again")
        if len(matrices[i].shape) != 2 or matrices[i].shape != first.shape:
            shapes = list(matrices[i].shape), list(first.shape)
            raise LutraError(
                f"{first.path}: tensor {matrices[i].name!r} has the shape {shapes[0]}, not {shapes[1]}"
            )
    if len(matrices) > count:
        extra = matrices[max(matrices)]
        raise LutraError(f"{extra.path}: tensor {extra.name!r} is one of more than {count} experts")
    return Stack(name, [matrices[i] for i in range(count)])
