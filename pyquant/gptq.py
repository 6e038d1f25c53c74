# SPDX-License-Identifier: MIT
"""Encoding a matrix against the Hessian of its inputs: GPTQ with codebooks, then descent.

What a matrix W does to its inputs X (tokens, k) is changed by ``(Q - W) X^T``, whose squared size is
``sum over rows of e H e^T`` with e = w - q and the Hessian H = X^T X / tokens. Weights are rounded group by
group; the error of a group moves the targets of the groups that follow, as in GPTQ and LDLQ. Then rounds of
descent: scales by least squares, selectors and codes group by group given all others.

The library is learned, and refitted by least squares to codes of that pass, on a sample of rows. Given the
library, rows are independent of each other, and so are column blocks, between which the Hessian is taken to
be zero: they are encoded piece by piece, and memory is bounded whatever the size of the matrix.

The second layer of a layered format is the same problem again, for what the first leaves: its selectors and
scales are the first's, so that a pass finds codes only.

Where a Hessian of the outputs is given, too, rows are not independent: the errors of a few rows move the
targets of all rows before them, as those of groups do within a row.

Weights are visited in order of their input's energy, group after group, largest first; the two weights of
a pair are neighbours in that order. Only the order of work changes, not the place of a weight.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from gguf_tools.formats.family import GROUP, CBFormat
from pyquant._native import check, ffi, native, pointer, thread_count
from pyquant.arguments import Rows, Shape, check_library, check_matrix, read_rows
from pyquant.codebook import encode_shape, learn_shape, look_up, pack
from pyquant.layers import First, encode_layer, learn_layer, limits, pack_second, reaching

DAMPING = 0.3  # of the mean diagonal: what the calibration text does not show counts in other texts
WIDEST = 4096  # columns of a Hessian
SAMPLE = 1 << 21  # weights that the library is learned from
SLAB = 1 << 22  # weights encoded at a time
SLICE = 256  # rows per call of BLAS
TOGETHER = 32  # rows that are encoded side by side where rows make up for each other
CG_STEPS = {1: 5, 2: 8}  # of conjugate gradients per refit, by weights per code: pairs have more entries
ROUNDS = 1

# Bits, weights per code: first layers that native/gptq.c has loops for.
MEMBERS = ((3, 1), (4, 1), (4, 2), (5, 2))
TINY = float(np.finfo(np.float32).tiny)

Array = NDArray[np.float32]
Array64 = NDArray[np.float64]
T = TypeVar("T")
Number = TypeVar("Number", np.float32, np.int8)

_GROUP_FORM = np.dtype(
    [
        ("form", "f4", (GROUP, GROUP)),
        ("factor", "f4", (GROUP, GROUP)),
        ("weight", "f4", (GROUP, 2)),
        ("inverse", "f4", (GROUP, GROUP)),
    ]
)


@dataclass
class Encoded:
    """A matrix as codes, selectors, scales and library; ``second``: codes and library of a second layer.

    ``loss``: sum of e H e^T relative to w H w^T, which is ``energy``, after GPTQ and after every round, layer
    after layer.
    """

    fmt: CBFormat
    codes: NDArray[np.uint8]  # (n, k / pair), group by group
    selectors: NDArray[np.uint16]  # (n, k / 32)
    d: NDArray[np.float16]  # (n, k / sb)
    library: NDArray[np.int8]
    loss: list[float]
    energy: float
    second: tuple[NDArray[np.uint8], NDArray[np.int8]] | None = None

    def weights(self, rows: slice = slice(None)) -> Array:
        """What it stands for, float32 (n, k); of some rows only, if wanted."""
        selectors, d = self.selectors[rows], self.d[rows]
        w = look_up(self.codes[rows], selectors, d, self.library, Shape.of(self.fmt))
        if self.second:
            codes, library = self.second
            w += look_up(codes[rows], selectors, d, library, Shape.of_second(self.fmt))
        return w

    def first(self, rows: slice | NDArray[np.intp]) -> First:
        """Some rows of the first layer."""
        part = self.codes[rows], self.selectors[rows], self.d[rows]
        return First.of(*part, self.library, Shape.of(self.fmt))

    @property
    def libraries(self) -> list[NDArray[np.int8]]:
        """Of each layer."""
        return [self.library, self.second[1]] if self.second else [self.library]

    def layers(self, threads: int | None = None) -> list[NDArray[np.uint8]]:
        """The bytes of each layer but for its library: strips, and the codes of a second one."""
        strips = pack(self.codes, self.selectors, self.d, self.fmt, threads=threads)
        return [strips, pack_second(self.second[0], self.fmt, threads=threads)] if self.second else [strips]


def column_blocks(k: int, fmt: CBFormat) -> list[slice]:
    """The columns of each Hessian of a matrix of ``k`` columns: at most WIDEST, the last may have fewer."""
    width = -(-k // -(-k // WIDEST))
    width = -(-width // fmt.sb) * fmt.sb
    return [slice(i, min(i + width, k)) for i in range(0, k, width)]


def quantize(
    w: NDArray[Any] | Rows,
    hessian: NDArray[Any],
    fmt: CBFormat,
    *,
    rounds: int = ROUNDS,
    seed: int = 0,
    threads: int | None = None,
    row_weight: Array | None = None,
    libraries: Sequence[NDArray[np.int8]] = (),
    outputs: Array | None = None,
) -> Encoded:
    """The matrix ``w`` (n, k) in ``fmt``, close under ``hessian``.

    ``hessian``: float32 (k, k); for k over WIDEST, (blocks, b, b), the Hessians of ``column_blocks(k, fmt)``,
    the last with zeros beyond k; for experts whose rows follow each other, one of these for each of them,
    (experts, k, k) or (experts, blocks, b, b). ``row_weight`` float32 (n,): how much the errors of each row
    count when libraries are learned. ``libraries``: those of each layer, if they are there already.
    ``outputs``: float32 (n, n), the Hessian of the outputs in any unit, not for experts. With it the squared
    size of an error E is tr(E^T outputs E hessian), both damped; the last layer's rows see to that.

    The result does not depend on ``threads``. Memory beside ``w``, the Hessians and the result: 12 bytes for
    each weight of the sample and 24 for each weight of a slab, 8 more of both in a second layer, and 36 b^2
    bytes while a Hessian is factored; 4 more for each weight and 28 n^2 with ``outputs``. Raises ValueError
    as ``learn`` does, for formats other than MEMBERS, and for a Hessian, row weights or libraries that do not
    fit, are not finite or are no such thing.
    """
    threads = thread_count(threads)
    if rounds < 0:
        raise ValueError(f"{rounds} rounds: needed 0 or more")
    with threadpool_limits(1, user_api="blas"):
        problem = _Problem.of(w, hessian, fmt)
        coupling = None if outputs is None else problem.row_coupling(outputs)
        last = replace(problem, coupling=coupling)
        encoded = _learn_and_encode(
            problem if fmt.second else last, libraries[:1], row_weight, rounds, seed, threads
        )
        if fmt.second:
            rest = replace(last, shape=Shape.of_second(fmt), first=encoded)
            second = _learn_and_encode(rest, libraries[1:], row_weight, rounds, seed, threads)
            encoded.second = second.codes, second.library
            encoded.loss += [loss * encoded.loss[-1] for loss in second.loss]
        return encoded


def _learn_and_encode(
    p: _Problem,
    library: Sequence[NDArray[np.int8]],
    row_weight: Array | None,
    rounds: int,
    seed: int,
    threads: int,
) -> Encoded:
    """A layer with its ``library``, which is learned if there is none."""
    if library:
        return _encode(p, check_library(library[0], p.shape), {}, rounds, threads)
    learned, pieces = _learn_library(p, row_weight, rounds, seed, threads)
    if p.coupling is not None:  # anew, with one round more, as the library is refitted already
        pieces, rounds = {}, rounds + 1
    return _encode(p, learned, pieces, rounds, threads)


def learn_libraries(
    w: NDArray[Any] | Rows,
    hessian: NDArray[Any],
    fmt: CBFormat,
    *,
    rounds: int = ROUNDS,
    seed: int = 0,
    threads: int | None = None,
) -> list[NDArray[np.int8]]:
    """What ``quantize`` would learn for a matrix of which ``w`` is a part. Raises as it does."""
    threads = thread_count(threads)
    with threadpool_limits(1, user_api="blas"):
        problem = _Problem.of(w, hessian, fmt)
        library, pieces = _learn_library(problem, None, rounds, seed, threads)
        if not fmt.second:
            return [library]
        first = _encode(problem, library, pieces, rounds, threads)
        rest = replace(problem, shape=Shape.of_second(fmt), first=first)
        return [library, _learn_library(rest, None, rounds, seed, threads)[0]]


# ---- matrices, the same bits for any number of threads -------------------------------------


def slices(n: int, task: Callable[[slice], T], threads: int) -> list[T]:
    """``task`` for slices of n rows, on all threads; BLAS itself stays on one."""
    parts = [slice(i, min(i + SLICE, n)) for i in range(0, n, SLICE)]
    with threadpool_limits(1, user_api="blas"):
        if threads == 1:
            return list(map(task, parts))
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(task, parts))


def multiply(a: Array, b: Array, threads: int) -> Array:
    """a @ b."""
    out = np.empty((len(a), b.shape[1]), np.float32)
    slices(len(a), lambda part: np.matmul(a[part], b, out=out[part]), threads)
    return out


# ---- the matrix in pieces ------------------------------------------------------------------


@dataclass(frozen=True)
class _Problem:
    """A matrix, and the Hessian of every expert and column block."""

    fmt: CBFormat
    shape: Shape  # of the layer
    w: NDArray[Any] | Rows
    hessian: Array  # (experts, blocks, b, b)
    blocks: list[slice]
    mean: float  # of all diagonals
    first: Encoded | None = None  # for a second layer
    coupling: Array | None = None  # of rows

    @classmethod
    def of(cls, w: NDArray[Any] | Rows, hessian: NDArray[Any], fmt: CBFormat) -> _Problem:
        shape = Shape.of(fmt)
        if (shape.bits, shape.pair) not in MEMBERS:
            raise ValueError(f"{fmt.name}: cannot be encoded against a Hessian")
        n, k = check_matrix(w.shape, shape)
        blocks = column_blocks(k, fmt)
        b = blocks[0].stop
        forms = ((k, k), (n, k, k)) if len(blocks) == 1 else ((len(blocks), b, b), (n, len(blocks), b, b))
        experts = hessian.shape[0] if hessian.ndim == len(forms[1]) else 1
        fits = hessian.shape in (forms[0], (experts, *forms[1][1:]))
        if not fits or experts == 0 or n % experts:
            raise ValueError(f"Hessian of shape {hessian.shape} for a matrix of {(n, k)}: needed {forms[0]}")
        with np.errstate(over="ignore"):  # what becomes infinite is refused
            hessian = np.asarray(hessian, np.float32).reshape(experts, len(blocks), b, b)
        diagonals = np.diagonal(hessian, axis1=2, axis2=3)
        if not all(np.isfinite(h).all() for h in hessian.reshape(-1, b, b)) or diagonals.min() < 0:
            raise ValueError("Hessian is not finite, or has a negative diagonal")
        mean = float(diagonals.sum(dtype=np.float64)) / (experts * k)
        return cls(fmt, shape, w, hessian, blocks, mean if mean >= TINY else 1.0)

    def read(self, rows: slice) -> tuple[Array, First | None]:
        """The weights of some rows; for a second layer, what the first leaves of them."""
        w = read_rows(self.w, rows.start, rows.stop)
        if self.first is None:
            return w, None
        first = self.first.first(rows)
        return first.rest(w), first

    def row_coupling(self, outputs: Array) -> Array:
        """The unit lower triangular L of outputs = L D L^T, damped, with D in blocks of TOGETHER rows."""
        n = self.w.shape[0]
        if outputs.shape != (n, n) or len(self.hessian) > 1:
            raise ValueError(f"Hessian of outputs of shape {outputs.shape}: needed {(n, n)} for one matrix")
        h = outputs.astype(np.float64)
        diagonal = np.diag(h)
        if not np.isfinite(h).all() or diagonal.min() < 0:
            raise ValueError("Hessian of outputs is not finite, or has a negative diagonal")
        h[np.diag_indices(n)] += max(DAMPING * float(diagonal.mean()), TINY)
        try:
            lower = np.linalg.cholesky(h)
        except np.linalg.LinAlgError:
            raise ValueError("Hessian of outputs is not positive semidefinite") from None
        for start in range(0, n, TOGETHER):
            own = slice(start, start + TOGETHER)
            lower[:, own] = lower[:, own] @ np.linalg.inv(lower[own, own])
        return lower.astype(np.float32)

    def experts(self) -> list[slice]:
        """The rows of each."""
        n = self.w.shape[0] // len(self.hessian)
        return [slice(i * n, (i + 1) * n) for i in range(len(self.hessian))]

    def damped(self, expert: int, block: int) -> Array:
        """The Hessian of a block in units of the mean diagonal, damped."""
        columns = self.blocks[block]
        m = columns.stop - columns.start
        h: Array = self.hessian[expert, block, :m, :m] * np.float32(1 / self.mean)
        h[np.diag_indices(m)] += np.float32(DAMPING * max(float(np.trace(h)) / m, 1e-3))
        return h


# ---- the order of work ---------------------------------------------------------------------


@dataclass(frozen=True)
class Order:
    """Groups and, within each, points (weights, or pairs) in the order in which they are visited."""

    groups: NDArray[np.intp]  # (groups,)
    points: NDArray[np.intp]  # (groups, points)
    weights: NDArray[np.intp]  # (k,): column of the n-th weight

    @classmethod
    def by_energy(cls, energy: Array, shape: Shape) -> Order:
        """Largest first, the first of equals first."""
        per_point = energy.reshape(-1, shape.pair, GROUP // shape.pair).sum(axis=1)
        groups = np.argsort(-per_point.sum(axis=1), kind="stable")
        points = np.argsort(-per_point, axis=1, kind="stable")
        first = groups[:, None] * GROUP + points[groups]
        weights = np.stack([first + i * (GROUP // shape.pair) for i in range(shape.pair)], axis=-1)
        return cls(groups, points, weights.reshape(-1))

    def columns(self, w: NDArray[Number]) -> NDArray[Number]:
        """The columns of a matrix in this order."""
        return np.ascontiguousarray(w[:, self.weights])

    def apply(
        self, codes: NDArray[np.uint8], selectors: NDArray[np.uint16]
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint16]]:
        """Codes and selectors in this order."""
        by_group = codes.reshape(len(codes), *self.points.shape)
        by_group = np.take_along_axis(by_group, self.points[None], axis=2)[:, self.groups]
        return np.ascontiguousarray(by_group), np.ascontiguousarray(selectors[:, self.groups])

    def undo(
        self, codes: NDArray[np.uint8], selectors: NDArray[np.uint16]
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint16]]:
        """Codes and selectors back in their places."""
        by_group, places = np.empty_like(codes), np.empty_like(selectors)
        by_group[:, self.groups], places[:, self.groups] = codes, selectors
        by_group = np.take_along_axis(by_group, np.argsort(self.points, axis=1)[None], axis=2)
        return np.ascontiguousarray(by_group.reshape(len(codes), -1)), places


# ---- what the passes need of the Hessian ---------------------------------------------------


def _factor(h: Array64, pair: int) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """h = U U^T = A D A^T, batched: U upper and A unit upper triangular, D in rows of blocks (k, pair)."""
    try:
        u = np.linalg.cholesky(h[..., ::-1, ::-1])[..., ::-1, ::-1]
    except np.linalg.LinAlgError:
        raise ValueError("Hessian is not positive semidefinite") from None
    k = u.shape[-1]
    n = np.arange(k // pair)
    blocks = u.reshape(*u.shape[:-2], k // pair, pair, k // pair, pair)[..., n, :, n, :]
    blocks = np.moveaxis(blocks, 0, -3)
    inverse = np.linalg.inv(blocks)
    a = np.empty(u.shape)
    for i in range(pair):
        parts = (u[..., c::pair] * inverse[..., None, :, c, i] for c in range(i + 1))
        a[..., i::pair] = sum(parts)
    d = (blocks @ np.swapaxes(blocks, -1, -2)).reshape(*u.shape[:-2], k, pair)
    return u, a, d


def _diagonal(m: NDArray[Any]) -> NDArray[Any]:
    """The blocks of the groups on the diagonal."""
    n = np.arange(len(m) // GROUP)
    return m.reshape(len(n), GROUP, len(n), GROUP)[n, :, n, :]


def _group_forms(
    form: NDArray[Any], factor: NDArray[Any], weight: NDArray[Any], inverse: NDArray[Any]
) -> NDArray[Any]:
    forms = np.zeros(len(form), _GROUP_FORM)
    forms["form"], forms["factor"], forms["inverse"] = form, factor, inverse
    forms["weight"][..., : weight.shape[-1]] = weight.reshape(len(form), GROUP, -1)
    return forms


def _forward(h: Array, order: Order, shape: Shape) -> tuple[NDArray[Any], Array]:
    """For the first pass: the error of a group, later ones having the chance to make up for it."""
    u, a, d = _factor(h[np.ix_(order.weights, order.weights)].astype(np.float64), shape.pair)
    u, within = _diagonal(u), _diagonal(a)
    forms = _group_forms(u @ u.transpose(0, 2, 1), within, d, np.linalg.inv(within))
    return forms, np.ascontiguousarray(a, np.float32)


def _descent(h: Array, order: Order, shape: Shape) -> tuple[NDArray[Any], Array]:
    """For passes that change a group given all others."""
    h = np.ascontiguousarray(h[np.ix_(order.weights, order.weights)])
    own = _diagonal(h).astype(np.float64)
    _, a, d = _factor(own, shape.pair)
    return _group_forms(own, a, d, np.linalg.inv(own)), h


# ---- steps ---------------------------------------------------------------------------------


@dataclass
class _Codes:
    """Codes, selectors and scales of a piece of a matrix; ``first``: of its first layer, for a second."""

    shape: Shape
    codes: NDArray[np.uint8]
    selectors: NDArray[np.uint16]
    d: NDArray[np.float16]
    first: First | None

    def look_up(self, entries: NDArray[Any], d: NDArray[Any] | None = None) -> Array:
        """The weights if ``entries`` were the library (and ``d`` the scales), float32 (n, k)."""
        return look_up(self.codes, self.selectors, self.d if d is None else d, entries, self.shape)

    def sum_entries(self, x: Array, library_shape: tuple[int, ...], threads: int) -> Array64:
        """The transpose of ``look_up``: what every entry gets of x (n, k)."""
        scales = self.d.astype(np.float32)

        def part(rows: slice) -> Array64:
            sums = np.zeros(library_shape)
            check(native().lutra_sum_entries(
                self.shape.native(), len(x[rows]), x.shape[1], pointer(x[rows], "float"),
                pointer(self.codes[rows], "uint8_t"), pointer(self.selectors[rows], "uint16_t"),
                pointer(scales[rows], "float"), pointer(sums, "double"),
            ), f"summing {x.size} weights")  # fmt: skip
            return sums

        return sum(slices(len(x), part, threads), np.zeros(library_shape))


@dataclass
class _Piece:
    """Rows of one expert and column block, on the way to codes."""

    w: Array
    h: Array  # damped
    order: Order
    state: _Codes
    losses: list[float] = field(default_factory=list)  # sum of e h e^T after every pass

    @classmethod
    def nearest(
        cls,
        w: Array,
        first: First | None,
        h: Array,
        order: Order,
        library: NDArray[np.int8],
        shape: Shape,
        threads: int,
    ) -> _Piece:
        """Weight by weight, the Hessian's diagonal as importance."""
        diagonal = np.ascontiguousarray(np.diag(h))
        if first is None:
            codes, selectors, d, _ = encode_shape(w, library, shape, importance=diagonal, threads=threads)
        else:
            codes, _ = encode_layer(w, first, library, shape, importance=diagonal, threads=threads)
            selectors, d = first.selectors, first.d
        return cls(w, h, order, _Codes(shape, codes, selectors, d, first))

    def encode(
        self, terms: tuple[NDArray[Any], Array], library: NDArray[np.int8], *, again: bool, threads: int
    ) -> None:
        """One pass of the groups: the first, which is GPTQ, or one that improves them."""
        forms, coupling = terms
        m, order = self.state, self.order
        work = order.columns(self.w)
        n, k = work.shape
        d = np.repeat(m.d.astype(np.float32), m.shape.sb // GROUP, axis=1)[:, order.groups]
        codes, selectors = order.apply(m.codes, m.selectors)
        first = order.columns(m.first.entries) if m.first else None
        loss = np.empty(n)
        check(native().lutra_gptq(
            m.shape.native(), n, k, pointer(work, "float"), pointer(first, "int8_t"),
            ffi.from_buffer("struct lutra_group_form[]", forms), pointer(coupling, "float"),
            pointer(library, "int8_t"), pointer(np.ascontiguousarray(d), "float"), again, threads,
            pointer(codes, "uint8_t"), pointer(selectors, "uint16_t"), pointer(loss, "double"),
        ), f"encoding {work.size} weights")  # fmt: skip
        m.codes, m.selectors = order.undo(codes, selectors)
        self.losses.append(float(loss.sum()))

    def rebase(self, w: Array, library: NDArray[np.int8], threads: int) -> Array:
        """The errors of weights that were not quite the target; the last loss becomes theirs."""
        self.w, errors = w, w - self.state.look_up(library)
        self.losses[-1] = float(np.vdot(multiply(errors, self.h, threads), errors))
        return errors

    def refit_scales(self, library: NDArray[np.int8], threads: int) -> None:
        """The scales of each row by least squares; those that would vanish stay as they are.

        A second layer has those of the first.
        """
        m = self.state
        if m.first:
            return
        n, k = self.w.shape
        sb = m.shape.sb
        q = m.look_up(library, np.ones(m.d.shape, np.float32))
        left = np.empty((n, k // sb, k // sb))
        right = (multiply(self.w, self.h, threads) * q).reshape(n, -1, sb).sum(axis=2, dtype=np.float64)
        for i in range(k // sb):
            columns = slice(i * sb, (i + 1) * sb)
            image = multiply(np.ascontiguousarray(q[:, columns]), self.h[columns], threads)
            left[:, i] = (image * q).reshape(n, -1, sb).sum(axis=2, dtype=np.float64)
        left += (1e-9 * np.trace(left, axis1=1, axis2=2)[:, None, None] + 1e-30) * np.eye(k // sb)
        d = np.linalg.solve(left, right[..., None])[..., 0]
        d16 = np.clip(d, 0.0, 65504.0).astype(np.float16)
        m.d = np.where(d16 > 0, d16, m.d)


Pieces = dict[tuple[int, int], _Piece]  # by expert and column block


def _encode(
    p: _Problem,
    library: NDArray[np.int8],
    pieces: Pieces,
    rounds: int,
    threads: int,
) -> Encoded:
    """``pieces``: what the sample became, by expert and block, if it is the whole matrix; else none."""
    n, k = p.w.shape
    shape = p.shape
    codes = np.empty((n, k // shape.pair), np.uint8)
    selectors = np.empty((n, k // GROUP), np.uint16)
    d = np.empty((n, k // shape.sb), np.float16)
    losses = np.zeros(1 + rounds)
    total = 0.0
    for expert, own in enumerate(p.experts()):
        for block, columns in enumerate(p.blocks):
            h = p.damped(expert, block)
            if not pieces:
                order = Order.by_energy(np.ascontiguousarray(np.diag(h)), shape)
                forward, descent = _forward(h, order, shape), _descent(h, order, shape)
            step = own.stop - own.start if pieces else max(1, SLAB // len(h))
            starts = range(own.start, own.stop, step)
            if p.coupling is not None:
                starts = range(own.start, own.stop, TOGETHER)[::-1]
                step, errors = TOGETHER, np.zeros((n, len(h)), np.float32)
            for start in starts:
                rows = slice(start, min(start + step, own.stop))
                if pieces:
                    piece = pieces[expert, block]
                else:
                    w, first = p.read(rows)
                    w = target = np.ascontiguousarray(w[:, columns])
                    if p.coupling is not None:  # what is behind makes the best of it
                        target = w + p.coupling[rows.stop :, rows].T @ errors[rows.stop :]
                    piece = _Piece.nearest(
                        target, first and first.part(slice(None), columns), h, order, library, shape, threads
                    )
                    piece.encode(forward, library, again=False, threads=threads)
                    for _ in range(rounds):
                        piece.refit_scales(library, threads)
                        piece.encode(descent, library, again=True, threads=threads)
                    if p.coupling is not None:
                        errors[rows] = piece.rebase(w, library, threads)
                losses += piece.losses
                total += float(np.vdot(multiply(piece.w, h, threads), piece.w))
                m = piece.state
                codes[rows, columns.start // shape.pair : columns.stop // shape.pair] = m.codes
                selectors[rows, columns.start // GROUP : columns.stop // GROUP] = m.selectors
                d[rows, columns.start // shape.sb : columns.stop // shape.sb] = m.d
    return Encoded(p.fmt, codes, selectors, d, library, (losses / (total or 1.0)).tolist(), total * p.mean)


# ---- the library ---------------------------------------------------------------------------


def _sample(p: _Problem, row_weight: Array | None) -> tuple[NDArray[np.intp], Array]:
    """Rows to learn from and what each counts: all, or where every n-th part of the total weight ends."""
    n, k = p.w.shape
    if row_weight is None:
        row_weight = np.ones(n, np.float32)
    elif row_weight.shape != (n,) or not np.isfinite(row_weight).all() or row_weight.min() < 0:
        raise ValueError(f"row weights of shape {row_weight.shape} for {n} rows, negative or not finite")
    count = max(1, SAMPLE // k)
    total = np.cumsum(row_weight, dtype=np.float64)
    if not TINY <= total[-1] <= 1e38:
        raise ValueError(f"row weights add up to {total[-1]:.3g}: needed {TINY:.3g} to 1e+38")
    rows: NDArray[np.intp] = np.arange(n)
    times: NDArray[Any] = row_weight
    if count < n:
        rows, times = np.unique(
            np.searchsorted(total, (np.arange(count) + 0.5) / count * total[-1]), return_counts=True
        )
    return rows, (times / times.mean()).astype(np.float32)


def _learn_library(
    p: _Problem, row_weight: Array | None, rounds: int, seed: int, threads: int
) -> tuple[NDArray[np.int8], Pieces]:
    """The library, and the pieces of the sample by expert and block if it is the whole matrix."""
    shape = p.shape
    rows, weight = _sample(p, row_weight)
    w = np.concatenate([read_rows(p.w, r, r + 1) for r in rows])
    first = None
    if p.first:
        first = p.first.first(rows)
        w = first.rest(w)
    expert = rows // (p.w.shape[0] // len(p.hessian))
    diagonal = np.empty((len(p.hessian), w.shape[1]), np.float32)
    for e in range(len(diagonal)):
        for b, columns in enumerate(p.blocks):
            diagonal[e, columns] = np.diag(p.damped(e, b))
    importance = weight[:, None] * diagonal[expert]
    if p.first and first:
        library = learn_layer(
            w, first, p.first.library, shape, importance=np.maximum(importance, 1e-4), threads=threads
        )
    else:
        library = learn_shape(w, shape, importance=importance, seed=seed, threads=threads)
    pieces: Pieces = {}
    weights = []
    for e in np.unique(expert).tolist():
        own = expert == e
        for b, columns in enumerate(p.blocks):
            h = p.damped(e, b)
            order = Order.by_energy(diagonal[e, columns], shape)
            piece = _Piece.nearest(
                np.ascontiguousarray(w[own, columns]), first and first.part(own, columns),
                h, order, library, shape, threads,
            )  # fmt: skip
            piece.encode(_forward(h, order, shape), library, again=False, threads=threads)
            pieces[e, b] = piece
            weights.append(weight[own, None])
    for _ in range(rounds):
        library = _refit_library(list(pieces.values()), weights, library, p.first, threads)
        for piece in pieces.values():
            piece.refit_scales(library, threads)
            piece.encode(_descent(piece.h, piece.order, shape), library, again=True, threads=threads)
    return library, pieces if len(rows) == p.w.shape[0] else {}


def _image(piece: _Piece, direction: Array64, threads: int) -> Array:
    return multiply(piece.state.look_up(direction), piece.h, threads)


def _refit_library(
    pieces: list[_Piece],
    row_weights: list[Array],
    library: NDArray[np.int8],
    first: Encoded | None,
    threads: int,
) -> NDArray[np.int8]:
    """Entries by least squares, a few steps of conjugate gradients; kept if better when rounded to int8."""
    both = list(zip(pieces, row_weights, strict=True))

    def sums(of: Callable[[_Piece], Array]) -> Array64:
        parts = (p.state.sum_entries(of(p) * weight, library.shape, threads) for p, weight in both)
        return sum(parts, np.zeros(library.shape))

    def loss(entries: NDArray[Any]) -> float:
        errors = ((p, weight, p.w - p.state.look_up(entries)) for p, weight in both)
        return sum(float(np.vdot(multiply(e, p.h, threads) * weight, e)) for p, weight, e in errors)

    entries = library.astype(np.float64)
    rest = sums(lambda p: multiply(p.w - p.state.look_up(library), p.h, threads))
    diagonal = sums(
        lambda p: np.repeat(p.state.d.astype(np.float32), p.state.shape.sb, axis=1) * np.diag(p.h)
    )
    ridge = 1e-3 * diagonal.mean()
    precondition = 1.0 / (diagonal + ridge)
    direction = precondition * rest
    size = float(np.vdot(rest, direction))
    for _ in range(CG_STEPS[library.shape[1]]):
        if size <= 0.0:
            break
        image = partial(_image, direction=direction, threads=threads)
        moved = sums(image) + ridge * direction
        step = size / float(np.vdot(direction, moved))
        entries += step * direction
        rest -= step * moved
        z = precondition * rest
        last, size = size, float(np.vdot(rest, z))
        direction = z + size / last * direction
    rounded = np.rint(entries)
    for m in (piece.state for piece in pieces):
        if m.first:  # no code may be left with a sum that an int8 does not hold
            rounded = np.clip(rounded, *limits(m.codes, m.first, m.shape))
    rounded = np.clip(rounded, -127, 127).astype(np.int8)
    if first:
        rounded = reaching(rounded, first.library)
    return rounded if loss(rounded) < loss(library) else library
