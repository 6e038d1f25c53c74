# SPDX-License-Identifier: MIT
"""Codebooks as llama.cpp's own types: the values that they stand for, and nothing of Lutra in the file."""

from __future__ import annotations

import shutil
import signal
from collections import namedtuple
from pathlib import Path

import gguf
import numpy as np
import pytest
from cli_runner import assert_error, lutra, require_built, signalled
from gguf import GGMLQuantizationType, GGUFValueType
from gguf.gguf_writer import GGUFValue
from gguf_samples import BF16, F16, F32, METADATA, Q8_0, cb_tensor, to_bf16, u32, write_gguf

import lutra as package
from gguf_tools.errors import LutraError
from gguf_tools.formats import codebook
from gguf_tools.formats.family import CB_FORMATS, LAYOUT_VERSION_KEY
from gguf_tools.reader import GGUFFile

Q6_K = int(GGMLQuantizationType.Q6_K)
STACK = (3, 8, 256)  # of experts
KEYS = METADATA | {
    "tokenizer.lutra.end_token_ids": GGUFValue("1 2", GGUFValueType.STRING),
    "general.file_type": u32(CB_FORMATS[min(CB_FORMATS)].type),
    LAYOUT_VERSION_KEY: u32(1),
    "lutra.convert.version": GGUFValue("0.1.0", GGUFValueType.STRING),
    "lutra.convert.options": GGUFValue("--type cb4", GGUFValueType.STRING),
}


@pytest.fixture(autouse=True)
def built():
    """Q8_0 is made by ggml."""
    require_built()


@pytest.fixture(scope="module")
def tensors() -> dict:
    """Every codebook type, a stack of experts, and types of llama.cpp."""
    rng = np.random.default_rng(0)
    found = {f"blk.{i}.ffn_up.weight": cb_tensor(kind, 64, 512, i) for i, kind in enumerate(CB_FORMATS)}
    experts = cb_tensor(max(CB_FORMATS), STACK[0] * STACK[1], STACK[2])
    found["blk.0.ffn_down_exps.weight"] = (experts[0], STACK, experts[2])
    w = rng.standard_normal((64, 256)).astype(np.float32)
    blocks = rng.integers(0, 255, (64, 210), np.uint8)
    blocks[:, -2:] = np.array([0.01], "<f2").view(np.uint8)
    found["token_embd.weight"] = (Q6_K, w.shape, blocks)
    found["blk.0.attn_q.weight"] = (BF16, w.shape, to_bf16(w))
    found["output_norm.weight"] = (F32, (256,), w[0])
    return found


@pytest.fixture
def file(tmp_path: Path, tensors: dict) -> Path:
    return write_gguf(tmp_path / "model-cb.gguf", tensors, KEYS)


def values(tensor: tuple) -> np.ndarray:
    """What a codebook tensor stands for, by the reference."""
    kind, shape, data = tensor
    return codebook.dequantize(data, int(np.prod(shape[:-1])), shape[-1], CB_FORMATS[kind])


def rounded(kind: str, w: np.ndarray) -> np.ndarray:
    return gguf.quants.quantize(w, GGMLQuantizationType[kind.upper()]).view(np.uint8)


@pytest.mark.parametrize(("kind", "file_type"), [("f32", 0), ("f16", 1), ("bf16", 32), ("q8_0", 7)])
def test_codebooks_become_the_type_and_others_stay(
    file: Path, tensors: dict, tmp_path: Path, kind: str, file_type: int
) -> None:
    info = package.export(file, tmp_path / "out.gguf", type=kind)
    read = gguf.GGUFReader(info.path)  # llama.cpp's own, which knows no type of ours
    assert [t.name for t in read.tensors] == list(tensors)
    for tensor in read.tensors:
        made, shape, data = tensors[tensor.name]
        is_codebook = made in CB_FORMATS
        assert tensor.tensor_type == (GGMLQuantizationType[kind.upper()] if is_codebook else made)
        assert tuple(tensor.shape[::-1]) == shape
        expected = rounded(kind, values(tensors[tensor.name])) if is_codebook else data
        got = np.ascontiguousarray(tensor.data).view(np.uint8)
        assert np.array_equal(got.reshape(-1), np.ascontiguousarray(expected).view(np.uint8).reshape(-1))
    with GGUFFile(info.path) as made:
        kept = {key: value for key, value in KEYS.items() if not key.startswith("lutra.")}
        ours = ("general.file_type", "general.quantization_version", "general.alignment")
        assert {k: v for k, v in made.metadata.items() if k not in ours} == {
            k: v for k, v in kept.items() if k not in ours
        }
        assert made.get("general.file_type") == file_type


def test_pure_makes_every_matrix_the_type(file: Path, tensors: dict, tmp_path: Path) -> None:
    with GGUFFile(package.export(file, tmp_path / "out.gguf", type="q8_0", pure=True).path) as made:
        types = {t.name: t.type for t in made.tensors.values()}
        assert types == dict.fromkeys(tensors, Q8_0) | {"output_norm.weight": F32}
        six = gguf.quants.dequantize(tensors["token_embd.weight"][2], GGMLQuantizationType.Q6_K)
        assert np.array_equal(made.data(made.tensors["token_embd.weight"]), rounded("q8_0", six).reshape(-1))


def test_a_file_mostly_of_another_type_leaves_the_file_type_to_llama_cpp(tmp_path: Path) -> None:
    blocks = np.zeros((1024, 144), np.uint8)
    mixed = {
        "blk.0.attn_k.weight": cb_tensor(min(CB_FORMATS), 64, 256),
        "blk.0.attn_q.weight": (int(GGMLQuantizationType.Q4_K), (1024, 256), blocks),
    }
    path = write_gguf(tmp_path / "m.gguf", mixed, KEYS)
    with GGUFFile(package.export(path, tmp_path / "out.gguf").path) as made:
        assert "general.file_type" not in made.metadata


def test_a_split_file_becomes_one(file: Path, tensors: dict, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    whole = package.export(file).path
    assert whole == Path("model-cb-f16.gguf")
    names = list(tensors)
    for i, part in enumerate((names[:2], names[2:])):
        keys = KEYS if i == 0 else {}  # as llama-gguf-split has it
        numbers = {"split.no": i, "split.count": 2}
        keys = keys | {key: GGUFValue(n, GGUFValueType.UINT16) for key, n in numbers.items()}
        write_gguf(Path(f"split-{i + 1:05}-of-00002.gguf"), {name: tensors[name] for name in part}, keys)
    joined = package.export("split-00001-of-00002.gguf").path
    assert joined == Path("split-f16.gguf")
    assert joined.read_bytes() == whole.read_bytes()
    with pytest.raises(LutraError, match="give the first"):
        package.export("split-00002-of-00002.gguf")
    with pytest.raises(LutraError, match="would overwrite the source"):
        package.export("split-00001-of-00002.gguf", "split-00002-of-00002.gguf")


def test_what_it_refuses(file: Path, tensors: dict, tmp_path: Path, monkeypatch) -> None:
    out = tmp_path / "out.gguf"
    plain = write_gguf(tmp_path / "plain.gguf", {"a.weight": (F16, (8, 64), np.zeros((8, 64), np.float16))})
    assert_error(lutra("export", plain, "-o", out), "has no codebooks", "--pure makes every matrix F16")
    assert_error(lutra("export", tmp_path / "none.gguf", "-o", out), "none.gguf", "No such file")
    assert_error(lutra("export", file, "--type", "cb4", "-o", out), "'cb4'", "f16, q8_0, bf16, f32")
    newer = write_gguf(tmp_path / "newer.gguf", tensors, KEYS | {LAYOUT_VERSION_KEY: u32(2)})
    assert_error(lutra("export", newer, "-o", out), "layout version 2")
    kind, shape, data = cb_tensor(min(CB_FORMATS), 64, 256)
    fmt = CB_FORMATS[kind]
    codes, selectors, d, library = codebook.unpack(data, *shape, fmt)
    d[:] = 1000
    large = {"blk.0.ffn_up.weight": (kind, shape, codebook.pack(codes, selectors, d, library, fmt))}
    path = write_gguf(tmp_path / "large.gguf", large, KEYS)
    with pytest.raises(LutraError, match=r"'blk\.0\.ffn_up\.weight' has weights that F16 cannot hold"):
        package.export(path, out)
    package.export(path, tmp_path / "large-f32.gguf", type="f32")
    usage = namedtuple("usage", "total used free")(10**9, 10**9, 1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(LutraError, match=r"has 0\.0 MiB free"):
        package.export(file, out)
    assert not out.exists()
    assert not list(tmp_path.glob(".*"))


def test_nothing_is_left_of_an_interrupted_one(file: Path, tmp_path: Path) -> None:
    before = set(tmp_path.iterdir())
    out = tmp_path / "out.gguf"
    done = signalled(signal.SIGINT, "gguf_tools.writer:GGUFWriter.write", "export", file, "-o", out, nth=3)
    assert done.returncode == 130
    assert "interrupted" in done.stderr
    assert set(tmp_path.iterdir()) == before
    assert lutra("export", file, "-o", out).returncode == 0
    assert set(tmp_path.iterdir()) == before | {out}


def test_a_model_that_llama_cpp_computes_otherwise_is_warned_of(tmp_path: Path) -> None:
    tensors = {"blk.0.ffn_up.weight": cb_tensor(min(CB_FORMATS), 64, 256)}
    keys = KEYS | {"bitnet.hidden_activation": GGUFValue("relu2", GGUFValueType.STRING)}
    for name, values, lines in (("plain", KEYS, 1), ("bitnet", keys, 2)):
        done = lutra("export", write_gguf(tmp_path / f"{name}.gguf", tensors, values), cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert len(done.stderr.splitlines()) == lines
    assert "lutra: warning: bitnet-f16.gguf: its activation is not SiLU" in done.stderr
