# SPDX-License-Identifier: MIT
"""Mixtures of experts: here each expert has tensors of its own, in GGUF a block has stacks of them.

transformers has stacks in memory, those of gate and up as one, and some programs save them as they are.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from gguf_tools.errors import LutraError
from gguf_tools.sources.weights import Weights, half

_EXPERT = re.compile(r"(.+\.experts)\.(0|[1-9]\d{0,5})\.(\w+\.weight)")
_STACK = re.compile(r"(.+\.experts)\.(gate_up_proj|down_proj)(\.weight)?")


def stacked(stored: Collection[Weights], count: int) -> Iterator[Weights]:
    """``stored`` with stacks of ``count`` experts for their matrices, in place of the last one of a block.

    Raises ``LutraError`` naming a matrix that is missing or differs in its shape from the others.
    """
    matches = {tensor.name: _EXPERT.fullmatch(tensor.name) for tensor in stored} if count else {}
    left = Counter(match[1] for match in matches.values() if match)
    blocks: dict[str, dict[str, dict[int, Weights]]] = {}
    for tensor in stored:
        match = matches.get(tensor.name)
        if not match:
            yield from _parts(tensor) if count else [tensor]
            continue
        block, number, part = match.groups()
        blocks.setdefault(block, {}).setdefault(part, {})[int(number)] = tensor
        left[block] -= 1
        if not left[block]:
            for part, matrices in sorted(blocks.pop(block).items()):
                yield _stack(f"{block}.{part}", matrices, count)


def _stack(name: str, matrices: dict[int, Weights], count: int) -> Weights:
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
    rows, k = first.shape
    dtypes = {matrix.dtype for matrix in matrices.values()}

    def load(numbers: NDArray[np.intp]) -> NDArray[np.float32]:
        experts, within = np.divmod(numbers, rows)
        cuts = np.flatnonzero(np.diff(experts)) + 1
        runs = zip(np.split(experts, cuts), np.split(within, cuts), strict=True)
        parts = [matrices[int(expert[0])].load(row) for expert, row in runs if len(row)]
        return np.concatenate(parts) if parts else np.empty((0, k), np.float32)

    dtype = dtypes.pop() if len(dtypes) == 1 else "F32"
    return Weights(name, (count, rows, k), dtype, matrices[0].path, load)


def _parts(tensor: Weights) -> Iterator[Weights]:
    """What a stack is in GGUF, by the names of single experts; other tensors stay as they are."""
    match = _STACK.fullmatch(tensor.name)
    if not match or len(tensor.shape) != 3:
        yield tensor
    elif match[2] == "down_proj":
        yield replace(tensor, name=f"{match[1]}.down_proj.weight")
    else:
        for part, name in enumerate(("gate_proj", "up_proj")):
            yield half(tensor, part, f"{match[1]}.{name}.weight")
