# SPDX-License-Identifier: MIT
"""Formats of activations: what a matrix gets instead of the floats that it should multiply.

A format is a function of float32 (rows, k), as small as its values allow: nothing is packed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

MANTISSAS = range(3, 12)  # bits beside the sign
GROUPS = (32, 64, 256)  # values that share an exponent
_LEAST = np.float32(1e-30)  # groups below it are zero: cpu_kernels/include/lutra_kernels.h


@dataclass(frozen=True)
class Format:
    """A way to hold activations. ``bits`` per value count what a group shares."""

    name: str
    bits: float
    rounding: Callable[[Array], Array]


def formats() -> list[Format]:
    """Mantissas of every size under a shared exponent, and what the kernels compute with."""
    shared = [
        Format(f"{bits}-bit mantissa, exponent of {group}", 1 + bits + 8 / group, _mantissa(bits, group))
        for group in GROUPS
        for bits in MANTISSAS
    ]
    scaled = [Format(f"int8, scale of {group}", 8 + 32 / group, _int8(group)) for group in (32, 256)]
    return [*shared, *scaled, Format("two planes, scales of 256", 16 + 64 / 256, _two_planes(256))]


def _mantissa(bits: int, group: int) -> Callable[[Array], Array]:
    """Signs and ``bits`` of the values of a group under the exponent of its largest, rounded to nearest."""

    def rounded(groups: Array) -> Array:
        _, exponent = np.frexp(_largest(groups))
        step = np.ldexp(np.float32(1), exponent - bits)
        most = np.float32(2**bits - 1)
        result: Array = np.clip(np.rint(groups / step), -most, most) * step
        return result

    return _grouped(rounded, group)


def _int8(group: int) -> Callable[[Array], Array]:
    """One plane, as the kernels quantize: integers of at most 127, a float scale for each group."""
    return _grouped(_plane, group)


def _two_planes(group: int) -> Callable[[Array], Array]:
    """One plane, and another of what it leaves."""

    def rounded(groups: Array) -> Array:
        first = _plane(groups)
        return first + _plane(groups - first)

    return _grouped(rounded, group)


def _plane(groups: Array) -> Array:
    largest = _largest(groups)
    is_zero = largest < _LEAST
    scale = np.where(is_zero, np.float32(0), np.float32(127) / np.where(is_zero, np.float32(1), largest))
    result: Array = np.rint(groups * scale) * (largest / np.float32(127))
    return result


def _largest(groups: Array) -> Array:
    result: Array = np.abs(groups).max(axis=2, keepdims=True)
    return result


def _grouped(rounding: Callable[[Array], Array], group: int) -> Callable[[Array], Array]:
    """``rounding`` of (rows, groups, values) for (rows, k); the last group of a row may be shorter."""

    def rounded(x: Array) -> Array:
        n, k = x.shape
        padded = np.pad(x, ((0, 0), (0, -k % group))) if k % group else x
        result: Array = rounding(padded.reshape(n, -1, group)).reshape(n, -1)[:, :k]
        return result

    return rounded
