# SPDX-License-Identifier: MIT
"""``gguf_tools.inspect``: sizes as they are, and every defect of a CB tensor found."""

from __future__ import annotations

import numpy as np
import pytest
from gguf import GGUFValueType
from gguf.gguf_writer import GGUFValue
from gguf_samples import F16, F32, METADATA, cb_tensor, sample_gguf, write_gguf

from gguf_tools.formats.family import CB_FORMATS, LAYOUT_VERSION_KEY
from gguf_tools.inspect import check, read_info
from gguf_tools.reader import GGUFFile
from lutra.cli.info import file_json, file_text
from lutra.measure.conformance import checks

VERSIONED = {**METADATA, LAYOUT_VERSION_KEY: GGUFValue(1, GGUFValueType.UINT32)}


def changed(tensor, at, value):
    """The same tensor with the bytes from ``at`` on replaced."""
    type_id, shape, data = tensor
    data = data.copy()
    value = np.frombuffer(value, np.uint8)
    data[at : at + len(value) or None] = value
    return type_id, shape, data


def problems(path, tensor, metadata=VERSIONED):
    return check(write_gguf(path, {"w.weight": tensor}, metadata))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "file.gguf"


def test_info_of_a_float_file(path):
    info = read_info(sample_gguf(path))
    assert info.bytes == path.stat().st_size
    bits = 512 * 16 + 64 * 32 + 256 * 16 + 8 * 34 * 8
    assert info.bpw == bits / (512 + 64 + 256 + 256)
    assert [t["type"] for t in info.to_json()["tensors"]] == ["F16", "F32", "BF16", "Q8_0"]
    assert check(path) == []


def test_info_and_verify_say_that_a_file_is_a_part(path):
    uint16 = GGUFValueType.UINT16
    split = {"split.no": GGUFValue(1, uint16), "split.count": GGUFValue(3, uint16)}
    tensors = {"w.weight": (F32, (2, 8), np.zeros((2, 8), np.float32))}
    info = read_info(write_gguf(path, tensors, {**METADATA, **split}))
    assert info.part == "2 of 3"
    assert file_json(info)["part"] == "2 of 3"
    assert "part           2 of 3: what follows is in this part" in file_text(info)
    with GGUFFile(path) as file:
        assert next(checks(file)) == (f"{path}: part 2 of 3 only, its 1 tensors, sizes and ranges", [])
    for single in ({}, {"split.count": GGUFValue(1, uint16)}):
        whole = read_info(write_gguf(path, tensors, {**METADATA, **single}))
        assert whole.part == ""
        assert "part" not in file_json(whole)


@pytest.mark.parametrize("type_id", CB_FORMATS)
def test_valid_cb(path, type_id):
    assert problems(path, cb_tensor(type_id, 16, 1280 if CB_FORMATS[type_id].sb == 256 else 320)) == []


@pytest.mark.parametrize("bits", [0x7C00, 0xFC00, 0x7E01])
def test_scale_that_is_no_number(path, bits):
    tensor = cb_tensor(404, 16, 512)  # row 10 = strip 1, row 2; super-block 1 of 2
    (found,) = problems(path, changed(tensor, 3 * 1104 + 2 * 2, bits.to_bytes(2, "little")))
    assert "'w.weight' (CB4)" in found
    assert "row 10, super-block 1" in found


def test_one_bit_of_the_codes(path):
    write_gguf(path, {"a.weight": cb_tensor(404, 8, 256), "w.weight": cb_tensor(404, 16, 512)}, VERSIONED)
    data = bytearray(path.read_bytes())
    data[-4096 - 64 - 600] ^= 4  # in the codes of the last strip: valid, but not what was written
    path.write_bytes(data)
    (found,) = check(path)
    assert "'w.weight': the checksum is wrong" in found


def test_scale_too_large(path):
    (found,) = problems(path, changed(cb_tensor(424, 8, 64), 0, np.float16(6e4).tobytes()))
    assert "weights of up to" in found


def test_library(path):
    tensor = cb_tensor(403, 8, 256)
    (found,) = problems(path, changed(tensor, len(tensor[2]) - 1, b"\x80"))
    assert "-128" in found
    (found,) = problems(path, changed(tensor, len(tensor[2]) - 2048, bytes(2048)))
    assert "all zeros" in found


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "no key"),
        (GGUFValue(2, GGUFValueType.UINT32), "is 2"),
        (GGUFValue("1", GGUFValueType.STRING), "is '1'"),
    ],
)
def test_layout_version(path, value, message):
    metadata = dict(METADATA) if value is None else {**METADATA, LAYOUT_VERSION_KEY: value}
    (found,) = problems(path, cb_tensor(404, 8, 256), metadata)
    assert message in found


@pytest.mark.parametrize(("kind", "dtype"), [(F32, np.float32), (F16, np.float16)])
def test_float_weights(path, kind, dtype):
    weights = np.ones((4, 64), dtype)
    weights[3, 63] = np.inf
    (found,) = problems(path, (kind, (4, 64), weights))
    assert "infinity" in found


def test_bytes_after_the_end(path):
    write_gguf(path, {"w.weight": cb_tensor(404, 8, 256)}, VERSIONED)
    path.write_bytes(path.read_bytes() + bytes(100))
    (found,) = check(path)
    assert "bytes follow" in found


def test_truncated_library(path):
    write_gguf(path, {"w.weight": cb_tensor(404, 8, 256)}, VERSIONED)
    data = path.read_bytes()
    path.write_bytes(data[:-65])
    (found,) = check(path)
    assert "'w.weight' lacks" in found
