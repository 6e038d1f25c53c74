# SPDX-License-Identifier: MIT
"""The command line: help, errors in one line, conversion, damaged files."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess

import numpy as np
import pytest
from cli_runner import (
    TINY_CHAT,
    assert_error,
    command,
    environment,
    lutra,
    require_built,
    signalled,
)
from gguf_samples import F16, METADATA, cb_tensor, hf_model, sample_gguf, write_gguf

from gguf_tools.formats import codebook
from gguf_tools.formats.family import CB_FORMATS, LAYOUT_VERSION_KEY
from gguf_tools.inspect import read_info
from gguf_tools.reader import GGUFFile
from gguf_tools.sources.open import open_source
from lutra.cli.main import VERBS

# ---- help and usage --------------------------------------------------------------------------


def test_overview_names_every_verb_without_loading_anything():
    done = lutra("--help")
    assert done.returncode == 0
    assert all(verb in done.stdout for verb in VERBS)
    loaded = subprocess.run(
        [*command()[:1], "-X", "importtime", "-m", "lutra", "--help"],
        env=environment(), capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert not {"numpy", "gguf", "ctypes"} & {
        line.split("|")[-1].strip() for line in loaded.stderr.splitlines()
    }


@pytest.mark.parametrize("verb", VERBS)
def test_help_has_an_example(verb):
    done = lutra(verb, "--help")
    assert done.returncode == 0
    assert done.stderr == ""
    assert "example" in done.stdout
    assert f"  lutra {verb} " in done.stdout.split("example")[1]


@pytest.mark.parametrize(
    ("args", "fragment"),
    [
        (["frobnicate"], "no verb 'frobnicate'"),
        (["convert", "x"], "--type"),
        (["convert", "x", "--type", "cb4", "--threads", "0"], "'0' is not a positive number"),
        (["convert", "missing", "--type", "cb4"], "missing: no such file"),
        (["convert", "missing", "--type", "cb4", "--imatrix", "i", "--no-calibration"], "contradict"),
        (["convert", "missing", "--type", "cb4", "--calibration", "c", "--no-calibration"], "contradict"),
        (["chat", "missing.gguf"], "missing.gguf: no such file"),
        (["chat", "missing.gguf", "-p", " "], "prompt is empty"),
        (["bench"], "needs a GGUF file"),
        (["bench", "missing.gguf"], "missing.gguf"),
        (["eval", "missing.gguf"], "--text or --questions"),
        (["eval", "missing.gguf", "--base", "b"], "--text or --questions"),
        (["eval", "missing.gguf", "--questions", "q", "--base", "b"], "--base needs --text"),
        (["eval", "missing.gguf", "--text", "missing.txt"], "missing.txt"),
        (["eval", "missing.gguf", "--activations"], "--activations needs --text"),
        (["eval", "missing.gguf", "--activations", "--base", "b"], "leave --base"),
        (["eval", "missing.gguf", "--activations", "--planes", "2"], "--planes and --layers out"),
        (["eval", "missing.gguf", "--questions", "missing.jsonl"], "missing.jsonl"),
        (["info", "missing.gguf"], "missing.gguf"),
        (["verify", "missing.gguf"], "missing.gguf"),
    ],
)
def test_wrong_usage_is_one_line(args, fragment, tmp_path):
    assert_error(lutra(*args, cwd=tmp_path), fragment)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("line", ['{"question": "a"}', "[1]", "not json"])
def test_wrong_questions_are_named_with_their_line(line, tmp_path):
    questions = tmp_path / "q.jsonl"
    questions.write_text(f'{{"question": "a", "answer": "b"}}\n{line}\n')
    model = sample_gguf(tmp_path / "m.gguf")
    assert_error(lutra("eval", model, "--questions", questions), "q.jsonl:2")


# ---- convert ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    """A Qwen2-family model of odd sizes, 192 and 320: super-blocks of 64, biases, untied output."""
    return hf_model(tmp_path_factory.mktemp("models") / "qwen")


def decoded(file: GGUFFile, name: str) -> np.ndarray:
    tensor = file.tensors[name]
    rows = int(np.prod(tensor.shape[:-1]))
    return codebook.dequantize(file.data(tensor), rows, tensor.shape[-1], CB_FORMATS[tensor.type])


@pytest.mark.parametrize(("kind", "decibel"), [("cb2", 10), ("cb3", 15), ("cb4", 21)])
def test_convert_keeps_the_weights(kind, decibel, qwen, tmp_path):
    require_built()
    done = lutra("convert", qwen, "--type", kind, "--no-calibration", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    (output,) = tmp_path.iterdir()
    assert output.name == f"qwen-{kind}.gguf"
    file, source = GGUFFile(output), {t.name: t for t in open_source(qwen).tensors}
    in_cb = [t for t in file.tensors.values() if t.type in CB_FORMATS]
    assert sum(t.weights for t in in_cb) > 0.9 * sum(t.weights for t in file.tensors.values())
    for tensor in in_cb:
        w = source[tensor.name].read()
        noise = np.sum((decoded(file, tensor.name) - w) ** 2)
        assert 10 * np.log10(np.sum(w**2) / noise) > decibel, tensor.name
    assert file.get(LAYOUT_VERSION_KEY) == 1
    assert file.get("general.file_type") == 400 + int(kind[2])
    assert file.get("lutra.convert.options") == f"--type {kind} --seed 0 --no-calibration"
    assert lutra("verify", output).returncode == 0


def test_the_seed_decides_and_threads_do_not(qwen, tmp_path):
    require_built()
    for name, options in (("a", ["--threads", 1]), ("b", ["--threads", 2]), ("c", ["--seed", 1])):
        done = lutra("convert", qwen, "--type", "cb3", "--no-calibration", "-o", name, *options, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    a, b, c = ((tmp_path / name).read_bytes() for name in "abc")
    assert a == b
    assert a != c


def test_options_choose_types_per_tensor(qwen, tmp_path):
    require_built()
    done = lutra(
        "convert", qwen, "--type", "cb4", "--no-calibration", "-o", "x.gguf",
        "--tensor-type", "ffn_(up|down)=cb2", "--tensor-type", "attn_q=iq4_nl",
        "--token-embedding-type", "q8_0", "--output-tensor-type", "bf16",
        cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = {t["name"]: t["type"] for t in read_info(tmp_path / "x.gguf").to_json()["tensors"]}
    assert found["blk.0.ffn_up.weight"] == found["blk.0.ffn_down.weight"] == "CB2_64"
    assert found["blk.0.ffn_gate.weight"] == "CB4_64"
    assert found["blk.0.attn_q.weight"] == "IQ4_NL"
    assert found["blk.0.attn_q.bias"] == "F32"
    assert (found["token_embd.weight"], found["output.weight"]) == ("Q8_0", "BF16")


def test_float_types_are_exact(qwen, tmp_path):
    require_built()
    assert lutra("convert", qwen, "--type", "bf16", "-o", "x.gguf", cwd=tmp_path).returncode == 0
    source, copy = open_source(qwen), open_source(tmp_path / "x.gguf")
    for a, b in zip(source.tensors, copy.tensors, strict=True):
        assert np.array_equal(a.read(), b.read()), a.name


def test_upstreams_types_are_made_by_llama_quantize(qwen, tmp_path):
    require_built("llama-quantize")
    done = lutra("convert", qwen, "--type", "q4_0", "--pure", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["qwen-q4_0.gguf"]
    info = read_info(tmp_path / "qwen-q4_0.gguf")
    assert {t["type"] for t in info.to_json()["tensors"]} == {"Q4_0", "F32"}
    assert info.metadata["lutra.convert.options"].value == "--type q4_0 --seed 0 --pure"


def test_a_failing_llama_quantize_leaves_nothing(qwen, tmp_path):
    require_built("llama-quantize")
    done = lutra("convert", qwen, "--type", "iq2_xxs", "--pure", "--tensor-type", ".=iq2_xxs", cwd=tmp_path)
    if done.returncode == 0:  # rows of 192 fall back to a type that needs no matrix
        assert [p.name for p in tmp_path.iterdir()] == ["qwen-iq2_xxs.gguf"]
        done = lutra("convert", TINY_CHAT, "--type", "iq2_xxs", "-o", "y.gguf", cwd=tmp_path)
        (tmp_path / "qwen-iq2_xxs.gguf").unlink()
    assert_error(done, "importance matrix")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["cb4", "q4_0"])
def test_dry_run_writes_nothing(kind, qwen, tmp_path):
    require_built("llama-quantize")
    done = lutra("convert", qwen, "--type", kind, "--dry-run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "blk.0.ffn_up.weight" in done.stdout
    assert list(tmp_path.iterdir()) == []


SAVE = "lutra.conversion.workdir:WorkDirectory.save"


NOISE = np.random.default_rng(1).standard_normal((512, 256))  # no codebook has it exactly


def model_with(path, name: str, array: np.ndarray):
    rng = np.random.default_rng(0)
    tensors = {
        "token_embd.weight": (F16, (64, 256), rng.standard_normal((64, 256)).astype(np.float16)),
        name: (F16, array.shape, array.astype(np.float16)),
    }
    return write_gguf(path, tensors)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", ["cb4", "f16"])
def test_bad_weights_are_named_and_leave_nothing(value, kind, tmp_path):
    require_built()
    w = np.ones((512, 256), np.float32)
    w[300, 7] = value
    source = model_with(tmp_path / "bad.gguf", "blk.0.ffn_up.weight", w)
    done = lutra("convert", source, "--type", kind, "--no-calibration", "-o", tmp_path / "x.gguf")
    assert_error(done, "blk.0.ffn_up.weight")
    assert list(tmp_path.iterdir()) == [source]


def test_zero_weights_are_fine(tmp_path):
    require_built()
    source = model_with(tmp_path / "m.gguf", "blk.0.ffn_up.weight", np.zeros((512, 256)))
    done = lutra("convert", source, "--type", "cb4", "--no-calibration", "-o", tmp_path / "x.gguf")
    assert done.returncode == 0, done.stderr
    assert not decoded(GGUFFile(tmp_path / "x.gguf"), "blk.0.ffn_up.weight").any()


def test_an_output_that_cannot_be_written(qwen, tmp_path):
    require_built()
    assert_error(lutra("convert", qwen, "--type", "f16", "-o", "/proc/x.gguf"), "/proc/x.gguf", "-o")
    assert_error(
        lutra("convert", qwen, "--type", "f16", "-o", tmp_path / "no" / "x.gguf"), "no such directory"
    )
    assert_error(lutra("convert", qwen, "--type", "f16", "-o", tmp_path), "is a directory")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["cb4", "q4_0"])
def test_a_full_disk_leaves_no_file(kind, qwen, tmp_path):
    require_built("llama-quantize")

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))

    options = [qwen, "--type", kind, "--no-calibration", "-o", tmp_path / "x.gguf"]
    done = lutra("convert", *options, preexec_fn=limit)
    assert_error(done)
    assert list(tmp_path.glob("[!.]*")) == []
    assert ("finished tensors are kept" in done.stderr) == (kind == "cb4")
    assert list(tmp_path.rglob(".x*/*.partial")) == []
    assert lutra("convert", *options).returncode == 0
    assert [path.name for path in tmp_path.iterdir()] == ["x.gguf"]


def test_the_source_is_never_overwritten_and_an_old_output_is(tmp_path):
    require_built()
    source = model_with(tmp_path / "m.gguf", "blk.0.ffn_up.weight", NOISE)
    before = source.read_bytes()
    assert_error(lutra("convert", source, "--type", "cb4", "-o", source), "overwrite the source")
    assert source.read_bytes() == before
    (tmp_path / "old.gguf").write_text("old")
    assert lutra("convert", source, "--type", "f16", "-o", tmp_path / "old.gguf").returncode == 0
    assert (tmp_path / "old.gguf").read_bytes()[:4] == b"GGUF"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize(
    "moment",
    [
        "fcntl:flock",  # the directory has just been made
        "lutra.conversion.jobs:_run",
        "lutra.conversion.workdir:WorkDirectory.save",
        "gguf_tools.writer:GGUFWriter.write",
    ],
)
def test_an_interrupted_conversion_leaves_nothing(number, code, moment, tmp_path):
    require_built()
    source = model_with(tmp_path / "m.gguf", "blk.0.ffn_up.weight", NOISE)
    (tmp_path / "out").mkdir()
    type_ = "f16" if "writer" in moment else "cb4"
    options = ["--type", type_, "--no-calibration", "-o", tmp_path / "out" / "x.gguf"]
    done = signalled(number, moment, "convert", source, *options)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_conversion_goes_on_where_it_was(number, tmp_path):
    require_built()
    rng = np.random.default_rng(0)
    names = [f"blk.{i}.ffn_up.weight" for i in range(3)]
    source = write_gguf(
        tmp_path / "m.gguf",
        {name: (F16, (512, 512), rng.standard_normal((512, 512)).astype(np.float16)) for name in names},
    )
    options = [source, "--type", "cb4", "--no-calibration", "--threads", 1, "-o"]
    whole, stopped, changed = (tmp_path / name for name in ("whole.gguf", "stopped.gguf", "changed.gguf"))
    assert lutra("convert", *options, whole).returncode == 0
    done = signalled(number, SAVE, "convert", *options, stopped, nth=2)
    assert done.returncode == (130 if number == signal.SIGINT else -number)
    assert number != signal.SIGINT or "the same command goes on from there" in done.stderr
    # What is finished is taken from the directory as it is: a changed byte goes into the file.
    work, copy = tmp_path / ".stopped.gguf.lutra-work", tmp_path / ".changed.gguf.lutra-work"
    copy.mkdir()
    for path in work.iterdir():
        data = bytearray(path.read_bytes())
        if path.name == f"{names[0]}.tensor":
            data[100] ^= 1
        (copy / path.name).write_bytes(data)
    for path in (stopped, changed):
        done = lutra("convert", *options, path)
        assert done.returncode == 0, done.stderr
        assert "going on: " in done.stderr
    assert stopped.read_bytes() == whole.read_bytes()
    files = [GGUFFile(path) for path in (whole, changed)]
    different = [
        name for name in names if not np.array_equal(*(file.data(file.tensors[name]) for file in files))
    ]
    assert different == names[:1]
    assert not list(tmp_path.glob(".*"))


def test_other_options_start_anew(tmp_path):
    require_built()
    w = np.random.default_rng(0).standard_normal((2, 512, 512)).astype(np.float16)
    source = write_gguf(
        tmp_path / "m.gguf", {f"blk.{i}.ffn_up.weight": (F16, w[i].shape, w[i]) for i in (0, 1)}
    )
    options = [source, "--type", "cb4", "--no-calibration", "-o", tmp_path / "x.gguf"]
    assert signalled(signal.SIGKILL, SAVE, "convert", *options, nth=2).returncode == -signal.SIGKILL
    done = lutra("convert", "--seed", 1, *options)
    assert done.returncode == 0
    assert "starting anew" in done.stderr
    assert "seed" in done.stderr
    assert lutra("convert", "--seed", 1, *options[:-1], tmp_path / "y.gguf").returncode == 0
    assert (tmp_path / "x.gguf").read_bytes() == (tmp_path / "y.gguf").read_bytes()


def test_a_model_that_cannot_be_calibrated_says_so(tmp_path):
    require_built()
    source = model_with(tmp_path / "m.gguf", "blk.0.ffn_up.weight", NOISE)
    done = lutra("convert", source, "--type", "cb4", "-o", tmp_path / "x.gguf")
    assert_error(done, "cannot be calibrated")
    assert "--no-calibration" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["m.gguf"]
    done = lutra("convert", source, "--type", "cb4", "--no-calibration", "-o", tmp_path / "x.gguf")
    assert done.returncode == 0, done.stderr


# ---- kernels ---------------------------------------------------------------------------------


def test_info_lists_kernels():
    require_built()
    done = lutra("info", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["cpu_library"].startswith("libggml-cpu")
    kernels = json.loads(done.stdout)["kernels"]
    assert all(set(k) == {"name", "compiled", "supported", "chosen"} for k in kernels)
    assert all(k["supported"] for k in kernels if k["chosen"] or k["name"].endswith("_ref"))
    forced = json.loads(lutra("info", "--json", env={"LUTRA_KERNELS": "ref"}).stdout)["kernels"]
    assert {k["name"].rsplit("_", 1)[1] for k in forced if k["chosen"]} == {"ref"}


def foreign_set() -> str:
    return "avx2" if os.uname().machine == "aarch64" else "neon_dotprod"


@pytest.mark.parametrize("verb", [["info"], ["chat", "FILE", "-p", "a"], ["verify", "FILE"]])
@pytest.mark.parametrize("kind", [foreign_set(), "nonsense"])
def test_an_impossible_set_is_refused(verb, kind, tmp_path):
    require_built()
    model = write_gguf(tmp_path / "m.gguf", {"a.weight": cb_tensor(404, 8, 256)})
    args = [model if a == "FILE" else a for a in verb]
    done = lutra(*args, env={"LUTRA_KERNELS": kind})
    assert done.returncode > 0
    assert f"LUTRA_KERNELS={kind}" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


# ---- files -----------------------------------------------------------------------------------


def cb_file(path, metadata=None, change=None):
    """A file of one CB4 tensor; ``change`` gets its bytes."""
    kind, shape, data = cb_tensor(404, 64, 256)
    data = data.copy()
    if change:
        change(data)
    metadata = (
        METADATA | {LAYOUT_VERSION_KEY: type(METADATA["u32"])(1, METADATA["u32"].type)} | (metadata or {})
    )
    return write_gguf(path, {"blk.0.ffn_up.weight": (kind, shape, data)}, metadata)


def test_info_describes_a_file(tmp_path):
    path = cb_file(tmp_path / "m.gguf")
    info = json.loads(lutra("info", path, "--json").stdout)
    assert info["bytes"] == path.stat().st_size
    fmt = CB_FORMATS[404]
    assert info["tensors"] == [
        {"name": "blk.0.ffn_up.weight", "type": "CB4", "shape": [64, 256], "bytes": fmt.tensor_bytes(64, 256)}
    ]
    assert info["bpw"] == pytest.approx(8 * fmt.tensor_bytes(64, 256) / (64 * 256))
    assert info["layout_version"] == 1
    assert "blk.0.ffn_up.weight  CB4" in lutra("info", path).stdout


def damage_library(data):
    data[-1] = 0x80


def damage_scale(data):
    data[:16].view("<u2")[3] = 0x7C00


@pytest.mark.parametrize("change", [damage_library, damage_scale])
def test_verify_finds_damage(change, tmp_path):
    require_built()
    assert lutra("verify", cb_file(tmp_path / "good.gguf")).returncode == 0
    done = lutra("verify", cb_file(tmp_path / "bad.gguf", change=change))
    assert done.returncode == 1
    assert "FAIL" in done.stdout
    assert "blk.0.ffn_up.weight" in done.stdout
    assert "bad.gguf" in done.stderr


def test_verify_knows_one_layout_version(tmp_path):
    require_built()
    value = type(METADATA["u32"])(2, METADATA["u32"].type)
    done = lutra("verify", cb_file(tmp_path / "m.gguf", {LAYOUT_VERSION_KEY: value}))
    assert done.returncode == 1
    assert LAYOUT_VERSION_KEY in done.stdout


@pytest.fixture(scope="module")
def small_model(qwen, tmp_path_factory):
    require_built("llama-bench", "llama-perplexity")
    path = tmp_path_factory.mktemp("small") / "m.gguf"
    assert lutra("convert", qwen, "--type", "cb4", "--no-calibration", "-o", path).returncode == 0
    return path


def all_verbs(path, text):
    """Every verb that opens a file, as cheap as it can be."""
    questions = text.with_suffix(".jsonl")
    questions.write_text('{"question": "a", "answer": "b"}\n')
    return [
        ["info", path],
        ["verify", path],
        ["chat", path, "-p", "a", "-n", 2],
        ["bench", path, "-p", 8, "-n", 1, "-r", 1],
        ["eval", path, "--text", text, "--ctx", 64, "--chunks", 1],
        ["eval", path, "--questions", questions],
    ]


def test_truncated_files_are_one_line_errors(small_model, tmp_path):
    data = small_model.read_bytes()
    text = tmp_path / "t.txt"
    text.write_text("some words " * 200)
    path = tmp_path / "cut.gguf"
    for i, size in enumerate((len(data) // 2, len(data) - 100, 0, 3, 30, 1000)):
        path.write_bytes(data[:size])
        for verb in all_verbs(path, text)[
            :: 1 if i < 2 else 3
        ]:  # one reader meets the header, whatever the verb
            assert_error(lutra(*verb), "cut.gguf")


def test_flipped_bits_never_crash(small_model, tmp_path):
    data = bytearray(small_model.read_bytes())
    text = tmp_path / "t.txt"
    text.write_text("some words " * 200)
    path = tmp_path / "flipped.gguf"
    header = GGUFFile(small_model).data_offset
    chooser = random.Random(0)
    for i in range(6):
        position = chooser.randrange(header if i % 3 else len(data))
        data[position] ^= 1 << chooser.randrange(8)
        path.write_bytes(data)
        for verb in all_verbs(path, text):
            done = lutra(*verb)
            assert done.returncode >= 0, (position, verb, done.stderr)
            assert "Traceback" not in done.stderr, (position, verb, done.stderr)
            if done.returncode:
                assert done.stderr.splitlines()[-1].startswith("lutra: error: "), (
                    position,
                    verb,
                    done.stderr,
                )
        data = bytearray(small_model.read_bytes())
