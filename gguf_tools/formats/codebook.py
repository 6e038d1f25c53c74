# SPDX-License-Identifier: MIT
"""The numpy reference of CB tensors, layout and arithmetic: a second opinion on the scalar C reference.

Written from the layout in ``strip`` and the description in ``cpu_kernels/include/lutra_kernels.h`` alone,
for every member of the family (1 to 6 bits per code, 1 or 2 weights per code). It is for tests, tools and
reading, not for speed; results equal the C reference's to the last bit.

Arrays of a tensor of R rows x K weights, leading dimensions multiplied into R:

    codes       uint8    (R, K / pair)   code c of group g at column g * 32 / pair + c
    selectors   uint8    (R, K / 32)     table of each group
    d           float16  (R, K / sb)     scale of each super-block
    library     int8     (256, pair, 2**bits)
    data        uint8    (R * row_bytes + library_bytes,)   the tensor as it lies in the file

A second layer has codes and a library of its own, and the first one's selectors and scales.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from gguf_tools.formats import strip
from gguf_tools.formats.family import GROUP, ROWS, CBFormat
from gguf_tools.formats.layout import Layout

Entry = TypeVar("Entry", bound=np.generic)

CODE, SELECTOR, D = ("row", "group", "position"), ("row", "group"), ("row",)  # axes of the parts in a block


class Parts(NamedTuple):
    """The bytes of a tensor, uint8: strips of the first layer, all libraries, codes of the second layer."""

    strips: NDArray[np.uint8]
    library: NDArray[np.uint8]
    second: NDArray[np.uint8]

    def join(self) -> NDArray[np.uint8]:
        """The tensor."""
        return np.concatenate(self)


def split(data: NDArray[np.uint8], fmt: CBFormat) -> Parts:
    """The parts of a tensor, or of whole strips of one with the libraries."""
    both = fmt.block_bytes + fmt.second_bytes
    strips = (len(data) - fmt.library_bytes) // both * fmt.block_bytes
    return Parts(*np.split(data, [strips, strips + fmt.library_bytes]))


def some_rows(data: NDArray[np.uint8], k: int, fmt: CBFormat, start: int, stop: int) -> NDArray[np.uint8]:
    """Rows ``start`` to ``stop``, multiples of 8, of a tensor of rows of ``k`` weights, as a tensor."""
    strips, library, second = split(data, fmt)
    first, other = (nbytes // ROWS * (k // fmt.sb) for nbytes in (fmt.block_bytes, fmt.second_bytes))
    return Parts(strips[start * first : stop * first], library, second[start * other : stop * other]).join()


def block_layout(fmt: CBFormat) -> Layout:
    """Where everything lies in one strip-super-block."""
    return strip.block(fmt.bits, fmt.pair, fmt.sb)


def block_dtype(fmt: CBFormat) -> np.dtype[Any]:
    """One strip-super-block as a numpy record with the field ``d``, float16 (8,)."""
    return np.dtype(
        {"names": ["d"], "formats": [("<f2", ROWS)], "offsets": [0], "itemsize": block_layout(fmt).bytes}
    )


def _check(fmt: CBFormat, rows: int, k: int) -> None:
    if rows <= 0 or k <= 0 or rows % ROWS or k % fmt.sb:
        raise ValueError(
            f"{fmt.name} needs a multiple of {ROWS} rows and of {fmt.sb} weights per row, not {rows} x {k}"
        )


def pack(
    codes: NDArray[np.uint8],
    selectors: NDArray[np.uint8],
    d: NDArray[np.float16],
    library: NDArray[np.int8],
    fmt: CBFormat,
    second: tuple[NDArray[np.uint8], NDArray[np.int8]] | None = None,
) -> NDArray[np.uint8]:
    """The bytes of a tensor. ``second``: codes and library of the second layer of a type that has one.

    ``ValueError`` for shapes or codes that do not fit.
    """
    rows, k = codes.shape[0], codes.shape[1] * fmt.pair
    _check(fmt, rows, k)
    if selectors.shape != (rows, k // GROUP) or d.shape != (rows, k // fmt.sb):
        raise ValueError(f"selectors {selectors.shape} or d {d.shape} do not fit {rows} x {k} weights")
    if bool(second) != bool(fmt.second):
        raise ValueError(f"{fmt.name} has {len(fmt.layers)} layers of codes")
    for layer, (of_layer, entries_) in zip(
        fmt.layers, [(codes, library), *([second] if second else [])], strict=True
    ):
        if entries_.shape != layer.library_shape or entries_.dtype != np.int8:
            raise ValueError(
                f"a {fmt.name} library is int8 {layer.library_shape}, not {entries_.dtype} {entries_.shape}"
            )
        if of_layer.shape != (rows, k // layer.pair):
            raise ValueError(f"codes {of_layer.shape} do not fit {rows} x {k} weights")
        if of_layer.max() >> layer.bits:
            raise ValueError(f"code {of_layer.max()} does not fit {layer.bits} bits")

    layout, blocks = block_layout(fmt), k // fmt.sb
    data = np.zeros((rows // ROWS * blocks, layout.bytes), np.uint8)
    layout.write("d", data, D, _by_block(d.astype("<f2").view(np.uint16), blocks))
    layout.write("selector", data, SELECTOR, _by_block(selectors, blocks))
    layout.write("code", data, CODE, _by_block(codes, blocks))
    parts = Parts(data.reshape(-1), library.reshape(-1).view(np.uint8), np.empty(0, np.uint8))
    if second and fmt.second:
        layout = strip.second(fmt.second.bits, fmt.second.pair, fmt.sb)
        data = np.zeros((rows // ROWS * blocks, layout.bytes), np.uint8)
        layout.write("code", data, CODE, _by_block(second[0], blocks))
        libraries = np.concatenate([library.reshape(-1), second[1].reshape(-1)])
        parts = Parts(parts.strips, libraries.view(np.uint8), data.reshape(-1))
    return parts.join()


def _by_block(values: NDArray[Any], blocks: int) -> NDArray[np.uint16]:
    """Rows (R, n) as strip-super-blocks (R / 8 * blocks, 8, n / blocks), in the order of the file."""
    by_block = values.reshape(-1, ROWS, blocks, values.shape[1] // blocks).swapaxes(1, 2)
    words: NDArray[np.uint16] = by_block.reshape(-1, ROWS, values.shape[1] // blocks).astype(np.uint16)
    return words


def _by_row(values: NDArray[np.uint16], blocks: int) -> NDArray[np.uint16]:
    """The inverse of ``_by_block``; values (n, 8, ...)."""
    by_row: NDArray[np.uint16] = values.reshape(len(values) // blocks, blocks, ROWS, -1).swapaxes(1, 2)
    rows: NDArray[np.uint16] = by_row.reshape(len(values) // blocks * ROWS, -1)
    return rows


def unpack(
    data: NDArray[np.uint8], rows: int, k: int, fmt: CBFormat
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.float16], NDArray[np.int8]]:
    """codes, selectors, d and library of a tensor, of its first layer; the inverse of ``pack``."""
    _check(fmt, rows, k)
    if data.shape != (fmt.tensor_bytes(rows, k),):
        raise ValueError(f"{fmt.name} {rows} x {k} takes {fmt.tensor_bytes(rows, k)} bytes, not {data.shape}")
    strips, libraries, _ = split(data, fmt)
    library = libraries[: fmt.layers[0].library_bytes].view(np.int8).reshape(fmt.library_shape)
    layout, blocks = block_layout(fmt), k // fmt.sb
    packed = strips.reshape(-1, layout.bytes)
    codes, selectors = (
        _by_row(layout.read(part, packed, axes), blocks).astype(np.uint8)
        for part, axes in (("code", CODE), ("selector", SELECTOR))
    )
    d = _by_row(layout.read("d", packed, D), blocks).view("<f2")
    return codes, selectors, d, library


def unpack_second(
    data: NDArray[np.uint8], rows: int, k: int, fmt: CBFormat
) -> tuple[NDArray[np.uint8], NDArray[np.int8]]:
    """codes and library of a tensor's second layer. ``ValueError`` for a type of one layer."""
    if not fmt.second:
        raise ValueError(f"{fmt.name} has one layer of codes")
    _, libraries, second = split(data, fmt)
    library = libraries[fmt.layers[0].library_bytes :].view(np.int8).reshape(fmt.second.library_shape)
    layout, blocks = strip.second(fmt.second.bits, fmt.second.pair, fmt.sb), k // fmt.sb
    codes = layout.read("code", second.reshape(-1, layout.bytes), CODE)
    return _by_row(codes, blocks).astype(np.uint8), library


def entries(
    codes: NDArray[np.uint8], selectors: NDArray[np.uint8], library: NDArray[Entry]
) -> NDArray[Entry]:
    """The library entry of every weight, (R, K): ``library[selector, weight of the pair, code]``.

    int8 like the library of a file; any type that stands for its entries will do.
    """
    rows, groups = selectors.shape
    by_group = codes.reshape(rows, groups, -1)
    picked = [library[selectors[:, :, None], weight, by_group] for weight in range(library.shape[1])]
    # a pair's weights are 16 apart: all first ones of a group, then all second ones
    return np.concatenate(picked, axis=2).reshape(rows, groups * GROUP)


def sums(data: NDArray[np.uint8], rows: int, k: int, fmt: CBFormat) -> tuple[NDArray[np.int8], NDArray[Any]]:
    """The entries of all layers, added modulo 256, int8 (rows, k), and d."""
    codes, selectors, d, library = unpack(data, rows, k, fmt)
    total = entries(codes, selectors, library)
    if fmt.second:
        codes, library = unpack_second(data, rows, k, fmt)
        total = total + entries(codes, selectors, library)
    return total, d


def dequantize(data: NDArray[np.uint8], rows: int, k: int, fmt: CBFormat) -> NDArray[np.float32]:
    """The weights d * entry, float32 (rows, k); exact, since 11 bits times 7 bits fit in 24."""
    total, d = sums(data, rows, k, fmt)
    weights = total.astype(np.float32).reshape(rows, -1, fmt.sb)
    return (d.astype(np.float32)[:, :, None] * weights).reshape(rows, k)


def quantize_x(x: NDArray[np.float32], sb: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Activations (..., K) as int8 q (..., K) and float32 scales d (..., K / sb).

    d = amax / 127 and q = round_half_to_even(x * (127 / amax)) per super-block, in float32; d = 0 below
    an amax of 1e-30, d = NaN where x has a NaN or an infinity (q = 0 in both cases).
    """
    blocks = x.astype(np.float32).reshape(*x.shape[:-1], -1, sb)
    amax = np.abs(blocks).max(axis=-1, keepdims=True)  # NaN when there is one
    finite = np.isfinite(amax)
    usable = finite & (amax >= np.float32(1e-30))
    safe = np.where(usable, amax, np.float32(1))
    scaled = np.where(usable, blocks, np.float32(0)) * (np.float32(127) / safe)
    q = np.rint(scaled).astype(np.int8)
    d = np.where(usable, safe / np.float32(127), np.where(finite, np.float32(0), np.float32(np.nan)))
    return q.reshape(x.shape), d[..., 0].astype(np.float32)


def fma(a: NDArray[np.float32], b: NDArray[np.float32], c: NDArray[np.float32]) -> NDArray[np.float32]:
    """fmaf: a * b + c rounded once to float32.

    The product is exact in float64 (24 + 24 bits), the sum is not; rounding it to 53 and then to 24
    bits can go wrong when the first rounding lands on a tie of the second. So the sum is rounded to
    odd instead (its error, found by Knuth's TwoSum, decides between the neighbours), which makes the
    second rounding right (Boldo and Melquiond, "Emulation of FMA and correctly rounded sums", 2008).
    """
    with np.errstate(invalid="ignore", over="ignore"):
        p, q = a.astype(np.float64) * b, c.astype(np.float64)
        s = p + q
        p_part = s - q
        error = (p - p_part) + (q - (s - p_part))
        even = s.view(np.int64) & 1 == 0
        odd = np.nextafter(s, np.where(error > 0, np.inf, -np.inf))
        rounded: NDArray[np.float64] = np.where(np.isfinite(s) & (error != 0) & even, odd, s)
        return rounded.astype(np.float32)


def gemv(
    data: NDArray[np.uint8],
    rows: int,
    k: int,
    fmt: CBFormat,
    q: NDArray[np.int8],
    d: NDArray[np.float32],
) -> NDArray[np.float32]:
    """W x, float32 (rows,), for one quantized activation row q (k,), d (k / sb,)."""
    y: NDArray[np.float32] = gemm(data, rows, k, fmt, q[None], d[None])[0]
    return y


def gemm(
    data: NDArray[np.uint8],
    rows: int,
    k: int,
    fmt: CBFormat,
    q: NDArray[np.int8],
    d: NDArray[np.float32],
) -> NDArray[np.float32]:
    """W x, float32 (n, rows), for n quantized activation rows q (n, k), d (n, k / sb).

    Super-block by super-block in order, acc = fmaf(d_w * d_x, (float)isum, acc) from 0.
    """
    total, d_w = sums(data, rows, k, fmt)
    weights = total.reshape(rows, -1, fmt.sb)
    acc = np.zeros((len(q), rows), np.float32)
    for s in range(k // fmt.sb):
        # sums of at most 256 * 127 * 127 < 2**24 are exact in float32, in any order
        x = q[:, s * fmt.sb : (s + 1) * fmt.sb].astype(np.float32)
        isum = x @ weights[:, s].astype(np.float32).T
        acc = fma(d_w[:, s].astype(np.float32)[None, :] * d[:, s, None], isum, acc)
    return acc
