# SPDX-License-Identifier: MIT
"""The second layer of codes: what it gains, the first one's bytes, sums that an int8 holds."""

from __future__ import annotations

import numpy as np
import pytest

from gguf_tools.errors import LutraError
from gguf_tools.formats import codebook
from gguf_tools.formats.family import CB_FORMATS, CBFormat, Codes, first_layer
from pyquant import _native, encode_layers, in_order, learn, learn_second
from pyquant.arguments import Shape
from pyquant.codebook import encode_shape, learn_shape, look_up
from pyquant.gptq import learn_libraries, quantize
from pyquant.layers import First, encode_layer, learn_layer, limits, reaching

try:
    _native.native()
except LutraError as error:
    pytest.skip(str(error), allow_module_level=True)

LAYERED = {f.name: f for f in CB_FORMATS.values() if f.second}
RNG = np.random.default_rng(1)
W = RNG.standard_normal((128, 512), dtype=np.float32)


def hessian(k=512):
    """Of inputs that lie near an eighth of the dimensions."""
    x = RNG.standard_normal((4 * k, k // 8)) @ RNG.standard_normal((k // 8, k))
    x = (x + RNG.standard_normal(x.shape)).astype(np.float32)
    return x.T @ x / len(x)


def snr(w, error):
    return 10 * np.log10(np.square(w, dtype=np.float64).sum() / error)


def layered(first, second):
    """A member of the family that no file has."""
    return CBFormat("layered", -1, *first, 256, second=Codes(*second))


def data(parts):
    return np.concatenate([part.reshape(-1).view(np.uint8) for part in parts])


def tensor_of(encoded):
    return data(in_order([encoded.layers()], encoded.libraries))


def made(w, fmt, **options):
    """The bytes of a tensor, not calibrated, and of its first layer."""
    libraries = [learn(w, fmt, **options)]
    libraries.append(learn_second(w, libraries[0], fmt, **options))
    strips, second = encode_layers(w, libraries, fmt, **options)
    return data([strips, *libraries, second]), data([strips, libraries[0]])


def largest_sum(tensor, w, fmt):
    """Without the modulus of ``codebook.sums``."""
    codes, selectors, _, library = codebook.unpack(tensor, *w.shape, fmt)
    codes2, library2 = codebook.unpack_second(tensor, *w.shape, fmt)
    sums = codebook.entries(codes, selectors, library).astype(int)
    return np.abs(sums + codebook.entries(codes2, selectors, library2)).max()


# dB that the second layer adds on Gaussian weights; 1 and 7 bits per weight have no type of their own.
@pytest.mark.parametrize(
    ("first", "second", "decibels"),
    [((4, 1), (1, 1), 4.6), ((4, 1), (2, 1), 9.3), ((4, 1), (4, 2), 9.5), ((4, 1), (3, 1), 13.2),
     ((4, 1), (4, 1), 16.3), ((4, 2), (1, 1), 4.3), ((4, 2), (4, 2), 9.3), ((3, 1), (1, 1), 4.6),
     ((1, 1), (1, 1), 3.9), ((5, 2), (5, 2), 11.0)],
)  # fmt: skip
def test_what_a_second_layer_gains(first, second, decibels):
    fmt = layered(first, second)
    tensor, alone = made(W, fmt)
    one = CBFormat("one", -1, *first, 256)
    before, after = (
        np.square(W - codebook.dequantize(t, *W.shape, f), dtype=np.float64).sum()
        for t, f in ((alone, one), (tensor, fmt))
    )
    assert snr(W, after) - snr(W, before) > decibels
    assert largest_sum(tensor, W, fmt) <= 127


@pytest.mark.parametrize("name", LAYERED)
@pytest.mark.parametrize("calibrated", [False, True])
def test_the_first_layer_is_the_older_type(name, calibrated):
    """Its bytes come first and are what that type has, however it was made."""
    fmt, older = LAYERED[name], first_layer(LAYERED[name])
    if calibrated:
        h = hessian()
        tensor, alone = (tensor_of(quantize(W, h, f, threads=2)) for f in (fmt, older))
    else:
        tensor, _ = made(W, fmt)
        library = learn(W, older)
        alone = data([*encode_layers(W, [library], older), library])
    assert np.array_equal(tensor[: len(alone)], alone)
    assert len(tensor) == fmt.tensor_bytes(*W.shape)
    assert largest_sum(tensor, W, fmt) <= 127


@pytest.mark.parametrize("weighted", [False, True])
def test_threads_and_pieces_do_not_matter(weighted):
    fmt = LAYERED["CB6"]
    importance = np.exp(RNG.standard_normal((2, 512))).astype(np.float32) if weighted else None
    libraries = [learn(W, fmt, importance=importance)]
    one, three = (
        learn_second(W, libraries[0], fmt, importance=importance, threads=threads) for threads in (1, 3)
    )
    assert np.array_equal(one, three)
    libraries.append(one)
    whole = encode_layers(W, libraries, fmt, importance=importance, threads=3)
    parts = [
        encode_layers(
            W[i : i + 32], libraries, fmt, importance=importance[i // 64] if weighted else None, threads=1
        )
        for i in range(0, 128, 32)
    ]
    for layer, of_parts in zip(whole, zip(*parts, strict=True), strict=True):
        assert np.array_equal(layer, np.concatenate(of_parts))


def test_a_sample_of_a_large_matrix(monkeypatch):
    """Tables that the sample has no groups of still serve the rest."""
    monkeypatch.setattr("pyquant.codebook.SAMPLE", 8 * 512)
    fmt = LAYERED["CB5"]
    library = learn(W, fmt)
    assert len(np.unique(codebook.unpack(made(W, fmt)[0], *W.shape, fmt)[1][:8])) < 256
    second = learn_second(W, library, fmt)
    assert second.any(axis=(1, 2)).all()
    tensor = data([(parts := encode_layers(W, [library, second], fmt))[0], library, second, parts[1]])
    alone = codebook.dequantize(data([parts[0], library]), *W.shape, first_layer(fmt))
    decoded = codebook.dequantize(tensor, *W.shape, fmt)
    assert np.square(W - decoded).sum() < 0.6 * np.square(W - alone).sum()


def test_importance_lowers_the_weighted_error():
    fmt = LAYERED["CB6"]
    importance = np.exp(2 * RNG.standard_normal(512)).astype(np.float32)
    plain, weighted = (
        codebook.dequantize(made(W, fmt, **options)[0], *W.shape, fmt)
        for options in ({}, {"importance": importance})
    )
    plain, weighted = ((np.square(W - w, dtype=np.float64) * importance).sum() for w in (plain, weighted))
    assert weighted < 0.9 * plain


@pytest.mark.parametrize("pair", [1, 2])
def test_entries_at_the_ends_find_something_to_add(pair):
    """A table that would only push beyond an int8 gets a zero; what codes have used stays within."""
    first = np.zeros((256, 1, 16), np.int8)
    first[:, 0, :2] = 127, -127
    library = np.full((256, pair, 2), 5, np.int8)
    library[1, :, 1] = -5
    fixed = reaching(library, first)
    assert not fixed[0].any(axis=0).all()
    sums = first[:, :, :, None].astype(int) + fixed[:, :, None, :]
    assert (np.abs(sums) <= 127).any(axis=-1).all()
    if pair == 1:
        assert np.array_equal(fixed[1], library[1])


def test_limits_are_those_of_the_codes_in_use():
    shape, second = Shape(4, 1, 256), Shape(4, 2, 256)
    library = learn_shape(W, shape)
    codes, selectors, d, _ = encode_shape(W, library, shape)
    first = First.of(codes, selectors, d, library, shape)
    rest = first.rest(W)
    table = learn_layer(rest, first, library, second)
    codes2, error = encode_layer(rest, first, table, second)
    decoded = look_up(codes2, selectors, d, table, second)
    assert error == pytest.approx(np.square(rest - decoded, dtype=np.float64).sum(), rel=1e-3)
    low, high = limits(codes2, first, second)
    for limit in (low, high):
        entries = np.clip(limit, -127, 127).astype(np.int8)
        sums = first.entries.astype(int) + look_up(codes2, selectors, np.ones(d.shape), entries, second)
        assert np.abs(sums).max() == 127


def test_a_library_that_cannot_be_added_is_refused():
    shape, second = Shape(4, 1, 256), Shape(1, 1, 256)
    first = First(np.zeros((8, 16), np.uint16), np.ones((8, 2), np.float16), np.full((8, 512), 127, np.int8))
    library = np.full((256, 1, 2), 3, np.int8)
    with pytest.raises(ValueError, match="out of range"):
        encode_layer(W[:8], first, library, second)
    assert not encode_layer(W[:8], first, reaching(library, np.full(shape.library_shape, 127, np.int8)),
                            second)[0].all()  # fmt: skip


@pytest.mark.parametrize("name", ["CB5", "CB6_64"])
def test_calibration_pays(name):
    """Of a layered type as of others: every step better, and better than codes chosen weight by weight."""
    fmt, h = LAYERED[name], hessian()
    encoded = quantize(W, h, fmt, threads=2)
    assert encoded.loss == sorted(encoded.loss, reverse=True)
    assert np.array_equal(codebook.dequantize(tensor_of(encoded), *W.shape, fmt), encoded.weights())

    def error(decoded):
        e = (W - decoded).astype(np.float64)
        return ((e @ h) * e).sum()

    plain = codebook.dequantize(made(W, fmt, importance=np.diag(h))[0], *W.shape, fmt)
    assert error(encoded.weights()) < 0.7 * error(plain)


def test_experts_one_by_one_share_both_libraries():
    """As a stack is encoded whose Hessians would take too much memory together."""
    fmt, hessians = LAYERED["CB6"], [hessian(), hessian()]
    libraries = learn_libraries(W, np.stack(hessians), fmt, threads=2)
    each = [quantize(w, h, fmt, libraries=libraries) for w, h in zip(np.split(W, 2), hessians, strict=True)]
    tensor = data(in_order([part.layers() for part in each], libraries))
    decoded = codebook.dequantize(tensor, *W.shape, fmt)
    assert np.array_equal(decoded, np.concatenate([part.weights() for part in each]))
    assert largest_sum(tensor, W, fmt) <= 127
    together = quantize(W, np.stack(hessians), fmt, threads=2)
    assert sum(part.loss[-1] for part in each) < 2 * 1.5 * together.loss[-1]  # refitted to these codes


def test_layers_in_slabs(monkeypatch):
    fmt, h = LAYERED["CB5"], hessian(256)
    w = RNG.standard_normal((512, 256), dtype=np.float32)
    monkeypatch.setattr("pyquant.gptq.SAMPLE", 256 * 256)
    one = tensor_of(quantize(w, h, fmt, threads=2))
    monkeypatch.setattr("pyquant.gptq.SLAB", 200 * 256)
    three = tensor_of(quantize(w, np.stack([h]), fmt, threads=1))
    assert np.array_equal(one, three)
    assert largest_sum(one, w, fmt) <= 127
