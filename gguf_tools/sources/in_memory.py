# SPDX-License-Identifier: MIT
"""Models of ``families`` as transformers has them in memory, in terms of GGUF."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

from gguf_tools.errors import LutraError
from gguf_tools.sources.config import with_numbers
from gguf_tools.sources.experts import stacked
from gguf_tools.sources.huggingface import architecture_of, configured, made_of, norm_offset
from gguf_tools.sources.safetensors import read_json
from gguf_tools.sources.weights import Weights


@dataclass(frozen=True)
class Origin:
    """A tensor as transformers has it in memory, in terms of GGUF.

    The rows of ``parts`` (GGUF names), one part behind the other, in the order of ``rows`` (None: as they
    are), less ``offset``. Vectors are columns.
    """

    parts: tuple[str, ...]
    rows: NDArray[np.intp] | None
    offset: float


def origins(directory: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Origin]:
    """The origin of each tensor that transformers has in memory for a model of ``families``.

    ``shapes``: theirs by name. What brings weights into GGUF is asked where the rows go, so nothing is
    described twice. Raises ``LutraError`` naming a tensor that GGUF does not have.
    """
    raw = with_numbers(read_json(directory / "config.json"))
    _, config, family = configured(directory, raw, architecture_of(raw))
    names = gguf.get_tensor_name_map(family.arch, config.layers)
    found = {}
    for stored, shape in shapes.items():
        rows = np.arange(prod(shape[:-1]) if len(shape) > 1 else shape[0], dtype=np.float32)
        whole = _numbered(stored, shape, rows, config.path)
        parts, moved = [], []
        for part in stacked(list(family.parts(whole)), config.experts):
            name = names.get_name(part.name, (".weight", ".bias"))
            if name is None:
                raise LutraError(f"{directory}: {stored} of transformers has no name in GGUF")
            parts.append(name)
            same = made_of(name, part, config, replace(family, norm_offset=0.0))
            moved.append(same.load(0, part.rows).reshape(-1).astype(np.intp))
        order = np.argsort(np.concatenate(moved))
        is_same = np.array_equal(order, np.arange(len(order)))
        found[stored] = Origin(tuple(parts), None if is_same else order, norm_offset(parts[0], family))
    return found


def _numbered(name: str, shape: tuple[int, ...], rows: NDArray[np.float32], path: Path) -> Weights:
    """A tensor whose rows, or elements if it is a vector, hold their numbers."""

    def load(wanted: NDArray[np.intp]) -> NDArray[np.float32]:
        return rows[wanted][:, None] if len(shape) > 1 else rows[None, :]

    return Weights(name, shape, "F32", path, load)
