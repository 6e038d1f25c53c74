# SPDX-License-Identifier: MIT
"""Importance matrices: what each input of a matrix weighs, as llama-imatrix has measured it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gguf_tools.errors import LutraError
from gguf_tools.imatrix import read_imatrix
from lutra.console import warn
from lutra.conversion.plan import Planned
from lutra.runtime.quantize import requires_importance

Importance = Mapping[str, NDArray[np.float32]]  # by tensor name: (k,), or (experts, k)


def read_importance(planned: Sequence[Planned], path: Path | None) -> Importance:
    """Importance by tensor name, checked against the tensors that will be quantized. Raises LutraError."""
    importance = read_imatrix(path) if path else {}
    for p in planned:
        if not p.is_quantized:
            importance.pop(p.name, None)
        elif p.name not in importance:
            if not p.fmt and requires_importance(p.id):
                raise LutraError(
                    f"tensor {p.name!r}: {p.type_name} needs --imatrix data for it, or another type"
                )
        elif importance[p.name].shape not in ((p.source.k,), (*p.source.shape[:-2], p.source.k)):
            shape = importance[p.name].shape
            raise LutraError(f"{path}: importance of {shape} for tensor {p.name!r} of {p.source.shape}: "
                             "made for another model; run llama-imatrix on this one")  # fmt: skip
    return importance


def warn_uncovered(planned: Sequence[Planned], path: Path | None, importance: Importance) -> None:
    """Name the tensors that an importance matrix was given for and is silent about."""
    names = [p.name for p in planned if p.is_quantized and p.name not in importance]
    if path and names:
        warn(f"{path} says nothing about {', '.join(names)}: quantized without importance")
