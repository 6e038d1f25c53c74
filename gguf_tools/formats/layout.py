# SPDX-License-Identifier: MIT
"""A small algebra of bit layouts: where each bit of an array lies in packed bytes.

A ``Layout`` is *fields* of *modes*. A mode counts i from 0 to extent - 1; i moves the index along one axis
by ``i * step`` and the bit's place by ``i * stride``. A field is every combination of its modes, from a
first index and a first bit on: all affine placements, such as rows, nibbles and interleaved vectors. What
is not affine (bits borrowed from other bytes) takes several fields of one part.

Layouts are built from smaller ones: ``join`` puts them one after another, ``repeat`` puts copies of one
after another, ``renumber`` spells one axis as the digits of others. Every layout is checked when it is made:
each index of a part is given exactly once, and each bit belongs to exactly one of them.

Bit 0 is the lowest bit of byte 0, bit 8 the lowest of byte 1. Axis "bit" is the bit of a value, from 0 up;
arrays have the other axes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import prod
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

BIT = "bit"


@dataclass(frozen=True)
class Mode:
    """``extent`` indices of ``axis``, ``step`` apart; their bits lie ``stride`` apart."""

    axis: str
    extent: int
    step: int
    stride: int


@dataclass(frozen=True)
class Field:
    """Bits of one ``part``: all combinations of ``modes`` from bit ``start`` and the index ``at``."""

    part: str
    modes: tuple[Mode, ...]
    start: int = 0
    at: tuple[tuple[str, int], ...] = ()  # (axis, index); 0 where an axis is not named

    def places(self) -> tuple[NDArray[np.int64], dict[str, NDArray[np.int64]]]:
        """The bit of every combination (one dimension), and its index along each axis."""
        counts = np.indices([mode.extent for mode in self.modes]).reshape(len(self.modes), -1)
        bits = np.full(counts.shape[1], self.start)
        index = {axis: np.full_like(bits, first) for axis, first in self.at}
        for count, mode in zip(counts, self.modes, strict=True):
            bits = bits + count * mode.stride
            index[mode.axis] = index.get(mode.axis, 0) + count * mode.step
        return bits, index


@dataclass(frozen=True)
class Layout:
    """Packed bytes, described. ``ValueError`` unless every index and every bit is met exactly once."""

    fields: tuple[Field, ...]

    def __post_init__(self) -> None:
        """Check the whole layout, bit by bit."""
        for mode in (mode for field in self.fields for mode in field.modes):
            if mode.extent < 2:
                raise ValueError(f"{mode}: an extent of {mode.extent} is no mode")
        places = [field.places() for field in self.fields]
        bits = np.concatenate([bits for bits, _ in places])
        if bits.min() < 0:
            raise ValueError(f"bit {bits.min()} lies before the first")
        _once(np.bincount(bits), "is shared", "is unused", lambda bit: f"bit {bit}")
        for part in self.parts:
            mine = [index for f, (_, index) in zip(self.fields, places, strict=True) if f.part == part]
            self._check_indices(part, mine)

    def _check_indices(self, part: str, fields: list[dict[str, NDArray[np.int64]]]) -> None:
        shape = self.shape(part)
        if any((index[axis] < 0).any() for index in fields for axis in index):
            raise ValueError(f"{part}: an index is negative")
        given = np.zeros(prod(shape.values()), np.int64)
        for index in fields:
            flat: NDArray[np.int64] = np.zeros(1, np.int64)
            for axis, size in shape.items():
                flat = flat * size + index.get(axis, 0)
            given += np.bincount(flat, minlength=len(given))

        def name(i: int) -> str:
            at = zip(shape, np.unravel_index(i, tuple(shape.values())), strict=True)
            return f"{part}: " + " ".join(f"{axis} {index}" for axis, index in at)

        _once(given, "is given twice", "is missed", name)

    @property
    def parts(self) -> tuple[str, ...]:
        """The names of the parts, in order."""
        return tuple(dict.fromkeys(field.part for field in self.fields))

    @property
    def bits(self) -> int:
        """The size in bits."""
        ends = (f.start + sum((m.extent - 1) * m.stride for m in f.modes) for f in self.fields)
        return 1 + max(ends)

    @property
    def bytes(self) -> int:
        """The size in bytes. ``ValueError`` when the last byte is not whole."""
        if self.bits % 8:
            raise ValueError(f"{self.bits} bits are not whole bytes")
        return self.bits // 8

    def shape(self, part: str) -> dict[str, int]:
        """The axes of a part and their sizes, in the order in which its fields name them."""
        sizes: dict[str, int] = {}
        for field in (field for field in self.fields if field.part == part):
            last = dict(field.at)
            for mode in field.modes:
                last[mode.axis] = last.get(mode.axis, 0) + (mode.extent - 1) * mode.step
            for axis, index in last.items():
                sizes[axis] = max(sizes.get(axis, 1), index + 1)
        return sizes

    def repeat(self, times: int, axis: str | Mapping[str, str]) -> Layout:
        """``times`` copies, one after another: each goes on along ``axis``, or the axis of each part."""
        if times == 1:
            return self
        size, fields = self.bits, []
        for field in self.fields:
            along = axis if isinstance(axis, str) else axis[field.part]
            step = self.shape(field.part).get(along, 1)
            fields.append(replace(field, modes=(*field.modes, Mode(along, times, step, size))))
        return Layout(tuple(fields))

    def renumber(self, axis: str, digits: Sequence[tuple[str, int, int]]) -> Layout:
        """The layout with ``axis`` spelled in digits: (axis, extent, step) each, the lowest first.

        Index i of ``axis`` becomes i % extent * step along the first digit's axis, and so on with
        i // extent. ``ValueError`` when a mode does not split at the digits.
        """
        fields = []
        for field in self.fields:
            modes = [part for mode in field.modes for part in _split(mode, axis, digits)]
            at = {name: index for name, index in field.at if name != axis}
            rest = dict(field.at).get(axis, 0)
            for name, extent, step in digits:
                rest, digit = divmod(rest, extent)
                at[name] = at.get(name, 0) + digit * step
            fields.append(
                replace(field, modes=tuple(modes), at=tuple((name, i) for name, i in at.items() if i))
            )
        return Layout(tuple(fields))

    def read(self, part: str, data: NDArray[np.uint8], axes: Sequence[str]) -> NDArray[np.uint16]:
        """The values of a part, uint16 (n, *axes), from n packed layouts, uint8 (n, bytes)."""
        out = np.zeros((len(data), *self._sizes(part, axes)), np.uint16)
        for packed, values, shift, bit, mask in self._views(part, axes, np.ascontiguousarray(data), out):
            values |= (packed.astype(np.uint16) >> shift & mask) << bit
        return out

    def write(
        self, part: str, data: NDArray[np.uint8], axes: Sequence[str], values: NDArray[np.uint16]
    ) -> None:
        """Set a part of n packed layouts, zero before and contiguous, from values (n, *axes)."""
        for packed, value, shift, bit, mask in self._views(part, axes, data, np.ascontiguousarray(values)):
            packed |= ((value >> bit & mask) << shift).astype(np.uint8)

    def _sizes(self, part: str, axes: Sequence[str]) -> tuple[int, ...]:
        shape = self.shape(part)
        if set(shape) - {BIT} - set(axes):
            raise ValueError(f"{part} has the axes {', '.join(shape)}, not only {', '.join(axes)}")
        return tuple(shape.get(axis, 1) for axis in axes)

    def _views(
        self, part: str, axes: Sequence[str], data: NDArray[np.uint8], values: NDArray[np.uint16]
    ) -> Iterator[tuple[NDArray[Any], NDArray[Any], int, int, int]]:
        """Pairs of strided views, of bytes and of values: (bytes, values, shift, bit, mask).

        Modes of whole bytes are dimensions of the views. The others are counted out, except a run of
        neighbouring bits, which is one shift.
        """
        sizes = self._sizes(part, axes)
        step_of = {axis: prod(sizes[i + 1 :]) for i, axis in enumerate(axes)}
        flat = values.reshape(len(values), -1)
        for field in (field for field in self.fields if field.part == part):
            whole = [m for m in field.modes if m.axis != BIT and m.stride % 8 == 0]
            fine = [m for m in field.modes if m not in whole]
            run = next((m for m in fine if m.axis == BIT and m.step == m.stride == 1), None)
            fine = [m for m in fine if m is not run]
            width = run.extent if run else 1
            for counts in product(*(range(m.extent) for m in fine)):
                start, index = field.start, dict(field.at)
                for i, m in zip(counts, fine, strict=True):
                    start += i * m.stride
                    index[m.axis] = index.get(m.axis, 0) + i * m.step
                bit = index.pop(BIT, 0)
                if start % 8 + width > 8:
                    raise ValueError(f"{part}: a run of {width} bits from bit {start} crosses a byte")
                shape = (len(data), *(m.extent for m in whole))
                first = sum(step_of[axis] * i for axis, i in index.items())
                yield (
                    as_strided(
                        data[:, start // 8 :],
                        shape,
                        (data.strides[0], *(m.stride // 8 * data.strides[1] for m in whole)),
                    ),
                    as_strided(
                        flat[:, first:],
                        shape,
                        (flat.strides[0], *(m.step * step_of[m.axis] * flat.strides[1] for m in whole)),
                    ),
                    start % 8,
                    bit,
                    (1 << width) - 1,
                )


def join(*layouts: Layout) -> Layout:
    """The layouts one after another."""
    fields, start = [], 0
    for layout in layouts:
        fields += [replace(field, start=field.start + start) for field in layout.fields]
        start += layout.bits
    return Layout(tuple(fields))


def _once(met: NDArray[np.int64], twice: str, never: str, name: Callable[[int], str]) -> None:
    """Raise ValueError, which names the first offender, unless every count is 1."""
    for wrong, why in ((met > 1, twice), (met == 0, never)):
        if wrong.any():
            raise ValueError(f"{name(int(wrong.argmax()))} {why} ({wrong.sum()} in all)")


def _split(mode: Mode, axis: str, digits: Sequence[tuple[str, int, int]]) -> Iterator[Mode]:
    """A mode along ``axis`` as modes along the digits' axes; any other as it is."""
    if mode.axis != axis:
        yield mode
        return
    extent, step, stride, worth = mode.extent, mode.step, mode.stride, 1
    for name, size, unit in digits:
        if extent > 1 and step < worth * size:
            if step % worth or size % (step // worth):
                break
            n = min(extent, worth * size // step)
            if extent % n:
                break
            if n > 1:
                yield Mode(name, n, step // worth * unit, stride)
            extent, step, stride = extent // n, step * n, stride * n
        worth *= size
    if extent > 1:
        raise ValueError(f"{mode} does not split at {', '.join(f'{n} {size}' for n, size, _ in digits)}")
