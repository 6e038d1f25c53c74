# SPDX-License-Identifier: MIT
"""Learning and encoding: quality on Gaussian weights, determinism."""

from __future__ import annotations

import subprocess
import zlib
from pathlib import Path

import numpy as np
import pytest
from sklearn.cluster import KMeans

from gguf_tools.errors import LutraError
from gguf_tools.formats import codebook
from gguf_tools.formats.family import CB_FORMATS
from pyquant import _native, encode, encode_layers, learn, learn_second
from pyquant.arguments import Shape
from pyquant.codebook import decode_shape, encode_shape, learn_shape

try:
    _native.native()
except LutraError as error:
    pytest.skip(str(error), allow_module_level=True)

FORMATS = {f.name: f for f in CB_FORMATS.values()}


def gaussian(rows, k, seed=1):
    return np.random.default_rng(seed).standard_normal((rows, k), dtype=np.float32)


def tensor(w, fmt, importance=None, **options):
    """Learned and encoded, as it lies in a file."""
    libraries = [learn(w, fmt, importance=importance, **options)]
    if fmt.second:
        libraries.append(learn_second(w, libraries[0], fmt, importance=importance))
    strips, *second = encode_layers(w, libraries, fmt, importance=importance)
    return np.concatenate([part.reshape(-1).view(np.uint8) for part in (strips, *libraries, *second)])


def error_of(w, fmt, importance=None, **options):
    """Weighted squared error after learning and encoding, as the reference decoder sees it."""
    decoded = codebook.dequantize(tensor(w, fmt, importance, **options), *w.shape, fmt)
    weight = np.ones(w.shape[1]) if importance is None else importance
    return float((np.square(w - decoded, dtype=np.float64) * weight).sum())


def snr(w, error):
    return 10 * np.log10(np.square(w, dtype=np.float64).sum() / error)


# In-sample on 2.6e5 i.i.d. weights; 0.15 dB below what is measured.
@pytest.mark.parametrize(
    ("name", "decibels"),
    [("CB2", 12.5), ("CB25", 15.7), ("CB3", 17.45), ("CB4", 23.8), ("CB5", 28.6), ("CB6", 33.85),
     ("CB2_64", 12.65), ("CB25_64", 15.9), ("CB3_64", 17.6), ("CB4_64", 24.1), ("CB5_64", 28.75),
     ("CB6_64", 33.95)],
)  # fmt: skip
def test_snr_on_gaussian_weights(name, decibels):
    w = gaussian(256, 1024)
    assert snr(w, error_of(w, FORMATS[name])) > decibels


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5, 6])
@pytest.mark.parametrize("pair", [1, 2])
def test_every_member_of_the_family(bits, pair):
    """More bits, less error: within 3 dB below what the rate-distortion bound promises, and not above it."""
    w = gaussian(128, 512)
    shape = Shape(bits, pair, 256)
    library = learn_shape(w, shape)
    codes, selectors, d, error = encode_shape(w, library, shape)
    decoded = decode_shape(codes, selectors, d, library, shape)
    assert codes.max() < 1 << bits
    assert error == pytest.approx(np.square(w - decoded, dtype=np.float64).sum(), rel=1e-3)
    bpw = bits / pair + 8 / 32 + 16 / 256 + 8 * library.size / w.size
    assert 6.02 * (bits / pair) - 3 < snr(w, error) < 6.02 * bpw


@pytest.mark.parametrize("name", ["CB2", "CB3_64", "CB4"])
def test_pruned_search_costs_little(name):
    """With one library, and with libraries learned by either search (a mean: paths differ by chance)."""
    w = gaussian(256, 1024) * np.exp(0.5 * gaussian(256, 1, seed=2))
    shape = Shape.of(FORMATS[name])
    loss = []
    for seed in range(2):
        library = learn_shape(w, shape, seed=seed, full=True)
        best = snr(w, encode_shape(w, library, shape, full=True)[3])
        assert best - snr(w, encode_shape(w, library, shape)[3]) < 0.05
        loss.append(best - snr(w, encode_shape(w, learn_shape(w, shape, seed=seed), shape)[3]))
    assert np.mean(loss) < 0.05


@pytest.mark.parametrize("name", ["CB2", "CB3", "CB4_64"])
@pytest.mark.parametrize("weighted", [False, True])
def test_threads_and_blocks_do_not_matter(name, weighted):
    fmt = FORMATS[name]
    w = gaussian(64, 512)
    importance = np.square(gaussian(1, 512, seed=3))[0] if weighted else None
    library = learn(w, fmt, importance=importance, threads=1)
    assert np.array_equal(library, learn(w, fmt, importance=importance, threads=3))
    whole = encode(w, library, fmt, importance=importance, threads=3)
    parts = [encode(w[i : i + 8], library, fmt, importance=importance, threads=1) for i in range(0, 64, 8)]
    assert np.array_equal(whole, np.concatenate(parts))


def test_seed_changes_the_library():
    w = gaussian(64, 512)
    assert not np.array_equal(learn(w, FORMATS["CB4"], seed=0), learn(w, FORMATS["CB4"], seed=1))


@pytest.mark.parametrize("name", ["CB2", "CB3", "CB4"])
def test_importance_lowers_the_weighted_error(name):
    w = gaussian(128, 512)
    importance = np.exp(2 * gaussian(1, 512, seed=4))[0]
    library = learn(w, FORMATS[name])
    decoded = codebook.dequantize(
        np.concatenate([encode(w, library, FORMATS[name]), library.view(np.uint8).reshape(-1)]),
        128,
        512,
        FORMATS[name],
    )
    plain = float((np.square(w - decoded, dtype=np.float64) * importance).sum())
    assert error_of(w, FORMATS[name], importance) < 0.9 * plain


def test_importance_per_expert():
    """Each expert's rows are weighted by its own row of the importance."""
    fmt = FORMATS["CB4"]
    w = gaussian(32, 256)
    importance = np.exp(gaussian(2, 256, seed=5))
    library = learn(w, fmt, importance=importance)
    both = encode(w, library, fmt, importance=importance)
    each = [encode(w[16 * e : 16 * e + 16], library, fmt, importance=importance[e]) for e in range(2)]
    assert np.array_equal(both, np.concatenate(each))


@pytest.mark.parametrize("name", [name for name, fmt in FORMATS.items() if not fmt.second])
def test_strips_unpack_to_what_was_encoded(name):
    fmt = FORMATS[name]
    w = gaussian(16, 512)
    library = learn(w, fmt)
    strips = encode(w, library, fmt)
    codes, selectors, d, _ = encode_shape(w, library, Shape.of(fmt))
    data = np.concatenate([strips, library.view(np.uint8).reshape(-1)])
    got_codes, got_selectors, got_d, got_library = codebook.unpack(data, *w.shape, fmt)
    assert np.array_equal(np.asarray(got_codes).reshape(codes.shape), codes)
    assert np.array_equal(np.asarray(got_selectors).reshape(selectors.shape), selectors)
    assert np.array_equal(np.asarray(got_d).view(np.uint16).reshape(d.shape), d.view(np.uint16))
    assert np.array_equal(got_library, library)


def test_one_table_is_as_good_as_kmeans():
    """With a single table and one scale the problem is 1-D k-means, where sklearn is the cross-check."""
    w = gaussian(16, 256)
    w[:, 0] = 4.0  # the largest of every row: all scales are equal
    shape = Shape(3, 1, 256, tables=1)
    error = min(encode_shape(w, learn_shape(w, shape, seed=seed), shape)[3] for seed in range(4))
    assert error < 1.02 * KMeans(8, n_init=4, random_state=0).fit(w.reshape(-1, 1)).inertia_


def test_rows_are_read_in_pieces():
    class Rows:
        shape = (64, 512)

        def read(self, start, stop):
            return gaussian(64, 512)[start:stop]

    assert np.array_equal(learn(Rows(), FORMATS["CB3"]), learn(gaussian(64, 512), FORMATS["CB3"]))


def test_a_sample_is_enough(monkeypatch):
    """A library from a quarter of the rows serves the others nearly as well."""
    w = gaussian(512, 1024)
    shape = Shape.of(FORMATS["CB3"])
    whole = snr(w, encode_shape(w, learn_shape(w, shape), shape)[3])
    monkeypatch.setattr("pyquant.codebook.SAMPLE", w.size // 4)
    assert snr(w, encode_shape(w, learn_shape(w, shape), shape)[3]) > whole - 0.3


def test_progress_adds_up():
    calls = []
    learn(gaussian(64, 512), FORMATS["CB4"], progress=calls.append)
    assert len(calls) > 4
    assert sum(calls) == 64 * 512


@pytest.mark.parametrize(("scale", "decibels"), [(1e-7, 3), (1e-5, 15), (1e-3, 23.5), (1e4, 23.5)])
def test_any_magnitude(scale, decibels):
    """Down to where half precision ends."""
    w = gaussian(64, 256) * np.float32(scale)
    assert snr(w, error_of(w, FORMATS["CB4"])) > decibels


def test_zeros_stay_zero():
    w = gaussian(16, 512)
    w[3] = 0
    library = learn(w, FORMATS["CB2"])
    codes, selectors, d, _ = encode_shape(w, library, Shape.of(FORMATS["CB2"]))
    assert not decode_shape(codes, selectors, d, library, Shape.of(FORMATS["CB2"]))[3].any()
    assert error_of(np.zeros((8, 256), np.float32), FORMATS["CB4"]) == 0


# ---- the library -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("int lutra_quant_abi(void) { return 99; }", r"another version of Lutra \(interface 99, not \d+\)"),
        ("int lutra_find_bad(void) { return 0; }", r"another version of Lutra \(interface 0, not \d+\)"),
        (None, "cannot be loaded"),
    ],
)
def test_a_library_of_other_sources_is_refused(source, words, tmp_path, monkeypatch):
    path = tmp_path / "liblutra_quant.so"
    if source:
        (tmp_path / "other.c").write_text(source)
        subprocess.run(["cc", "-shared", "-fPIC", "-o", path, tmp_path / "other.c"], check=True)
    else:
        path.write_bytes(b"no library")
    monkeypatch.setenv("LUTRA_LIB_DIR", str(tmp_path))
    _native.native.cache_clear()
    with pytest.raises(LutraError, match=rf"liblutra_quant\.so: .*{words}.*; run 'pip install \.'"):
        _native.native()
    _native.native.cache_clear()


def test_another_interface_has_another_number():
    header = (Path(__file__).parents[2] / "pyquant" / "native" / "quant.h").read_text()
    assert f"LUTRA_QUANT_ABI = {_native.ABI} " in header
    # Another sum: the interface has changed. Raise both numbers, and put the new sum here.
    assert (_native.ABI, zlib.crc32(" ".join(_native.INTERFACE.split()).encode())) == (3, 0xD45B4CE1)
