# SPDX-License-Identifier: MIT
"""Golden vectors: the numpy reference and the C reference both reproduce them, bit for bit."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import cffi
import numpy as np
import pytest
from make_golden import GOLDEN, MEMBERS, ROWS, VERIFY, columns_of, make, verify_words

from gguf_tools.errors import LutraError
from gguf_tools.formats import codebook, strip
from gguf_tools.formats import family as types
from lutra.runtime.paths import lib_path

HEADER = Path(__file__).parents[2] / "cpu_kernels" / "formats" / "cb.h"
members = pytest.mark.parametrize("fmt", MEMBERS, ids=lambda f: f.name)


def golden(fmt):
    with np.load(GOLDEN / f"{fmt.name.lower()}.npz") as arrays:
        return dict(arrays)


def same_bits(a, b):
    """Equal bit for bit, but any NaN is as good as another."""
    a, b = np.asarray(a), np.asarray(b)
    assert a.dtype == b.dtype
    if a.dtype.kind != "f":
        return np.array_equal(a, b)
    nan = np.isnan(a)
    return np.array_equal(nan, np.isnan(b)) and np.where(nan, 0, a).tobytes() == np.where(nan, 0, b).tobytes()


# ---- numpy -----------------------------------------------------------------------------------


@members
def test_numpy_reproduces_golden(fmt):
    expected, made = golden(fmt), make(fmt)
    assert expected.keys() == made.keys()
    for name in expected:
        assert same_bits(expected[name], made[name]), name


def test_numpy_reproduces_the_dot_products_of_verify():
    assert json.loads(VERIFY.read_text()) == {f.name: verify_words(f) for f in types.CB_FORMATS.values()}


@members
def test_unpack_inverts_pack(fmt):
    g = golden(fmt)
    codes, selectors, d, library = codebook.unpack(g["data"], ROWS, columns_of(fmt), fmt)
    assert np.array_equal(codes, g["codes"])
    assert np.array_equal(selectors, g["selectors"])
    assert np.array_equal(d.view(np.uint16), g["d"])
    assert np.array_equal(library, g["library"])
    if fmt.second:
        codes, library = codebook.unpack_second(g["data"], ROWS, columns_of(fmt), fmt)
        assert np.array_equal(codes, g["codes2"])
        assert np.array_equal(library, g["library2"])


def second_of(g):
    return (g["codes2"], g["library2"]) if "codes2" in g else None


@members
def test_a_tensor_begins_with_its_first_layer(fmt):
    g = golden(fmt)
    first = dataclasses.replace(fmt, second=None)
    data = codebook.pack(g["codes"], g["selectors"], g["d"].view(np.float16), g["library"], first)
    assert np.array_equal(data, g["data"][: len(data)])


def test_cb3_table_index_needs_no_shift():
    """Lane vectors 0 to 5 of CB3 are nibbles in which one bit does not matter; 6 and 7 are that bit."""
    rng = np.random.default_rng(0)
    fmt = next(f for f in MEMBERS if f.name == "CB3_64")
    codes = rng.integers(0, 8, (8, 64), np.uint8)
    data = codebook.pack(
        codes,
        np.zeros((8, 2), np.uint8),
        np.ones((8, 1), np.float16),
        np.zeros(fmt.library_shape, np.int8),
        fmt,
    )
    v0, v1, v2 = data[32:80].reshape(3, 16)
    nibble = (v0 & 0x11) | (v1 & 0x22) | (v2 & 0x44)
    row0, row1 = codes[0].reshape(4, 16), codes[1].reshape(4, 16)
    assert np.array_equal((v0 & 15) >> 1, row0[0])
    assert np.array_equal((v0 >> 4) >> 1, row0[1])
    assert np.array_equal((v1 & 1) | (v1 & 12) >> 1, row0[2])
    assert np.array_equal((v2 & 3) | (v2 & 8) >> 1, row1[0])
    assert np.array_equal(nibble & 15, row1[2])
    assert np.array_equal(nibble >> 4, row1[3])


def test_fma_rounds_once():
    """Against exact rational arithmetic, on operands made to hit ties of the second rounding."""
    from fractions import Fraction

    def to_f32(x: Fraction) -> np.float32:
        if x == 0:
            return np.float32(0)
        exponent = 0
        while abs(x) >= Fraction(2) ** (exponent + 1):
            exponent += 1
        while abs(x) < Fraction(2) ** exponent:
            exponent -= 1
        unit = Fraction(2) ** (exponent - 23)
        return np.float32(float(round(x / unit) * unit))  # round() is half to even

    rng = np.random.default_rng(0)
    a = (1 + rng.integers(0, 1 << 23, 4000) / 2.0**23).astype(np.float32)
    b = rng.integers(-(1 << 22), 1 << 22, 4000).astype(np.float32)
    c = (rng.standard_normal(4000) * 2.0 ** rng.integers(-40, 40, 4000)).astype(np.float32)
    # 1 + 2**-24 is a tie of float32; a product 2**-60 away from it is lost in float64
    a = np.append(a, np.float32([1 + 2**-23, 1 - 2**-24, 2**-30]))
    b = np.append(b, np.float32([2**-24, 2**-24, -(2**-30)]))
    c = np.append(c, np.float32([1, 1 + 2**-23, 1 + 2**-23]))
    got = codebook.fma(a, b, c)
    for i in range(len(a)):
        exact = Fraction(float(a[i])) * Fraction(float(b[i])) + Fraction(float(c[i]))
        assert got[i] == to_f32(exact), (a[i], b[i], c[i])
    # what float64 alone gets wrong: a product of 1 + 2**-11 + 2**-24, a tie, and 2**-60 to break it
    a, c = np.float32([1 + 2**-12]), np.float32([2**-60])
    assert codebook.fma(a, a, c)[0] == np.float32(1 + 2**-11 + 2**-23)
    assert np.float32(float(a[0]) ** 2 + 2**-60) == np.float32(1 + 2**-11)


@members
def test_pack_refuses_what_does_not_fit(fmt):
    g = golden(fmt)
    arrays = [g["codes"], g["selectors"], g["d"].view(np.float16), g["library"]]
    with pytest.raises(ValueError, match="multiple of 8 rows"):
        codebook.pack(arrays[0][:7], *arrays[1:], fmt, second_of(g))
    with pytest.raises(ValueError, match="do not fit"):
        codebook.pack(arrays[0], arrays[1][:8], *arrays[2:], fmt, second_of(g))
    with pytest.raises(ValueError, match="bits"):
        codebook.pack(arrays[0] | np.uint8(1 << fmt.bits), *arrays[1:], fmt, second_of(g))
    with pytest.raises(ValueError, match="layers of codes"):
        codebook.pack(*arrays, fmt, None if fmt.second else (arrays[0], arrays[3]))


# ---- the numbers of cb.h ---------------------------------------------------------------------


def test_the_constants_repeat_cb_h():
    text = HEADER.read_text()
    numbers = {name: int(value) for name, value in re.findall(r"LUTRA_(\w+) = (\d+)", text)}
    for name in ("GROUP", "ROWS", "CHUNK", "LANE", "TABLES"):
        assert numbers[name] == getattr(types, name)
    assert int(re.search(r"LUTRA_LAYOUT_VERSION (\d+)", text)[1]) == types.LAYOUT_VERSION


@members
def test_sizes_are_those_of_the_layout(fmt):
    layout = codebook.block_layout(fmt)
    assert layout.bytes == fmt.block_bytes
    second = strip.second(fmt.second.bits, fmt.second.pair, fmt.sb).bits if fmt.second else 0
    assert second == 8 * fmt.second_bytes
    assert (layout.bits + second) / (types.ROWS * fmt.sb) == fmt.bpw
    sizes = {part: layout.shape(part) for part in layout.parts}
    assert sizes["code"] == {"row": 8, "group": fmt.sb // 32, "position": 32 // fmt.pair} | (
        {"bit": fmt.bits} if fmt.bits > 1 else {}
    )
    assert sizes["selector"] == {"row": 8, "group": fmt.sb // 32, "bit": 8}
    assert sizes["d"] == {"row": 8, "bit": 16}


# ---- the C reference -------------------------------------------------------------------------

DECLARATIONS = """
struct lutra_cb_format { const char *name; int32_t type, bits, pair, sb, bits2, pair2; };
struct lutra_weights { const uint8_t *strips, *second; const int8_t *library; };
struct lutra_column { const int8_t *q; const float *d; float *y; };
const struct lutra_cb_format *lutra_cb_format_of_type(int32_t type);
void lutra_cb_pack(const struct lutra_cb_format *f, int64_t k, int64_t n_rows, const uint8_t *codes,
                   const uint8_t *selectors, const uint16_t *d, uint8_t *strips);
void lutra_cb_unpack(const struct lutra_cb_format *f, int64_t k, int64_t n_rows, const uint8_t *strips,
                     uint8_t *codes, uint8_t *selectors, uint16_t *d);
void lutra_cb_quantize_x(int sb, int64_t k, const float *x, int8_t *q, float *d);
void lutra_cb_pack_second(const struct lutra_cb_format *f, int64_t k, int64_t n_rows, const uint8_t *codes,
                          uint8_t *second);
void lutra_cb_unpack_second(const struct lutra_cb_format *f, int64_t k, int64_t n_rows, const uint8_t *second,
                            uint8_t *codes);
void lutra_cb_dequantize(const struct lutra_cb_format *f, int64_t k, const struct lutra_weights *w, int row,
                         float *y);
void lutra_cb_gemv(const struct lutra_cb_format *f, int64_t k, int64_t n_strips,
                   const struct lutra_weights *w, const int8_t *q, const float *d, float *y);
void lutra_cb_gemm(const struct lutra_cb_format *f, int64_t k, int64_t n_strips,
                   const struct lutra_weights *w, int64_t n, const struct lutra_column *columns);
"""

ffi = cffi.FFI()
ffi.cdef(DECLARATIONS)
C_TYPES = {"u1": "uint8_t *", "i1": "int8_t *", "u2": "uint16_t *", "f4": "float *"}


@pytest.fixture(scope="module")
def lib():
    try:
        path = lib_path("ggml-base")
    except LutraError as error:
        pytest.skip(f"the C reference is left out: {error}")
    return ffi.dlopen(str(path))


def pointer(array):
    return ffi.cast(C_TYPES[array.dtype.str[1:]], ffi.from_buffer(array))


@pytest.fixture
def c_format(fmt):
    name = ffi.new("char[]", fmt.name.encode())
    second = [fmt.second.bits, fmt.second.pair] if fmt.second else [0, 0]
    return ffi.new("struct lutra_cb_format *", [name, fmt.type, fmt.bits, fmt.pair, fmt.sb, *second])


def weights_of(parts):
    """Where the parts of a tensor lie, for C."""
    return ffi.new("struct lutra_weights *", [pointer(parts.strips), pointer(parts.second),
                                              ffi.cast("int8_t *", pointer(parts.library))])  # fmt: skip


@members
def test_c_has_the_same_numbers(lib, fmt):
    found = lib.lutra_cb_format_of_type(fmt.type)
    if fmt.type < 0:
        assert found == ffi.NULL
    else:
        assert (found.bits, found.pair, found.sb) == (fmt.bits, fmt.pair, fmt.sb)
        assert (found.bits2, found.pair2) == ((fmt.second.bits, fmt.second.pair) if fmt.second else (0, 0))
        assert ffi.string(found.name).decode() == fmt.name


@members
def test_c_packs_and_unpacks_golden(lib, fmt, c_format):
    g, k = golden(fmt), columns_of(fmt)
    strips = np.full(ROWS // 8 * (k // fmt.sb) * fmt.block_bytes, 0xAA, np.uint8)
    lib.lutra_cb_pack(
        c_format, k, ROWS, pointer(g["codes"]), pointer(g["selectors"]), pointer(g["d"]), pointer(strips)
    )
    assert np.array_equal(strips, g["data"][: len(strips)])
    codes, selectors, d = (np.full_like(g[name], 0xAA) for name in ("codes", "selectors", "d"))
    lib.lutra_cb_unpack(c_format, k, ROWS, pointer(strips), pointer(codes), pointer(selectors), pointer(d))
    assert np.array_equal(codes, g["codes"])
    assert np.array_equal(selectors, g["selectors"])
    assert np.array_equal(d, g["d"])
    if fmt.second:
        second, again = codebook.split(g["data"], fmt).second.copy(), np.full_like(g["codes2"], 0xAA)
        lib.lutra_cb_unpack_second(c_format, k, ROWS, pointer(second), pointer(again))
        assert np.array_equal(again, g["codes2"])
        packed = np.full_like(second, 0xAA)
        lib.lutra_cb_pack_second(c_format, k, ROWS, pointer(again), pointer(packed))
        assert np.array_equal(packed, second)


@members
def test_c_computes_golden(lib, fmt, c_format):
    g, k = golden(fmt), columns_of(fmt)
    parts = codebook.Parts(*(part.copy() for part in codebook.split(g["data"], fmt)))
    w = weights_of(parts)
    weights = np.full((ROWS, k), np.nan, np.float32)
    for row in range(ROWS):
        first = row // 8 * 8
        strip_ = codebook.split(codebook.some_rows(g["data"], k, fmt, first, first + 8), fmt)
        lib.lutra_cb_dequantize(c_format, k, weights_of(strip_), row % 8, pointer(weights[row]))
    assert same_bits(weights, g["weights"])
    q, dx, y = np.full_like(g["q"], 99), np.zeros_like(g["dx"]), np.zeros_like(g["y"])
    for column in range(len(q)):
        x = g["x"][column].copy()
        lib.lutra_cb_quantize_x(fmt.sb, k, pointer(x), pointer(q[column]), pointer(dx[column]))
        arguments = w, pointer(q[column]), pointer(dx[column])
        lib.lutra_cb_gemv(c_format, k, ROWS // 8, *arguments, pointer(y[column]))
    assert np.array_equal(q, g["q"])
    assert same_bits(dx, g["dx"])
    assert same_bits(y, g["y"])
    y_gemm = np.zeros_like(y)
    columns = ffi.new(
        "struct lutra_column[]",
        [[pointer(q[c]), pointer(dx[c]), pointer(y_gemm[c])] for c in range(len(q))],
    )
    lib.lutra_cb_gemm(c_format, k, ROWS // 8, w, len(q), columns)
    assert same_bits(y_gemm, g["y"])
