"""Encoding a matrix against the Hessian of its inputs: error feedback, then descent.

What a matrix W does to its inputs X (tokens, k) is changed by ``(Q - W) X^T``, whose squared size is
``sum over rows of e H e^T`` with e = w - q and the Hessian H = X^T X / tokens. Weights are rounded group by
group; the error of a group moves the targets of the groups that follow, as in GPTQ and LDLQ. Then rounds of
descent: libraries and scales by least squares, selectors and codes group by group given all others.

Weights are visited in order of their input's energy, group after group, largest first; the two weights of
a pair are neighbours in that order. Only the order of work changes, not the place of a weight.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from gguf_tools.types import GROUP, CBFormat
from pyquant._native import ffi, native, pointer, thread_count
from pyquant.codebook import Shape, encode_shape, learn_shape, pack

DAMPING = 0.01  # of the Hessian's mean diagonal: what the calibration text does not show still counts
SLICE = 256  # rows per call of BLAS
CG_STEPS = 5  # of conjugate gradients per refit of a library
ROUNDS = 1

Array = NDArray[np.float32]

_GROUP_FORM = np.dtype(
    [
        ("form", "f4", (GROUP, GROUP)),
        ("feedback", "f4", (GROUP, GROUP)),
        ("weight", "f4", (GROUP, 2)),
        ("inverse", "f4", (GROUP, GROUP)),
    ]
)


@dataclass
class Encoded:
    """A matrix as codes, selectors, scales and library; ``loss`` after each step, relative to W H W^T."""

    fmt: CBFormat
    codes: NDArray[np.uint8]
    selectors: NDArray[np.uint16]
    d: NDArray[np.float16]
    library: NDArray[np.int8]
    loss: list[float] = field(default_factory=list)

    def weights(self) -> Array:
        """What it stands for, float32 (n, k)."""
        return look_up(self, self.library.astype(np.float32))

    def strips(self, threads: int | None = None) -> NDArray[np.uint8]:
        """The bytes of the tensor but for its library."""
        return pack(self.codes, self.selectors, self.d, self.fmt, threads=threads)


@threadpool_limits.wrap(limits=1, user_api="blas")
def quantize(
    w: Array,
    hessian: Array,
    fmt: CBFormat,
    *,
    rounds: int = ROUNDS,
    seed: int = 0,
    threads: int | None = None,
) -> Encoded:
    """The matrix ``w`` (n, k) in ``fmt``, close under ``hessian`` (k, k).

    The result does not depend on ``threads``. Raises ValueError as ``learn`` does, and for a Hessian that is
    not finite or of another size.
    """
    k = w.shape[1]
    if hessian.shape != (k, k) or not np.isfinite(hessian).all():
        raise ValueError(f"Hessian of shape {hessian.shape} for {k} columns, or not finite")
    shape, threads = Shape.of(fmt), thread_count(threads)
    h = hessian.astype(np.float64)
    mean = float(np.trace(h)) / k or 1.0
    h = h / mean + DAMPING * np.eye(k)
    h32 = h.astype(np.float32)
    importance = np.ascontiguousarray(np.diag(h32))
    library = learn_shape(w, shape, importance=importance, seed=seed, threads=threads)
    codes, selectors, d, _ = encode_shape(w, library, shape, importance=importance, threads=threads)
    result = Encoded(fmt, codes, selectors, d, library)

    order = Order.by_energy(importance, shape)
    scale = float(np.vdot(multiply(w, h32, threads), w)) or 1.0

    def note() -> None:
        e = w - result.weights()
        result.loss.append(float(np.vdot(multiply(e, h32, threads), e)) / scale)

    note()
    work = order.columns(w)
    h = h[np.ix_(order.weights, order.weights)]
    _pass(result, work, order, *_forward(h, shape), again=False, threads=threads)
    note()
    forms, coupling = _descent(h, shape)
    for _ in range(rounds):
        _refit_library(result, w, h32, threads)
        _refit_scales(result, w, h32, threads)
        _pass(result, work, order, forms, coupling, again=True, threads=threads)
        note()
    return result


# ---- matrices, the same bits for any number of threads -------------------------------------


def slices(n: int, task: Callable[[slice], object], threads: int) -> list:
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

    def columns(self, w: Array) -> Array:
        """The columns of a matrix in this order."""
        return np.ascontiguousarray(w[:, self.weights])

    def apply(self, codes: NDArray[np.uint8], selectors: NDArray[np.uint16]) -> tuple:
        """Codes and selectors in this order."""
        by_group = codes.reshape(len(codes), *self.points.shape)
        by_group = np.take_along_axis(by_group, self.points[None], axis=2)[:, self.groups]
        return np.ascontiguousarray(by_group), np.ascontiguousarray(selectors[:, self.groups])

    def undo(self, codes: NDArray[np.uint8], selectors: NDArray[np.uint16]) -> tuple:
        """Codes and selectors back in their places."""
        by_group, places = np.empty_like(codes), np.empty_like(selectors)
        by_group[:, self.groups], places[:, self.groups] = codes, selectors
        by_group = np.take_along_axis(by_group, np.argsort(self.points, axis=1)[None], axis=2)
        return np.ascontiguousarray(by_group.reshape(len(codes), -1)), places


# ---- what the passes need of the Hessian ---------------------------------------------------


def _factor(h: NDArray[np.float64], pair: int) -> tuple:
    """h = U U^T = A D A^T, batched: U upper and A unit upper triangular, D in rows of blocks (k, pair)."""
    k = h.shape[-1]
    u = np.linalg.cholesky(h[..., ::-1, ::-1])[..., ::-1, ::-1]
    n = np.arange(k // pair)
    blocks = u.reshape(*u.shape[:-2], k // pair, pair, k // pair, pair)[..., n, :, n, :]
    blocks = np.moveaxis(blocks, 0, -3)
    columns = u.reshape(*u.shape[:-1], k // pair, pair)
    a = np.einsum("...rnc,...ncd->...rnd", columns, np.linalg.inv(blocks)).reshape(u.shape)
    d = (blocks @ np.swapaxes(blocks, -1, -2)).reshape(*u.shape[:-2], k, pair)
    return u, a, d


def _diagonal(m: NDArray[np.float64]) -> NDArray[np.float64]:
    """The blocks of the groups on the diagonal."""
    n = np.arange(len(m) // GROUP)
    return m.reshape(len(n), GROUP, len(n), GROUP)[n, :, n, :]


def _group_forms(form: NDArray, feedback: NDArray, weight: NDArray, inverse: NDArray) -> NDArray:
    forms = np.zeros(len(form), _GROUP_FORM)
    forms["form"], forms["feedback"], forms["inverse"] = form, feedback, inverse
    forms["weight"][..., : weight.shape[-1]] = weight.reshape(len(form), GROUP, -1)
    return forms


def _forward(h: NDArray[np.float64], shape: Shape) -> tuple[NDArray, Array]:
    """For the first pass: the error of a group, later ones having the chance to make up for it."""
    u, a, d = _factor(h, shape.pair)
    u, within = _diagonal(u), _diagonal(a)
    forms = _group_forms(u @ u.transpose(0, 2, 1), within, d, np.linalg.inv(within))
    return forms, np.ascontiguousarray(a, np.float32)


def _descent(h: NDArray[np.float64], shape: Shape) -> tuple[NDArray, Array]:
    """For passes that change a group given all others."""
    own = _diagonal(h)
    _, a, d = _factor(own, shape.pair)
    return _group_forms(own, a, d, np.linalg.inv(own)), np.ascontiguousarray(h, np.float32)


# ---- steps ---------------------------------------------------------------------------------


def _pass(
    m: Encoded, work: Array, order: Order, forms: NDArray, coupling: Array, *, again: bool, threads: int
) -> None:
    n, k = work.shape
    shape = Shape.of(m.fmt)
    d = np.repeat(m.d.astype(np.float32), shape.sb // GROUP, axis=1)[:, order.groups]
    codes, selectors = order.apply(m.codes, m.selectors)
    if not native().lutra_feedback(
        shape.native(), n, k, pointer(work, "float"), ffi.from_buffer("struct lutra_group_form[]", forms),
        pointer(coupling, "float"), pointer(m.library, "int8_t"), pointer(np.ascontiguousarray(d), "float"),
        again, threads, pointer(codes, "uint8_t"), pointer(selectors, "uint16_t"),
    ):  # fmt: skip
        raise MemoryError(f"encoding {work.size} weights")
    m.codes, m.selectors = order.undo(codes, selectors)


def look_up(m: Encoded, entries: NDArray, d: NDArray | None = None) -> Array:
    """The weights if ``entries`` were the library (and ``d`` the scales), float32 (n, k)."""
    shape = Shape.of(m.fmt)
    n, k = len(m.codes), m.codes.shape[1] * shape.pair
    w = np.empty((n, k), np.float32)
    entries = np.ascontiguousarray(entries, np.float32)
    scales = np.ascontiguousarray(m.d if d is None else d, np.float32)
    native().lutra_look_up(
        shape.native(), n, k, pointer(entries, "float"), pointer(m.codes, "uint8_t"),
        pointer(m.selectors, "uint16_t"), pointer(scales, "float"), pointer(w, "float"),
    )  # fmt: skip
    return w


def _sum_entries(m: Encoded, x: Array, threads: int) -> NDArray[np.float64]:
    """The transpose of ``look_up``: what every entry gets of x (n, k)."""
    shape = Shape.of(m.fmt)
    scales = m.d.astype(np.float32)

    def part(rows: slice) -> NDArray[np.float64]:
        sums = np.zeros(m.library.shape)
        native().lutra_sum_entries(
            shape.native(), len(x[rows]), x.shape[1], pointer(x[rows], "float"),
            pointer(m.codes[rows], "uint8_t"), pointer(m.selectors[rows], "uint16_t"),
            pointer(scales[rows], "float"), pointer(sums, "double"),
        )  # fmt: skip
        return sums

    return sum(slices(len(x), part, threads))


def _refit_library(m: Encoded, w: Array, h: Array, threads: int) -> None:
    """Entries by least squares, a few steps of conjugate gradients; kept if better when rounded to int8."""
    entries = m.library.astype(np.float64)
    e = w - look_up(m, entries)
    eh = multiply(e, h, threads)
    before = float(np.vdot(eh, e))
    rest = _sum_entries(m, eh, threads)
    spread = np.repeat(m.d.astype(np.float32), m.fmt.sb, axis=1) * np.diag(h)
    diagonal = _sum_entries(m, spread, threads)
    ridge = 1e-3 * diagonal.mean()
    precondition = 1.0 / (diagonal + ridge)
    direction = precondition * rest
    size = float(np.vdot(rest, direction))
    for _ in range(CG_STEPS):
        if size <= 0.0:
            return
        image = _sum_entries(m, multiply(look_up(m, direction), h, threads), threads) + ridge * direction
        step = size / float(np.vdot(direction, image))
        entries += step * direction
        rest -= step * image
        z = precondition * rest
        last, size = size, float(np.vdot(rest, z))
        direction = z + size / last * direction
    library = np.clip(np.rint(entries), -127, 127).astype(np.int8)
    e = w - look_up(m, library)
    if float(np.vdot(multiply(e, h, threads), e)) < before:
        m.library = library


def _refit_scales(m: Encoded, w: Array, h: Array, threads: int) -> None:
    """The scales of each row by least squares; those that would vanish stay as they are."""
    n, k = w.shape
    blocks = k // m.fmt.sb
    q = look_up(m, m.library, np.ones(m.d.shape, np.float32))
    left = np.empty((n, blocks, blocks))
    right = (multiply(w, h, threads) * q).reshape(n, blocks, -1).sum(axis=2, dtype=np.float64)
    for i in range(blocks):
        columns = slice(i * m.fmt.sb, (i + 1) * m.fmt.sb)
        image = multiply(np.ascontiguousarray(q[:, columns]), h[columns], threads)
        left[:, i] = (image * q).reshape(n, blocks, -1).sum(axis=2, dtype=np.float64)
    left += (1e-9 * np.trace(left, axis1=1, axis2=2)[:, None, None] + 1e-30) * np.eye(blocks)
    d = np.linalg.solve(left, right[..., None])[..., 0]
    d16 = np.clip(d, 0.0, 65504.0).astype(np.float16)
    m.d = np.where(d16 > 0, d16, m.d)
