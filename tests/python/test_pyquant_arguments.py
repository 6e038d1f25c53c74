# SPDX-License-Identifier: MIT
"""What pyquant refuses: at the door of its Python functions, and of the C functions themselves."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gguf_tools.errors import LutraError
from gguf_tools.formats.family import CB_FORMATS
from pyquant import encode, learn
from pyquant._native import ffi, native, pointer, thread_count
from pyquant.arguments import Shape
from pyquant.codebook import pack
from pyquant.gptq import Encoded, quantize

try:
    native()
except LutraError as error:
    pytest.skip(str(error), allow_module_level=True)

FORMATS = {f.name: f for f in CB_FORMATS.values()}
CB4 = FORMATS["CB4"]
ROOT = Path(__file__).parents[2]
K = 256
LIBRARY = np.random.default_rng(0).integers(-127, 128, CB4.library_shape).astype(np.int8)
EYE = np.eye(K, dtype=np.float32)


def weights(rows=8, k=K):
    return np.random.default_rng(1).standard_normal((rows, k), dtype=np.float32)


def changed(array, value, at=0):
    """A copy with one element changed."""
    array = array.copy()
    array.reshape(-1)[at] = value
    return array


# ---- Python --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "shape",
    [(0, 1, 256), (7, 1, 256), (4, 0, 256), (4, 3, 256), (4, 1, 0), (4, 1, 100), (4, 1, -256),
     (4, 1, 256, 8), (4, 1, 256, 31), (4, 1, 256, 128), (4, 1, 256, 32, 0), (4, 1, 256, 32, 1025)],
)  # fmt: skip
def test_shapes_that_nobody_knows(shape):
    with pytest.raises(ValueError, match="needed 1 to 6 bits"):
        Shape(*shape)


@pytest.mark.parametrize(
    "importance",
    [np.zeros((0, K)), np.ones((3, K)), np.ones((1, 1, K)), -np.ones(K), np.full(K, np.inf),
     np.full(K, 1e300), changed(np.ones(K), np.nan)],
)  # fmt: skip
def test_importance_that_does_not_fit(importance):
    for call in (
        lambda: learn(weights(), CB4, importance=importance),
        lambda: encode(weights(), LIBRARY, CB4, importance=importance),
    ):
        with pytest.raises(ValueError, match="importance"):
            call()


def test_importance_next_to_nothing_is_none():
    """Its mean is zero in single precision."""
    w, tiny = weights(), changed(np.zeros(K, np.float32), 1e-45)
    assert np.array_equal(encode(w, LIBRARY, CB4, importance=tiny), encode(w, LIBRARY, CB4))


@pytest.mark.parametrize(
    "library",
    [LIBRARY[:100], LIBRARY.astype(np.int16), changed(LIBRARY, -128), changed(LIBRARY, -128, -1)],
)
def test_a_library_that_does_not_fit(library):
    for call in (
        lambda: encode(weights(), library, CB4),
        lambda: quantize(weights(), EYE, CB4, libraries=[library]),
    ):
        with pytest.raises(ValueError, match="library"):
            call()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e9])
def test_weights_are_named_whoever_reads_them(bad):
    w = changed(weights(16), bad, 9 * K + 17)
    for call in (
        lambda: learn(w, CB4),
        lambda: encode(w, LIBRARY, CB4),
        lambda: quantize(w, EYE, CB4),
        lambda: quantize(w, np.stack([EYE, EYE]), CB4, libraries=[LIBRARY]),  # in the second expert's rows
        lambda: quantize(w.astype(np.float64), EYE, CB4),
    ):
        with pytest.raises(ValueError, match="row 9, column 17"):
            call()


@pytest.mark.parametrize(
    ("shape", "cause"),
    [((0, K), "no weights"), ((8, 0), "no weights"), ((8, 200), "multiple of 256"), ((K,), r"\(rows, k\)")],
)
def test_matrices_that_have_no_strips(shape, cause):
    w = np.zeros(shape, np.float32)
    for call in (
        lambda: learn(w, CB4),
        lambda: encode(w, LIBRARY, CB4),
        lambda: quantize(w, EYE, CB4, libraries=[LIBRARY]),
    ):
        with pytest.raises(ValueError, match=cause):
            call()


def test_rows_that_are_not_what_they_said():
    class Rows:
        shape = (8, K)

        def read(self, start, stop):
            return weights(stop - start, 64)

    for call in (lambda: learn(Rows(), CB4), lambda: quantize(Rows(), EYE, CB4)):
        with pytest.raises(ValueError, match=r"have shape \(\d, 64\)"):
            call()


@pytest.mark.parametrize(
    "hessian",
    [np.eye(128), np.zeros((3, K, K)), np.zeros((0, K, K)), np.zeros((2, 2, K, K)), -EYE,
     changed(EYE, np.nan, 5), changed(EYE, np.inf, 5), np.full((K, K), 1e300),
     changed(changed(EYE, 9, 1), 9, K)],
)  # fmt: skip
def test_a_hessian_that_is_none(hessian):
    with pytest.raises(ValueError, match="Hessian"):
        quantize(weights(), hessian, CB4, libraries=[LIBRARY])


@pytest.mark.parametrize("scale", [1e-45, 1e-38, 1e30])
def test_a_hessian_of_any_size(scale):
    """A double, too: what counts is its form."""
    encoded = quantize(weights(), EYE.astype(np.float64) * scale, CB4)
    assert np.isfinite(encoded.loss).all()
    assert 0 < encoded.loss[-1] < 0.01


@pytest.mark.parametrize(
    "bad",
    [np.ones(3), np.zeros(16), -np.ones(16), np.full(16, np.nan), np.full(16, 1e-45), np.full(16, 1e37)],
)
def test_row_weights_that_do_not_fit(bad):
    with pytest.raises(ValueError, match="row weights"):
        quantize(weights(16), EYE, CB4, row_weight=bad.astype(np.float32))


def test_members_without_gptq():
    for change in ({"bits": 5}, {"bits": 3, "pair": 2}, {"bits": 2}):
        with pytest.raises(ValueError, match="against a Hessian"):
            quantize(weights(), EYE, dataclasses.replace(CB4, **change))


def test_threads_and_rounds():
    for threads in (0, -1):
        with pytest.raises(ValueError, match="threads"):
            quantize(weights(), EYE, CB4, threads=threads)
    with pytest.raises(ValueError, match="rounds"):
        quantize(weights(), EYE, CB4, rounds=-1)


CODES = np.zeros((8, K), np.uint8), np.zeros((8, K // 32), np.uint16), np.ones((8, 1), np.float16)


@pytest.mark.parametrize(
    ("part", "bad", "cause"),
    [
        (0, changed(CODES[0], 16), "code"),
        (0, CODES[0].astype(np.int64), "codes int64"),
        (0, CODES[0][:, :128], "multiple of 256"),
        (0, CODES[0].reshape(-1), "codes"),
        (1, changed(CODES[1], 256), "selector"),
        (1, CODES[1].astype(np.uint8), "selectors uint8"),
        (1, CODES[1][:, :4], "selectors"),
        (2, CODES[2].astype(np.float32), "d float32"),
        (2, CODES[2][:7], "d"),
    ],
)
def test_codes_that_do_not_exist(part, bad, cause):
    codes = [*CODES[:part], bad, *CODES[part + 1 :]]
    with pytest.raises(ValueError, match=cause):
        pack(*codes, CB4)
    with pytest.raises(ValueError, match=cause):
        Encoded(CB4, *codes, LIBRARY, [], 1.0).layers()


def test_rows_that_are_no_strips():
    for call in (lambda: pack(*(part[:7] for part in CODES), CB4), lambda: encode(weights(7), LIBRARY, CB4)):
        with pytest.raises(ValueError, match="multiple of 8"):
            call()


@pytest.mark.parametrize(
    ("array", "ctype"),
    [(np.zeros(4), "float"), (np.zeros(4, np.int64), "uint16_t"), (np.zeros((4, 4), np.float32).T, "float")],
)
def test_arrays_of_another_type_or_order_are_no_pointers(array, ctype):
    with pytest.raises(ValueError, match=ctype):
        pointer(array, ctype)


def test_it_needs_nothing_of_lutra():
    loaded = "import sys, pyquant.gptq; print(any(name.split('.')[0] == 'lutra' for name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "False\n", done.stderr


def test_it_says_where_its_library_would_be(tmp_path, monkeypatch):
    monkeypatch.setenv("LUTRA_LIB_DIR", str(tmp_path))
    native.cache_clear()
    with pytest.raises(LutraError, match=rf"{tmp_path}/liblutra_quant\.so: not built"):
        native()
    native.cache_clear()


def test_threads_of_a_machine_without_affinity(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert thread_count(None) == os.cpu_count()


# ---- C -------------------------------------------------------------------------------------

MATRIX = {"shape": (4, 1, 32, 256, 256), "rows": 8, "k": K}
COLUMNS = {"form": 32, "factor": 32, "weight": 2, "inverse": 32}
FORM = np.zeros(1, [(name, "f4", (32, n)) for name, n in COLUMNS.items()])
FORM["form"] = FORM["factor"] = FORM["inverse"] = np.eye(32)
FORM["weight"][..., 0] = 1
FORMS = np.repeat(FORM, K // 32)
FIRST = np.zeros((8, K), np.int8)
CTYPES = {"f4": "float", "f8": "double", "i1": "int8_t", "u1": "uint8_t", "u2": "uint16_t", "f2": "uint16_t"}


def out(kind, size):
    return np.zeros(size, kind)


def valid(function):
    """Arguments that it takes, by name and in order."""
    codes, selectors, d = (part.copy() for part in CODES)
    return {
        "lutra_learner_new": {
            "shape": MATRIX["shape"], "blocks": 8, "w": weights(), "importance": np.ones((8, K), np.float32),
            "learner": ffi.new("struct lutra_learner **"),
        },
        "lutra_learner_step": {
            "learner": None, "first": 0, "blocks": 8, "scales": True, "memory": 0.5, "revive": 0.5,
            "candidates": 1, "threads": 1, "library": LIBRARY.copy(), "error": out("f8", 1),
        },
        "lutra_encode": MATRIX | {
            "w": weights(), "importance": np.ones(K, np.float32), "library": LIBRARY, "candidates": 1,
            "threads": 1, "codes": codes, "selectors": selectors, "d": d, "error": out("f8", 1),
        },
        "lutra_pack": MATRIX | {
            "codes": codes, "selectors": selectors, "d": d, "threads": 1,
            "strips": out("u1", 8 * CB4.row_bytes(K)),
        },
        "lutra_layer_learn": MATRIX | {
            "w": weights(), "importance": np.ones((8, K), np.float32), "first": FIRST,
            "selectors": selectors, "d": d, "threads": 1, "library": LIBRARY.copy(),
        },
        "lutra_layer_encode": MATRIX | {
            "w": weights(), "importance": np.ones(K, np.float32), "first": FIRST, "selectors": selectors,
            "d": d, "library": LIBRARY, "threads": 1, "codes": codes, "error": out("f8", 1),
        },
        "lutra_pack_second": MATRIX | {"codes": codes, "threads": 1, "second": out("u1", 8 * K // 2)},
        "lutra_gptq": MATRIX | {
            "w": weights(), "first": ffi.NULL, "forms": FORMS, "coupling": EYE, "library": LIBRARY,
            "d": np.ones((8, K // 32), np.float32), "again": True, "threads": 1, "codes": codes,
            "selectors": selectors, "loss": out("f8", 8),
        },
        "lutra_look_up": MATRIX | {
            "entries": LIBRARY.astype(np.float32), "codes": codes, "selectors": selectors,
            "d": d.astype(np.float32), "w": out("f4", (8, K)),
        },
        "lutra_sum_entries": MATRIX | {
            "x": weights(), "codes": codes, "selectors": selectors, "d": d.astype(np.float32),
            "sums": out("f8", LIBRARY.shape),
        },
    }[function]  # fmt: skip


def status(function, **changes):
    """What it answers to valid arguments but for ``changes``."""
    given = valid(function) | changes
    sample = valid("lutra_learner_new")  # which a learner reads from later
    if function == "lutra_learner_step":
        assert native().lutra_learner_new(*map(_as_c, sample.values())) == native().LUTRA_DONE
        given["learner"] = sample["learner"][0]
    answer = getattr(native(), function)(*map(_as_c, given.values()))
    native().lutra_learner_free(sample["learner"][0])
    if function == "lutra_learner_new":
        native().lutra_learner_free(given["learner"][0])
    return answer


def _as_c(value):
    if isinstance(value, tuple):
        return ffi.new("struct lutra_shape *", value)
    if not isinstance(value, np.ndarray):
        return value
    ctype = "struct lutra_group_form" if value.dtype.fields else CTYPES[value.dtype.str[1:]]
    return ffi.from_buffer(f"{ctype}[]", value)


OF_MATRICES = [
    "lutra_encode", "lutra_layer_learn", "lutra_layer_encode", "lutra_pack", "lutra_pack_second",
    "lutra_gptq", "lutra_look_up", "lutra_sum_entries",
]  # fmt: skip
FUNCTIONS = ["lutra_learner_new", "lutra_learner_step", *OF_MATRICES]


@pytest.mark.parametrize("function", FUNCTIONS)
def test_what_is_valid_is_done(function):
    assert status(function) == native().LUTRA_DONE


@pytest.mark.parametrize("function", ["lutra_learner_new", *OF_MATRICES])
@pytest.mark.parametrize(
    "shape",
    [(0, 1, 32, 256, 256), (7, 1, 32, 256, 256), (4, 0, 32, 256, 256), (4, 3, 32, 256, 256),
     (4, 1, 8, 256, 256), (4, 1, 48, 256, 96), (4, 1, 32, 0, 256), (4, 1, 32, 1025, 256), (4, 1, 32, -1, 256),
     (4, 1, 32, 256, 0), (4, 1, 32, 256, 16), (4, 1, 32, 256, 100), (4, 1, 32, 256, -256)],
)  # fmt: skip
def test_shapes_are_refused(function, shape):
    assert status(function, shape=shape) == native().LUTRA_REFUSED


@pytest.mark.parametrize("function", OF_MATRICES)
@pytest.mark.parametrize(
    "size", [{"k": 200}, {"k": 0}, {"k": -256}, {"rows": 0}, {"rows": -8}, {"rows": 1 << 60}, {"k": 1 << 62}]
)
def test_sizes_are_refused(function, size):
    assert status(function, **size) == native().LUTRA_REFUSED


GPTQ_SHAPES = [
    (5, 1, 32, 256, 256), (2, 1, 32, 256, 256), (3, 2, 32, 256, 256), (4, 1, 16, 256, 256),
    (4, 1, 64, 256, 256), (4, 1, 32, 31, 256), (4, 1, 32, 1, 256),
]  # fmt: skip
REFUSED = [
    *(("lutra_learner_new", {"w": changed(weights(), x, -1)}) for x in (np.nan, np.inf, -1e9)),
    *(
        ("lutra_learner_new", {"importance": changed(np.ones((8, K), np.float32), x)})
        for x in (np.nan, np.inf, -1, 0)
    ),
    ("lutra_learner_new", {"blocks": 0}),
    ("lutra_learner_step", {"library": changed(LIBRARY, -128)}),
    ("lutra_learner_step", {"library": changed(LIBRARY, -128, -1)}),
    *(("lutra_learner_step", {"first": first}) for first in (-1, 1, 8)),
    *(("lutra_learner_step", {"blocks": blocks}) for blocks in (0, -1, 9)),
    *(("lutra_learner_step", {name: x}) for name in ("memory", "revive") for x in (np.nan, -1.0, 2.0)),
    ("lutra_learner_step", {"candidates": -1}),
    ("lutra_encode", {"library": changed(LIBRARY, -128)}),
    ("lutra_encode", {"candidates": -1}),
    *(("lutra_encode", {"w": changed(weights(), x, -1)}) for x in (np.nan, np.inf, -1e9)),
    *(
        ("lutra_encode", {"importance": changed(np.ones(K, np.float32), x)})
        for x in (np.nan, np.inf, -1, 0, 1e31)
    ),
    *(
        (function, {"codes": changed(CODES[0], 16, -1)})
        for function in (
            "lutra_pack", "lutra_pack_second", "lutra_gptq", "lutra_look_up", "lutra_sum_entries"
        )
    ),
    *(
        (function, {"selectors": changed(CODES[1], 256, -1)})
        for function in (
            "lutra_layer_learn", "lutra_layer_encode", "lutra_pack", "lutra_gptq", "lutra_look_up",
            "lutra_sum_entries",
        )
    ),
    *(
        (function, change)
        for function in ("lutra_layer_learn", "lutra_layer_encode")
        for change in (
            {"w": changed(weights(), np.nan, -1)},
            {"first": changed(FIRST, -128, -1)},
            {"d": changed(CODES[2], np.inf, -1)},
        )
    ),
    ("lutra_layer_encode", {"library": changed(LIBRARY, -128)}),
    # Entries to which a table has nothing to add.
    *(
        (function, {"first": FIRST + 127, "library": np.maximum(LIBRARY, 1)})
        for function in ("lutra_layer_encode", "lutra_gptq")
    ),
    ("lutra_gptq", {"first": changed(FIRST, -128)}),
    ("lutra_gptq", {"first": FIRST, "again": False, "selectors": changed(CODES[1], 256, -1)}),
    ("lutra_pack_second", {"rows": 7}),
    *(
        ("lutra_pack", change)
        for change in (
            {"rows": 7},
            {"shape": (4, 1, 32, 300, 256)},
            {"shape": (4, 1, 32, 256, 32)},
            {"shape": (4, 1, 64, 256, 256)},
        )
    ),
    *(("lutra_gptq", {"shape": shape}) for shape in GPTQ_SHAPES),
    ("lutra_gptq", {"library": changed(LIBRARY, -128)}),
    *(("lutra_gptq", {"w": changed(weights(), x)}) for x in (np.nan, np.inf, 1e9)),
    *(("lutra_gptq", {"coupling": changed(EYE, x, -1)}) for x in (np.nan, np.inf)),
    *(("lutra_gptq", {"d": changed(np.ones((8, 8), np.float32), x)}) for x in (np.nan, np.inf, -1)),
]  # fmt: skip


@pytest.mark.parametrize(("function", "change"), REFUSED)
def test_values_are_refused(function, change):
    assert status(function, **change) == native().LUTRA_REFUSED


def test_a_second_layer_of_any_shape_is_encoded():
    for bits, pair in ((1, 1), (6, 2)):
        library = np.zeros(256 * (pair << bits), np.int8)
        codes, forms = np.zeros((8, K // pair), np.uint8), FORMS.copy()
        forms["weight"] = np.eye(pair, 2)[np.arange(32) % pair]
        answer = status(
            "lutra_gptq",
            shape=(bits, pair, 32, 256, 256), first=FIRST, library=library, codes=codes, forms=forms,
        )  # fmt: skip
        assert answer == native().LUTRA_DONE


@pytest.mark.parametrize("field", FORM.dtype.names)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_forms_are_refused(field, value):
    forms = FORMS.copy()
    forms[field][-1, -1, -1] = value
    assert status("lutra_gptq", forms=forms) == native().LUTRA_REFUSED


@pytest.mark.parametrize("value", [0, -1, 1e31])
def test_forms_without_weight_are_refused(value):
    forms = FORMS.copy()
    forms["weight"][-1, -1, 0] = value
    assert status("lutra_gptq", forms=forms) == native().LUTRA_REFUSED


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("scale", [1e30, 3e38])
def test_errors_that_overflow_are_refused(again, scale):
    """Every number is finite, no error is: nothing is chosen by chance, and codes exist all the same."""
    codes, selectors = np.zeros((8, K), np.uint8), np.zeros((8, K // 32), np.uint16)
    if not again:  # then they are only written
        codes[:], selectors[:] = 255, 65535
    coupling = EYE + np.float32(scale) * np.triu(np.ones_like(EYE), 1)
    answer = status("lutra_gptq", coupling=coupling, again=again, codes=codes, selectors=selectors)
    assert answer == native().LUTRA_REFUSED
    assert codes.max() < 16
    assert selectors.max() < 256
