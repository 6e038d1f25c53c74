# SPDX-License-Identifier: MIT
"""A file of two layers cut down to its first one: the bytes that it begins with."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from cli_runner import assert_error, lutra, random_codebooks
from gguf import GGUFValueType
from gguf.gguf_writer import GGUFValue
from gguf_samples import F32, METADATA, cb_tensor, u32, write_gguf

from gguf_tools import inspect
from gguf_tools.errors import LutraError
from gguf_tools.formats import codebook
from gguf_tools.formats.family import CB_FORMATS, LAYOUT_VERSION_KEY, first_layer
from gguf_tools.reader import GGUFFile, type_name
from lutra.conversion.slice import slice_file
from lutra.runtime.model import Model

IDS = {fmt.name: fmt.type for fmt in CB_FORMATS.values()}
KEYS = METADATA | {
    "general.file_type": u32(IDS["CB5"]),
    LAYOUT_VERSION_KEY: u32(1),
    "lutra.convert.options": GGUFValue("--type cb5 --seed 0", GGUFValueType.STRING),
}
# What each tensor of the sample is after a cut down to cb4, and with --pure.
EXPECTED = {
    "token_embd.weight": ("CB6", "CB6", "CB4"),
    "blk.0.ffn_up.weight": ("CB5", "CB4", "CB4"),
    "blk.0.ffn_down.weight": ("CB6_64", "CB4_64", "CB4_64"),
    "blk.0.attn_q.weight": ("CB3", "CB3", "CB3"),
    "output_norm.weight": ("F32", "F32", "F32"),
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    tensors = {
        name: cb_tensor(IDS[kinds[0]], 64, 320 if kinds[0].endswith("_64") else 512, seed)
        for seed, (name, kinds) in enumerate(EXPECTED.items())
        if kinds[0] in IDS
    }
    tensors["output_norm.weight"] = (F32, (512,), np.ones(512, np.float32))
    return write_gguf(tmp_path / "model-cb5.gguf", tensors, KEYS)


@pytest.mark.parametrize("pure", [False, True], ids=["recipe", "pure"])
def test_tensors_become_their_first_bytes(file: Path, pure: bool) -> None:
    done = lutra("slice", file, "-o", file.with_name("cut.gguf"), *(["--pure"] if pure else []))
    assert done.returncode == 0, done.stderr
    cut = file.with_name("cut.gguf")
    assert inspect.check(cut) == []
    with GGUFFile(file) as before, GGUFFile(cut) as after:
        assert {name: type_name(t.type) for name, t in after.tensors.items()} == {
            name: kinds[2 if pure else 1] for name, kinds in EXPECTED.items()
        }
        for name, tensor in after.tensors.items():
            old, new = before.data(before.tensors[name]), after.data(tensor)
            assert np.array_equal(new, old[: len(new)])
            if first := tensor.type != before.tensors[name].type and CB_FORMATS[tensor.type]:
                rows, k = tensor.shape
                fmt = CB_FORMATS[before.tensors[name].type]
                assert first_layer(fmt) == first
                codes, selectors, d, library = codebook.unpack(old, rows, k, fmt)
                alone = codebook.pack(codes, selectors, d, library, first)
                assert np.array_equal(new, alone)
        assert after.metadata["general.file_type"].value == IDS["CB4"]
        assert after.metadata["lutra.slice.of"].value == "--type cb5 --seed 0"
        assert "lutra.convert.options" not in after.metadata
        assert after.metadata["general.architecture"] == before.metadata["general.architecture"]


def test_what_cannot_be_cut_is_said(file: Path, tmp_path: Path) -> None:
    assert_error(lutra("slice", file, "--type", "cb5"), "'cb5' is the first layer of no type")
    plain = write_gguf(tmp_path / "plain.gguf", {"output.weight": cb_tensor(IDS["CB6"], 64, 512)}, KEYS)
    assert_error(lutra("slice", plain), "has no tensor that can be cut down to cb4; --pure cuts those")
    assert lutra("slice", plain, "--pure", "-o", tmp_path / "cut.gguf").returncode == 0
    assert_error(lutra("slice", tmp_path / "cut.gguf", "--pure"), "has no tensor that can be cut down to cb4")


def test_the_source_is_not_overwritten(file: Path) -> None:
    before = file.read_bytes()
    assert_error(lutra("slice", file, "-o", file), "would overwrite the source")
    assert file.read_bytes() == before


@pytest.fixture(scope="module")
def layered(tmp_path_factory) -> Path:
    """A random model of CB5 throughout."""
    return random_codebooks(tmp_path_factory.mktemp("layers"), "cb5", gain=2.0)


def logits(path: Path) -> np.ndarray:
    with Model(path, threads=1, n_ctx=64) as model:
        tokens = list(range(3, 40))
        return np.ctypeslib.as_array(model.logits(tokens), (len(tokens), 100)).copy()


def test_one_layer_computes_what_the_cut_file_does(layered: Path, monkeypatch) -> None:
    both = logits(layered)
    cut = slice_file(layered, layered.with_name("cut.gguf"), pure=True).path
    assert not np.array_equal(both, logits(cut))
    for none_left_out in ("2", ""):
        monkeypatch.setenv("LUTRA_LAYERS", none_left_out)
        assert np.array_equal(both, logits(layered))
    monkeypatch.setenv("LUTRA_LAYERS", "1")
    assert np.array_equal(logits(cut), logits(layered))
    monkeypatch.setenv("LUTRA_LAYERS", "3")
    with pytest.raises(LutraError, match="LUTRA_LAYERS is neither 1 nor 2"):
        logits(layered)


def test_layers_is_an_option_of_those_who_load(layered: Path) -> None:
    text = layered.with_name("text.txt")
    text.write_text("A strip has eight rows. " * 60)
    eval_ = ("eval", layered, "--text", text, "--ctx", "64", "--chunks", "1", "--json")
    values = [json.loads(lutra(*eval_, *more).stdout)["ppl"] for more in ((), ("--layers", "1"))]
    assert values[0] != values[1]
    assert json.loads(lutra(*eval_, env={"LUTRA_LAYERS": "1"}).stdout)["ppl"] == values[1]
    assert "layers: 1, by LUTRA_LAYERS" in lutra("info", env={"LUTRA_LAYERS": "1"}).stdout
    assert_error(lutra("bench", layered, "--layers", "3"), "--layers 3: there are 1 or 2")
