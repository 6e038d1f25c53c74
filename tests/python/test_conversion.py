# SPDX-License-Identifier: MIT
"""Conversion as a library: the options are checked first, and files say what really happened."""

from __future__ import annotations

import dataclasses
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest
from cli_runner import environment, require_built
from gguf_samples import hf_model
from open_files import held

import lutra
from gguf_tools.errors import LutraError
from gguf_tools.formats.catalog import RECIPES, TYPES
from gguf_tools.reader import GGUFFile
from lutra.conversion import pipeline
from lutra.conversion.options import ConversionOptions, Target
from lutra.conversion.slice import slice_file
from lutra.conversion.text import PIECE, read_documents
from lutra.conversion.workdir import WorkDirectory
from lutra.measure.questions import read_questions

ROOT = Path(__file__).parents[2]


# ---- options ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "fragment"),
    [
        ({}, "a type or a target"),
        ({"type": "cb4", "target": Target.parse_bpw("3")}, "one of the two"),
        ({"type": "cb4", "tensor_types": ("(=cb4",)}, "no regular expression"),
        ({"type": "cb4", "tensor_types": ("ffn=cb9",)}, "'cb9' is no tensor type"),
        ({"type": "cb4", "output_type": "cb9"}, "'cb9' is no tensor type"),
        ({"type": "cb4", "imatrix": Path("missing.imatrix")}, "missing.imatrix: no such file"),
        ({"type": "cb4", "calibration": Path("missing.txt")}, "missing.txt: no such file"),
        ({"type": "cb4", "calibrate": False, "imatrix": Path("i")}, "--imatrix and --no-calibration"),
        ({"type": "cb3_m", "pure": True}, "--pure gives every matrix one --type"),
        ({"type": "f16", "tune": True}, "--tune needs codebooks"),
        ({"type": "cb4", "tune_tokens": 4096}, "--tune-tokens belongs to --tune"),
        ({"type": "cb4", "device": "cpu"}, "--device belongs to --tune"),
        ({"type": "cb4", "threads": 0}, "0 threads"),
        ({"type": "cb4", "threads": 10**9}, "1000000000 threads"),
        ({"type": "cb4", "seed": -1}, "--seed -1"),
    ],
)
def test_what_cannot_be_is_refused_before_a_source_is_known(wrong, fragment):
    with pytest.raises(LutraError, match=fragment):
        ConversionOptions(**wrong)
    if "type" in wrong and len(wrong) > 1:  # the same option changed later
        sound = ConversionOptions(type=wrong["type"])
        with pytest.raises(LutraError, match=fragment):
            dataclasses.replace(sound, **wrong)


def test_paths_may_be_text_and_lists_do_not_stay_lists(tmp_path):
    text = tmp_path / "t.txt"
    text.write_text("text")
    given = ConversionOptions(type="cb4", calibration=str(text), tensor_types=["ffn=cb2"])
    assert given == ConversionOptions(type="cb4", calibration=text, tensor_types=("ffn=cb2",))
    assert len({given, pickle.loads(pickle.dumps(given))}) == 1


@pytest.mark.parametrize("size", [{}, {"bpw": 3.0, "nbytes": 5}, {"bpw": -3.0}, {"nbytes": 0}])
def test_a_target_is_one_positive_size(size):
    with pytest.raises(LutraError, match="one of them, above 0"):
        Target("3.0", **size)


def test_types_of_nobody_are_refused_with_the_choice():
    require_built()
    with pytest.raises(LutraError, match=r"'cb9' is no type; choose one of .*cb4_m.*q4_k"):
        ConversionOptions(type="cb9")


def test_a_text_that_cannot_be_read_is_named_with_its_line(tmp_path):
    text = tmp_path / "t.jsonl"
    text.write_text('{"text": "a"}\n{"words": "b"}\n')
    with pytest.raises(LutraError, match=r"t\.jsonl:2"):
        ConversionOptions(type="cb4", calibration=text)
    ConversionOptions(type="f16", calibration=text)  # nothing to calibrate


def test_calibration_is_for_codebooks():
    assert ConversionOptions(type="cb4").calibration_text
    assert ConversionOptions(type="f16", tensor_types=("ffn=cb4",)).calibration_text
    assert ConversionOptions(target=Target.parse_bpw("3")).calibration_text
    assert ConversionOptions(type="f16").calibration_text is None
    assert ConversionOptions(type="cb4", calibrate=False).calibration_text is None


def test_the_record_repeats_the_conversion(tmp_path):
    text = tmp_path / "t.txt"
    text.write_text("text")
    options = ConversionOptions(
        type="cb3", calibration=text, seed=3, tensor_types=("a b=cb4", "c=q8_0"), output_type="f16"
    )
    assert options.record() == (
        "--type cb3 --seed 3 --calibration t.txt --tensor-type 'a b=cb4' --tensor-type c=q8_0 "
        "--output-tensor-type f16"
    )
    assert "--calibration" not in options.record(calibrated=False)


# ---- types -----------------------------------------------------------------------------------


def test_types_are_values_that_fall_back():
    for kind in TYPES.values():
        seen = [kind]
        while seen[-1].id_for((12, 100)) is None:
            assert seen[-1].fallback not in seen
            seen.append(seen[-1].fallback)
        assert seen[-1].name in ("f16", "bf16", "f32")
    assert TYPES["cb4"].id_for((512, 256)) == 404
    assert TYPES["cb4"].id_for((512, 448)) == 424
    assert TYPES["cb4"].id_for((256,)) is None  # a vector has no strips
    assert len(set(TYPES.values())) == len(TYPES)  # hashable, all different
    assert {recipe.base for recipe in RECIPES.values()} <= set(TYPES.values())


def test_the_documents_have_the_planners_noise():
    """One table of signal to noise: docs/RECIPES.md shows that of the catalog."""
    text = (ROOT / "docs" / "RECIPES.md").read_text()
    figures = [f"{kind.snr}" for kind in sorted(TYPES.values(), key=lambda kind: kind.snr or 0) if kind.snr]
    assert ", ".join(figures) in " ".join(text.split())


def test_the_package_shows_its_names_and_no_others():
    """To people who press Tab, and to type checkers, which take any name from a module-level __getattr__."""
    assert set(lutra.__all__) <= set(dir(lutra))
    program = "import lutra\nlutra.Model.chat\nlutra.convrt\n"
    checker = [sys.executable, "-m", "mypy", "--strict", "--config-file=", "-c", program]
    done = subprocess.run(checker, env=environment(), capture_output=True, text=True, check=False, cwd=ROOT)
    assert re.findall(r":(\d+): error: (.*)  \[", done.stdout) == [
        ("3", 'Module has no attribute "convrt"; maybe "convert"?')
    ]


# ---- converting ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A Qwen2-family model of one layer, random weights."""
    require_built()
    return hf_model(tmp_path_factory.mktemp("models") / "qwen")


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("What a matrix does to its inputs is changed by rounding its weights. " * 8)
    return path


def test_convert_says_what_it_made(model, text, tmp_path):
    options = lutra.ConversionOptions(type="cb4", calibration=text, threads=2)
    result = lutra.convert(model, options, tmp_path / "x.gguf")
    assert result.path.stat().st_size == result.bytes
    assert 4.3 < result.bpw < 8
    by_name = {tensor.name: tensor for tensor in result.tensors}
    assert 0 < by_name["blk.0.ffn_up.weight"].loss < 0.01
    assert by_name["blk.0.attn_norm.weight"].loss is None
    assert result.report()["tensors"][0]["name"] == result.tensors[0].name
    with GGUFFile(result.path) as file:
        assert file.get("lutra.convert.options") == options.record()
        assert file.get("lutra.convert.calibration_tokens") == 3 * PIECE  # 552 characters, and BOS
        assert pipeline.UNCALIBRATED_KEY not in file.metadata


def test_a_file_names_what_the_calibration_did_not_reach(model, text, tmp_path, monkeypatch, capsys):
    order = pipeline.matmul_order
    left_out = "blk.0.ffn_up.weight"
    monkeypatch.setattr(
        pipeline,
        "matmul_order",
        lambda *a, **k: [[name for name in group if name != left_out] for group in order(*a, **k)],
    )
    options = lutra.ConversionOptions(type="cb4", calibration=text, threads=2)
    result = lutra.convert(model, options, tmp_path / "x.gguf")
    assert f"not calibrated, the model does not multiply by them: {left_out}" in capsys.readouterr().err
    with GGUFFile(result.path) as file:
        assert file.get(pipeline.UNCALIBRATED_KEY) == [left_out]
    (tensor,) = (tensor for tensor in result.tensors if tensor.name == left_out)
    assert tensor.loss is None


@pytest.mark.parametrize("calibrated", [False, True])
def test_a_layered_type_is_made_again_to_the_same_bytes(calibrated, model, text, tmp_path, monkeypatch):
    """After a stop, and with any number of threads."""
    chosen = {"calibration": text} if calibrated else {"calibrate": False}
    outputs = [tmp_path / name for name in ("whole.gguf", "stopped.gguf")]
    lutra.convert(model, lutra.ConversionOptions(type="cb5", threads=2, **chosen), outputs[0])
    save, saved = WorkDirectory.save, []

    def stops(self, name, parts, loss):
        if len(saved) == 2:
            raise KeyboardInterrupt
        saved.append(name)
        save(self, name, parts, loss)

    monkeypatch.setattr(WorkDirectory, "save", stops)
    options = lutra.ConversionOptions(type="cb5", threads=1, **chosen)
    with pytest.raises(KeyboardInterrupt):
        lutra.convert(model, options, outputs[1])
    monkeypatch.setattr(WorkDirectory, "save", save)
    result = lutra.convert(model, options, outputs[1])
    assert outputs[0].read_bytes() == outputs[1].read_bytes()
    types = {tensor.name: tensor.type for tensor in result.tensors}
    assert types["output.weight"].startswith("CB6")
    assert types["blk.0.ffn_up.weight"].startswith("CB5")


@pytest.mark.parametrize("pure", [False, True])
def test_a_file_that_was_cut_is_the_one_that_is_made_directly(pure, model, tmp_path):
    for kind in ("cb4", "cb5"):
        options = lutra.ConversionOptions(type=kind, pure=pure, calibrate=False, threads=2)
        lutra.convert(model, options, tmp_path / f"{kind}.gguf")
    slice_file(tmp_path / "cb5.gguf", tmp_path / "cut.gguf", type="cb4", pure=pure)
    with GGUFFile(tmp_path / "cb4.gguf") as made, GGUFFile(tmp_path / "cut.gguf") as cut:
        assert list(made.tensors) == list(cut.tensors)
        for name, tensor in made.tensors.items():
            assert cut.tensors[name].type == tensor.type
            assert (cut.data(cut.tensors[name]) == made.data(tensor)).all(), name


@pytest.mark.parametrize("failure", ["raises", "finds nothing"])
def test_a_calibration_that_fails_is_an_error(failure, model, text, tmp_path, monkeypatch):
    def matmul_order(*_: object) -> list[list[str]]:
        if failure == "raises":
            raise LutraError("the graph cannot be computed")
        return []

    monkeypatch.setattr(pipeline, "matmul_order", matmul_order)
    options = lutra.ConversionOptions(type="cb4", calibration=text, threads=2)
    with pytest.raises(LutraError, match="--no-calibration"):
        lutra.convert(model, options, tmp_path / "x.gguf")
    assert list(tmp_path.iterdir()) == []


def test_without_codebooks_no_calibration_is_claimed(model, tmp_path):
    options = lutra.ConversionOptions(type="f16", tensor_types=("no such tensor=cb4",), threads=2)
    with GGUFFile(lutra.convert(model, options, tmp_path / "x.gguf").path) as file:
        assert "--calibration" not in file.get("lutra.convert.options")


def test_nothing_stays_open(model, tmp_path):
    options = lutra.ConversionOptions(type="cb4", calibrate=False, threads=2)
    lutra.convert(model, options, tmp_path / "x.gguf")
    assert held(model) == held(tmp_path) == []


def test_json_lines_as_editors_and_programs_write_them(tmp_path):
    """A mark at the start, ends of lines of Windows, empty lines, and characters that only look like ends."""
    path = tmp_path / "t.jsonl"
    path.write_bytes('\ufeff{"text": "a\u2028b"}\r\n\r\n{"text": "c\x85d"}\n\n'.encode())
    assert list(read_documents(path)) == ["a\u2028b", "c\x85d"]
    for what in ('{"messages": "a"}', '{"text": ["a"]}', '{"messages": ["a"]}', "[]", '"text"', "1"):
        path.write_text(what)
        with pytest.raises(LutraError, match=r"t\.jsonl:1: needs"):
            list(read_documents(path))
    path.write_bytes('\ufeff{"question": "a\u2028b", "answer": "c"}\r\n'.encode())
    assert read_questions(path) == [("a\u2028b", "c")]
