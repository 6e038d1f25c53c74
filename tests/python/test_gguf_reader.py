# SPDX-License-Identifier: MIT
"""The GGUF reader: what it reads, what it refuses, and that nothing else ever comes out of it."""

from __future__ import annotations

import random
import struct
import time
from pathlib import Path

import numpy as np
import pytest
from gguf_samples import METADATA, cb_tensor, sample_gguf, write_gguf

from gguf_tools.errors import LutraError
from gguf_tools.formats.family import CB_FORMATS, LAYOUT_VERSION_KEY
from gguf_tools.inspect import check, read_info
from gguf_tools.reader import GGUFFile
from gguf_tools.sources.open import open_source

gguf = pytest.importorskip("gguf")


def header(tensors=0, values=0, body=b"", version=3, magic=b"GGUF"):
    return magic + struct.pack("<IQQ", version, tensors, values) + body


def text(s):
    return struct.pack("<Q", len(s)) + s


def info(name=b"w", dims=(32,), kind=0, offset=0):
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "file.gguf"


def test_metadata_survives_a_round_trip(path):
    file = GGUFFile(sample_gguf(path))
    read = {key: value for key, value in file.metadata.items() if key != "general.alignment"}
    assert read == METADATA
    assert list(read) == list(METADATA)
    assert file.alignment == 64
    assert all(t.offset % 64 == 0 for t in file.tensors.values())


def test_gguf_package_reads_what_we_write(path):
    reader = gguf.GGUFReader(sample_gguf(path))
    assert [t.name for t in reader.tensors] == list(GGUFFile(path).tensors)
    for theirs, ours in zip(reader.tensors, GGUFFile(path).tensors.values(), strict=True):
        assert theirs.data.tobytes() == GGUFFile(path).data(ours).tobytes()
        assert theirs.data_offset == ours.offset
        assert tuple(theirs.shape[::-1]) == ours.shape


def test_we_read_what_gguf_package_writes(path):
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_array("a", [1, 2, 3])
    weights = np.arange(64, dtype=np.float32).reshape(2, 32)
    writer.add_tensor("w", weights)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = GGUFFile(path)
    assert file.architecture == "llama"
    assert file.get("a") == [1, 2, 3]
    assert np.array_equal(file.data(file.tensors["w"]).view(np.float32).reshape(2, 32), weights)


@pytest.mark.parametrize("type_id", CB_FORMATS)
def test_cb_types_are_known(path, type_id):
    fmt = CB_FORMATS[type_id]
    tensor = cb_tensor(type_id, 64, 512 if fmt.sb == 256 else 192)
    info = read_info(write_gguf(path, {"w": tensor}))
    assert info.to_json()["tensors"] == [
        {"name": "w", "type": fmt.name, "shape": list(tensor[1]), "bytes": len(tensor[2])}
    ]
    assert info.bpw == 8 * len(tensor[2]) / np.prod(tensor[1])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty"),
        (b"GG", "not a GGUF"),
        (b"ELF.............", "not a GGUF"),
        (b"GGUF", "beyond the end"),
        (header(version=1), "version 1"),
        (header(version=0x03000000), "big-endian"),
        (header(tensors=1 << 60), "number of tensors"),
        (header(values=(1 << 64) - 1), "number of keys"),
        (header(values=1, body=struct.pack("<Q", 1 << 62) + bytes(64)), "length of key 0"),
        (header(values=1, body=text(b"k") + struct.pack("<I", 77) + bytes(64)), "unknown type 77"),
        (
            header(values=1, body=text(b"k") + struct.pack("<IIQ", 9, 4, 1 << 61) + bytes(64)),
            "length of key 'k'",
        ),
        (
            header(values=1, body=text(b"k") + struct.pack("<IIQ", 9, 8, 1 << 61) + bytes(64)),
            "length of key 'k'",
        ),
        (header(values=1, body=text(b"k") + struct.pack("<IIQ", 9, 9, 1) + bytes(64)), "array of arrays"),
        (header(values=2, body=2 * (text(b"k") + struct.pack("<IB", 0, 1)) + bytes(64)), "occurs twice"),
        (header(1, 1, text(b"general.alignment") + struct.pack("<II", 4, 3) + bytes(64)), "power of two"),
        (header(1, body=info(dims=(0, 8)) + bytes(64)), "no weights"),
        (header(1, body=info(dims=(1,) * 5) + bytes(64)), "5 dimensions"),
        (header(1, body=info(dims=(1 << 63, 1 << 63)) + bytes(64)), "lacks"),
        (header(1, body=info(kind=99) + bytes(64)), "ggml type 99"),
        (header(1, body=info(kind=8, dims=(31, 8)) + bytes(64)), "multiple of 32"),
        (header(1, body=info(kind=404, dims=(256, 7)) + bytes(64)), "8 rows"),
        (header(1, body=info(offset=1) + bytes(256)), "begins at 1"),
        (header(2, body=info() + info(offset=128) + bytes(512)), "'w' occurs twice"),
        (header(1, body=info(name=b"n" * 64) + bytes(256)), "63 bytes"),
        (header(1, body=info() + bytes(64)), "tensor 'w' lacks"),
    ],
)
def test_damage_is_named(path, data, message):
    path.write_bytes(data)
    with pytest.raises(LutraError, match=message) as error:
        GGUFFile(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_file(tmp_path):
    with pytest.raises(LutraError, match="No such file"):
        GGUFFile(tmp_path / "absent.gguf")


@pytest.mark.parametrize("seed", range(4))
def test_mutations_give_only_lutra_errors(tmp_path, seed):
    """Flipped bytes and cuts: the reader, the source, info and verify answer or raise LutraError, soon."""
    rng = random.Random(seed)
    sample = sample_gguf(tmp_path / "sample.gguf").read_bytes()
    cb = write_gguf(
        tmp_path / "cb.gguf",
        {"a.weight": cb_tensor(424, 16, 128), "b.weight": cb_tensor(422, 32, 64)},
        {**METADATA, LAYOUT_VERSION_KEY: gguf.gguf_writer.GGUFValue(1, gguf.GGUFValueType.UINT32)},
    ).read_bytes()
    assert check(tmp_path / "cb.gguf") == []
    path: Path = tmp_path / "mutated.gguf"
    outcomes = {"read": 0, "refused": 0}
    started = time.process_time()
    for _ in range(500):
        data = bytearray(rng.choice([sample, cb]))
        span = rng.choice([64, 700, len(data)])  # favour the header
        for _ in range(rng.choice([1, 1, 2, 8])):
            data[rng.randrange(min(span, len(data)))] = rng.choice(
                [0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)]
            )
        if rng.random() < 0.3:
            del data[rng.randrange(len(data)) :]
        path.write_bytes(data)
        problems = check(path)  # raises nothing, whatever the file
        try:
            read_info(path)
            for tensor in open_source(path).tensors:
                tensor.read()
            outcomes["read"] += 1
        except LutraError as error:
            problems.append(str(error))
            outcomes["refused"] += 1
        assert all("\n" not in problem and len(problem) < 1000 for problem in problems)
    assert min(outcomes.values()) > 10, outcomes
    assert time.process_time() - started < 60
