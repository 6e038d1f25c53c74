# SPDX-License-Identifier: MIT
"""What is opened is closed: no descriptor, mapping or temporary file outlives its reader."""

from __future__ import annotations

import json

import numpy as np
import pytest
from gguf import GGUFValueType
from gguf.gguf_writer import GGUFValue
from gguf_samples import F32, METADATA, hf_model, sample_gguf, write_gguf
from open_files import held

from gguf_tools.errors import LutraError
from gguf_tools.inspect import check, read_info
from gguf_tools.reader import GGUFFile
from gguf_tools.sources import llama_converter
from gguf_tools.sources.open import open_source


def split_gguf(directory):
    paths = [directory / f"m-{i:05}-of-00002.gguf" for i in (1, 2)]
    for i, path in enumerate(paths):
        split = {"split.count": GGUFValue(2, GGUFValueType.UINT16)}
        tensor = (F32, (2, 8), np.full((2, 8), i, np.float32))
        write_gguf(path, {f"w{i}.weight": tensor}, {**METADATA, **split})
    return paths[0]


def converted(directory, monkeypatch):
    """A model that a stand-in for llama.cpp's converter converts."""
    sample = sample_gguf(directory / "sample.gguf")
    monkeypatch.setattr(llama_converter.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setenv("LUTRA_CONVERTER_DIR", str(directory))
    monkeypatch.chdir(directory)
    (directory / llama_converter.SCRIPT).write_text(
        f"import shutil, sys; shutil.copy({str(sample)!r}, sys.argv[sys.argv.index('--outfile') + 1])"
    )
    model = hf_model(directory / "m")
    (model / "config.json").write_text(json.dumps({"architectures": ["OtherForCausalLM"]}))
    return model


@pytest.fixture
def model(tmp_path, monkeypatch, request):
    make = {
        "gguf": lambda: sample_gguf(tmp_path / "m.gguf"),
        "split gguf": lambda: split_gguf(tmp_path),
        "directory": lambda: hf_model(tmp_path / "m"),
        "shards": lambda: hf_model(tmp_path / "m", "LlamaForCausalLM", shards=3),
        "converted": lambda: converted(tmp_path, monkeypatch),
    }
    return make[request.param]()


KINDS = pytest.mark.parametrize(
    "model", ["gguf", "split gguf", "directory", "shards", "converted"], indirect=True
)


@KINDS
def test_a_source_is_closed(tmp_path, model):
    before = sorted(tmp_path.iterdir())
    with open_source(model) as source:
        weights = [tensor.read() for tensor in source.tensors]
        assert held(tmp_path)
    assert held(tmp_path) == []  # though the source and its tensors are still there
    assert sorted(tmp_path.iterdir()) == before
    with pytest.raises(ValueError, match="is closed"):
        source.tensors[0].read()
    assert all(np.isfinite(w).all() for w in weights)
    source.close()  # twice is no error


@pytest.mark.parametrize(
    ("model", "damaged"),
    [
        ("gguf", "*.gguf"),
        ("split gguf", "*.gguf"),
        ("directory", "*.safetensors"),
        ("directory", "tokenizer.json"),
        ("shards", "*.safetensors"),
        ("converted", "*.gguf"),
    ],
    indirect=["model"],
)
def test_a_source_that_is_refused_is_closed(tmp_path, model, damaged):
    """The last file is damaged, so that others were opened before."""
    sorted(tmp_path.rglob(damaged))[-1].write_bytes(b"")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(LutraError) as raised:
        open_source(model)
    assert held(tmp_path) == []  # while the error is there, and with it all that it passed through
    assert sorted(tmp_path.iterdir()) == before
    assert raised


def test_a_gguf_file_is_closed(tmp_path):
    path = sample_gguf(tmp_path / "m.gguf")
    with GGUFFile(path) as file:
        tensor = file.tensors["output_norm.weight"]
        copy = file.data(tensor).copy()
    assert held(tmp_path) == []
    assert file.size == path.stat().st_size
    with pytest.raises(ValueError, match=r"m\.gguf is closed"):
        file.data(tensor)
    assert copy.any()


def test_arrays_of_a_closed_file_stay_valid(tmp_path):
    """The mapping goes with the last of them."""
    with GGUFFile(sample_gguf(tmp_path / "m.gguf")) as file:
        data = file.data(file.tensors["output_norm.weight"])
        expected = data.tobytes()
    assert data.tobytes() == expected
    del data
    assert held(tmp_path) == []


def test_looking_at_a_file_leaves_nothing_open(tmp_path):
    path = sample_gguf(tmp_path / "m.gguf")
    info, problems = read_info(path), check(path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(LutraError) as raised:
        read_info(path)
    problems += check(path)
    assert held(tmp_path) == []
    assert (len(info.tensors), len(problems)) == (4, 1)
    assert raised
