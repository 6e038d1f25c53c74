# SPDX-License-Identifier: MIT
"""Mixtures of experts: here each expert has tensors of its own, in GGUF a block has stacks of them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gguf_tools.errors import LutraError
from gguf_tools.formats.floats import to_float32
from gguf_tools.sources.safetensors import StoredTensor

_EXPERT = re.compile(r"(.+\.experts)\.(\d{1,6})\.(\w+\.weight)")


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


def stacked(stored: Iterable[StoredTensor], count: int) -> Iterator[StoredTensor | Stack]:
    """``stored`` with stacks of ``count`` experts in place of their matrices, where a block's are complete.

    Raises ``LutraError`` naming a matrix that is missing or differs in its shape from the others.
    """
    blocks: dict[str, dict[str, dict[int, StoredTensor]]] = {}
    for tensor in stored:
        match = _EXPERT.fullmatch(tensor.name)
        if not count or not match:
            yield tensor
            continue
        block, number, part = match.groups()
        parts = blocks.setdefault(block, {})
        parts.setdefault(part, {})[int(number)] = tensor
        if sum(map(len, parts.values())) == 3 * count:  # gate, up and down
            for part in sorted(parts):
                yield _stack(f"{block}.{part}", parts[part], count)
            del blocks[block]
    for block, parts in blocks.items():
        for part in parts:
            yield _stack(f"{block}.{part}", parts[part], count)


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
