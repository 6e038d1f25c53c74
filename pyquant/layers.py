# SPDX-License-Identifier: MIT
"""The second layer of codes: ``w = d * (first[selector][code] + second[selector][code])``.

It is learned on what the first layer leaves, whose selectors, scales and codes stay as they are: the first
layer alone is the tensor that it would be without a second one. Entries of both add up to -127 to 127, so
that kernels may add bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gguf_tools.formats.family import ROWS, CBFormat
from pyquant._native import check, ffi, native, pointer, thread_count
from pyquant.arguments import Rows, Shape, check_importance, check_library, check_matrix, read_rows
from pyquant.codebook import encode_shape, look_up, pack, runs

LARGEST = 127  # of a sum of entries, in magnitude

Array = NDArray[np.float32]


@dataclass(frozen=True)
class First:
    """Rows as their first layer has them."""

    selectors: NDArray[np.uint16]  # (n, k / group)
    d: NDArray[np.float16]  # (n, k / sb)
    entries: NDArray[np.int8]  # (n, k)

    @classmethod
    def of(
        cls,
        codes: NDArray[np.uint8],
        selectors: NDArray[np.uint16],
        d: NDArray[np.float16],
        library: NDArray[np.int8],
        shape: Shape,
    ) -> First:
        """From codes of the first layer, its shape and library."""
        entries = look_up(codes, selectors, np.ones(d.shape), library, shape).astype(np.int8)
        return cls(selectors, d, entries)

    def rest(self, w: Array) -> Array:
        """What the first layer leaves of the weights that it was made from."""
        sb = self.entries.shape[1] // self.d.shape[1]
        rest: Array = w - self.entries * np.repeat(self.d.astype(np.float32), sb, axis=1)
        return rest

    def part(self, rows: Any, columns: slice) -> First:
        """Of some rows and of columns in whole super-blocks."""

        def take(values: NDArray[Any]) -> NDArray[Any]:
            each = self.entries.shape[1] // values.shape[1]
            own = values[rows, columns.start // each : columns.stop // each]
            return np.ascontiguousarray(own)

        return First(take(self.selectors), take(self.d), take(self.entries))


def learn_layer(
    rest: Array,
    first: First,
    first_library: NDArray[np.int8],
    shape: Shape,
    *,
    importance: Array | None = None,
    threads: int | None = None,
) -> NDArray[np.int8]:
    """The library of a second layer of this ``shape``, int8 ``shape.library_shape``.

    ``rest``: what ``first`` leaves, float32 (n, k); ``importance`` float32 (n, k). The same for any number of
    threads. Memory: 24 bytes per code of the tables that threads are at. Raises ValueError for NaN, infinity
    and shapes that do not fit.
    """
    n, k = check_matrix(rest.shape, shape)
    rest = read_rows(rest, 0, n)
    library = np.empty(shape.library_shape, np.int8)
    check(native().lutra_layer_learn(
        shape.native(), n, k, pointer(rest, "float"), pointer(importance, "float"),
        pointer(first.entries, "int8_t"), pointer(first.selectors, "uint16_t"), pointer(first.d, "uint16_t"),
        thread_count(threads), pointer(library, "int8_t"),
    ), f"learning from {rest.size} weights")  # fmt: skip
    _lend(library, first_library, np.bincount(first.selectors.reshape(-1), minlength=shape.tables) > 0)
    return reaching(library, first_library)


def encode_layer(
    rest: Array,
    first: First,
    library: NDArray[np.int8],
    shape: Shape,
    *,
    importance: Array | None = None,
    threads: int | None = None,
) -> tuple[NDArray[np.uint8], float]:
    """Codes of the second layer, uint8 (n, k / pair), and the weighted squared error.

    ``importance``: float32 (k,), or (e, k) for e experts whose rows follow each other. Raises ValueError as
    ``learn_layer`` does, and for a library that cannot add to ``first`` what int8 holds.
    """
    n, k = check_matrix(rest.shape, shape)
    library, rest = check_library(library, shape), read_rows(rest, 0, n)
    importance = check_importance(importance, n, k)
    codes = np.empty((n, k // shape.pair), np.uint8)
    experts = 1 if importance is None else len(importance)
    total, error = 0.0, ffi.new("double *")
    for i in range(experts):
        part = slice(i * n // experts, (i + 1) * n // experts)
        check(native().lutra_layer_encode(
            shape.native(), n // experts, k, pointer(rest[part], "float"),
            pointer(None if importance is None else importance[i], "float"),
            pointer(first.entries[part], "int8_t"), pointer(first.selectors[part], "uint16_t"),
            pointer(first.d[part], "uint16_t"), pointer(library, "int8_t"), thread_count(threads),
            pointer(codes[part], "uint8_t"), error,
        ), f"encoding {rest.size} weights")  # fmt: skip
        total += error[0]
    return codes, total


def pack_second(codes: NDArray[np.uint8], fmt: CBFormat, *, threads: int | None = None) -> NDArray[np.uint8]:
    """The result of ``encode_layer`` as it lies in the file. Raises ValueError as ``codebook.pack``."""
    shape = Shape.of_second(fmt)
    n, k = check_matrix((len(codes), codes.shape[1] * shape.pair), shape)
    second = np.empty(n // ROWS * fmt.second_bytes * (k // fmt.sb), np.uint8)
    check(native().lutra_pack_second(
        shape.native(), n, k, pointer(codes, "uint8_t"), thread_count(threads), pointer(second, "uint8_t")
    ), f"packing {n * k} weights")  # fmt: skip
    return second


# ---- tensors of any type -------------------------------------------------------------------


def learn_second(
    rows: Rows | NDArray[Any],
    library: NDArray[np.int8],
    fmt: CBFormat,
    *,
    importance: NDArray[Any] | None = None,
    threads: int | None = None,
) -> NDArray[np.int8]:
    """The second library of a layered format, given the first; arguments and errors as for ``learn``."""
    shape = Shape.of(fmt)
    n, k = check_matrix(rows.shape, shape)
    importance = check_importance(importance, n, k)
    sample = runs(n, k)
    w = np.concatenate([read_rows(rows, run.start, run.stop) for run in sample])
    expert = np.zeros(len(w), np.intp)
    if importance is not None:
        expert = np.concatenate([np.arange(run.start, run.stop) for run in sample])
        expert //= n // len(importance)
    codes = np.empty((len(w), k // shape.pair), np.uint8)
    selectors, d = (
        np.empty((len(w), k // shape.group), np.uint16),
        np.empty((len(w), k // fmt.sb), np.float16),
    )
    for e in np.unique(expert):
        own, weight = expert == e, None if importance is None else importance[e]
        codes[own], selectors[own], d[own], _ = encode_shape(
            w[own], library, shape, importance=weight, threads=threads
        )
    first = First.of(codes, selectors, d, library, shape)
    weights = None if importance is None else importance[expert]
    second = Shape.of_second(fmt)
    return learn_layer(first.rest(w), first, library, second, importance=weights, threads=threads)


def encode_layers(
    w: NDArray[Any],
    libraries: Sequence[NDArray[np.int8]],
    fmt: CBFormat,
    *,
    importance: NDArray[Any] | None = None,
    threads: int | None = None,
) -> list[NDArray[np.uint8]]:
    """``encode`` for formats of one or two ``libraries``: strips, and the codes of the second layer."""
    codes, selectors, d, _ = encode_shape(
        w, libraries[0], Shape.of(fmt), importance=importance, threads=threads
    )
    layers = [pack(codes, selectors, d, fmt, threads=threads)]
    if fmt.second:
        first = First.of(codes, selectors, d, libraries[0], Shape.of(fmt))
        rest, shape = first.rest(read_rows(w, 0, len(w))), Shape.of_second(fmt)
        codes, _ = encode_layer(rest, first, libraries[1], shape, importance=importance, threads=threads)
        layers.append(pack_second(codes, fmt, threads=threads))
    return layers


def in_order(
    pieces: Sequence[Sequence[NDArray[np.uint8]]], libraries: Sequence[NDArray[np.int8]]
) -> list[NDArray[Any]]:
    """Layers of pieces of a tensor as they lie in a file: the libraries between the first and the second."""
    first, *second = zip(*pieces, strict=True)
    return [*first, *libraries, *(piece for layer in second for piece in layer)]


# ---- entries that add up to an int8 --------------------------------------------------------


def limits(
    codes: NDArray[np.uint8], first: First, shape: Shape
) -> tuple[NDArray[np.int16], NDArray[np.int16]]:
    """The least and the greatest that each entry may be for the codes that use it; 0 is always between."""
    tables, pair, size = shape.library_shape
    points = shape.group // pair
    table = np.repeat(first.selectors.astype(np.intp), points, axis=1)
    least, most = np.zeros((2, tables * pair * size), np.int16)
    for weight in range(pair):
        entry = first.entries.reshape(len(codes), -1, pair, points)[:, :, weight].reshape(codes.shape)
        place = (table * pair + weight) * size + codes
        np.minimum.at(least, place, entry)
        np.maximum.at(most, place, entry)
    return (-LARGEST - least).reshape(shape.library_shape), (LARGEST - most).reshape(shape.library_shape)


def reaching(library: NDArray[np.int8], first_library: NDArray[np.int8]) -> NDArray[np.int8]:
    """The library, in which every entry of the first layer finds one that it can be added to.

    Where a table has none its smallest point becomes zero, which adds to all.
    """
    sums = first_library.astype(np.int16)[..., None] + library.astype(np.int16)[:, :, None, :]
    fits = np.abs(sums) <= LARGEST  # (tables, weight of the pair, first code, code)
    if library.shape[1] == 1:
        good = fits.any(axis=-1).all(axis=(1, 2))
    elif first_library.shape[1] == 2:
        good = fits.all(axis=1).any(axis=-1).all(axis=-1)
    else:  # a pair of the second layer meets any two entries of the first
        good = (fits[:, 0, :, None] & fits[:, 1, None, :]).any(axis=-1).all(axis=(1, 2))
    library = library.copy()
    smallest = np.square(library.astype(np.int32)).sum(axis=1).argmin(axis=1)
    bad = np.flatnonzero(~good)
    library[bad, :, smallest[bad]] = 0
    return library


def _lend(library: NDArray[np.int8], first_library: NDArray[np.int8], used: NDArray[np.bool_]) -> None:
    """Give tables of groups that the sample has none of what the most similar table of those it has got."""
    have = np.flatnonzero(used)
    flat = first_library.reshape(len(first_library), -1).astype(np.float32)
    for table in np.flatnonzero(~used):
        library[table] = library[have[np.square(flat[have] - flat[table]).sum(axis=1).argmin()]]
