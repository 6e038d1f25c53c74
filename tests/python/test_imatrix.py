# SPDX-License-Identifier: MIT
"""Reading llama-imatrix files."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from gguf import GGUFWriter

from gguf_tools.errors import LutraError
from gguf_tools.imatrix import read_imatrix

SUMS = np.array([[2.0, 4.0, 6.0]], np.float32)


def write_gguf(path, tensors):
    writer = GGUFWriter(path, "", use_temp_file=False)
    writer.add_type("imatrix")
    for name, data in tensors.items():
        writer.add_tensor(name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def legacy(entries, trailer=b""):
    data = struct.pack("<i", len(entries))
    for name, (calls, values) in entries.items():
        data += struct.pack("<i", len(name)) + name.encode() + struct.pack("<ii", calls, len(values))
        data += np.asarray(values, "<f4").tobytes()
    return data + trailer


def test_gguf(tmp_path):
    path = write_gguf(tmp_path / "i.gguf", {"a.in_sum2": SUMS, "a.counts": np.array([[2.0]], np.float32)})
    assert {name: v.tolist() for name, v in read_imatrix(path).items()} == {"a": [1, 2, 3]}


def test_gguf_with_experts(tmp_path):
    sums, counts = np.ones((2, 3), np.float32) * 8, np.array([[4.0], [0.0]], np.float32)
    read = read_imatrix(write_gguf(tmp_path / "i.gguf", {"e.in_sum2": sums, "e.counts": counts}))["e"]
    assert read.dtype == np.float32
    assert read.tolist() == [[2, 2, 2], [1, 1, 1]]  # no token reached the second expert


@pytest.mark.parametrize("trailer", [b"", struct.pack("<ii", 7, 5) + b"a.txt"])
def test_legacy(tmp_path, trailer):
    path = tmp_path / "i.dat"
    path.write_bytes(legacy({"a": (2, SUMS[0]), "b": (1, [5.0])}, trailer))
    assert {name: v.tolist() for name, v in read_imatrix(path).items()} == {"a": [1, 2, 3], "b": [5]}


def test_every_truncation_of_a_legacy_file_is_refused(tmp_path):
    whole = legacy({"a": (2, SUMS[0]), "b": (1, [5.0])})
    path = tmp_path / "i.dat"
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(LutraError, match=r"i\.dat"):
            read_imatrix(path)


def test_a_truncated_gguf_is_refused(tmp_path):
    path = write_gguf(tmp_path / "i.gguf", {"a.in_sum2": SUMS, "a.counts": np.array([[2.0]], np.float32)})
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(LutraError, match=r"i\.gguf"):
        read_imatrix(path)


@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0])
def test_bad_values_are_refused(tmp_path, value):
    bad = SUMS.copy()
    bad[0, 1] = value
    path = write_gguf(tmp_path / "i.gguf", {"a.in_sum2": bad, "a.counts": np.array([[2.0]], np.float32)})
    with pytest.raises(LutraError, match="a holds NaN"):
        read_imatrix(path)
    path.write_bytes(legacy({"a": (2, bad[0])}))
    with pytest.raises(LutraError, match="a holds NaN"):
        read_imatrix(path)


@pytest.mark.parametrize(
    ("tensors", "cause"),
    [
        ({"a.weight": SUMS}, "no importance matrix"),
        ({"a.in_sum2": SUMS}, "a.counts is missing"),
        ({"a.in_sum2": SUMS, "a.counts": np.ones((2, 1), np.float32)}, "2 counts"),
        ({"a.in_sum2": SUMS.astype(np.float16), "a.counts": np.ones((1, 1), np.float32)}, "not F32"),
    ],
)
def test_wrong_tensors_are_named(tmp_path, tensors, cause):
    with pytest.raises(LutraError, match=cause):
        read_imatrix(write_gguf(tmp_path / "i.gguf", tensors))


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "text"
    path.write_text("This is not an importance matrix, whatever its name says.")
    with pytest.raises(LutraError, match="not an imatrix"):
        read_imatrix(path)
    with pytest.raises(LutraError, match="cannot be read"):
        read_imatrix(tmp_path / "missing")
