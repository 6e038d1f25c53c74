# SPDX-License-Identifier: MIT
"""Tensors of zeros and the rules of a conversion, for tests of what becomes of tensors."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from gguf_tools.sources.tensors import SourceTensor, keeps_f32
from lutra.conversion.options import ConversionOptions
from lutra.conversion.plan import Rules


def tensor(name: str, *shape: int) -> SourceTensor:
    return SourceTensor(
        name,
        shape,
        "F16",
        Path("x"),
        lambda a, b: np.zeros((b - a, shape[-1]), np.float32),
        keeps_f32=keeps_f32(name, shape),
    )


def asked(kind: str, *tensor_types: str, **options) -> Rules:
    """What ``lutra convert --type kind`` with these options asks for."""
    return ConversionOptions(kind, tensor_types=tensor_types, threads=1, **options).rules
