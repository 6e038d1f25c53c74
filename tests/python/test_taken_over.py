# SPDX-License-Identifier: MIT
"""Models that were trained in few bits are taken over: the file stands for the very same numbers."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from cli_runner import lutra
from gguf import GGMLQuantizationType as Q
from gguf_samples import METADATA, write_gguf
from quantized_samples import FORMS, quantized_model

from gguf_tools.errors import LutraError
from gguf_tools.formats.catalog import RECIPES
from gguf_tools.reader import GGUFFile, type_name
from gguf_tools.rows import read_rows
from gguf_tools.sources.open import open_source
from lutra.conversion.imports import take_over
from lutra.conversion.options import ConversionOptions
from lutra.conversion.pipeline import convert, preview
from lutra.conversion.plan import Rules, plan

ROWS, K = 128, 512
NAME = "blk.0.ffn_up.weight"


def q2_0(rng):
    """Blocks as llama.cpp has them: a scale, then 64 weights by four in a byte, and what they stand for."""
    levels, scale = rng.integers(-1, 3, (ROWS, K)), rng.uniform(0.01, 0.02, (ROWS, K // 64)).astype("<f2")
    codes = (levels + 1).reshape(ROWS, K // 64, 16, 4)
    packed = (codes << np.arange(0, 8, 2)).sum(axis=-1).astype(np.uint8)
    data = np.concatenate([scale[..., None].view(np.uint8), packed], axis=-1)
    return data.reshape(ROWS, -1), levels * np.repeat(scale.astype(np.float32), 64, axis=1)


def mxfp4(rng, octaves):
    """Blocks of 32: an exponent, then codes, and what they stand for."""
    codes = rng.integers(0, 16, (ROWS, K // 32, 16), np.uint8) | rng.integers(1, 8, (1, 1, 16), np.uint8) << 4
    exponents = rng.integers(120, 121 + octaves, (ROWS, K // 32, 1), np.uint8)
    data = np.concatenate([exponents, codes], axis=-1).reshape(ROWS, -1)
    return data, gguf.quants.dequantize(data, Q.MXFP4)


def of_type(kind):
    data = gguf.quants.quantize(np.random.default_rng(0).normal(size=(ROWS, K)).astype(np.float32), kind)
    return data, gguf.quants.dequantize(data, kind)


def model_of(path, kind, data):
    """A model with one matrix that is quantized."""
    norm = np.ones(K, np.float32)
    tensors = {NAME: (kind, (ROWS, K), data), "output_norm.weight": (Q.F32, (K,), norm)}
    return write_gguf(path, tensors, METADATA)


def made(source, kind="cb4", **options):
    """The type of the matrix in the file that is made, its numbers, and the report."""
    output = source.with_name(f"{source.stem}-{kind}.gguf")
    result = convert(source, ConversionOptions(type=kind, calibrate=False, **options), output)
    with GGUFFile(output) as file:
        info = file.tensors[NAME]
        return type_name(info.type), read_rows(file, info, 0, ROWS), result


RNG = np.random.default_rng
SIZES = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4, "num_key_value_heads": 4}


@pytest.mark.parametrize(
    ("kind", "content", "wanted", "found"),
    [
        (Q.TQ1_0, of_type(Q.TQ1_0), "cb4", "CB2"),
        (Q.TQ2_0, of_type(Q.TQ2_0), "cb2", "CB2"),
        (42, q2_0(RNG(0)), "cb3", "CB2_64"),  # each 64 weights have a scale
        (42, q2_0(RNG(0)), "cb2", "CB2_64"),
        (Q.MXFP4, mxfp4(RNG(0), 3), "cb4", "CB4"),
        (Q.MXFP4, mxfp4(RNG(0), 6), "cb4", "MXFP4"),
        (Q.MXFP4, mxfp4(RNG(0), 3), "cb4_m", "CB4"),
        (Q.Q4_0, of_type(Q.Q4_0), "cb4", "Q4_0"),
    ],
)
def test_a_matrix_of_llama_cpp(tmp_path, kind, content, wanted, found, capsys):
    data, weights = content
    source = model_of(tmp_path / "m.gguf", kind, data)
    is_ternary = kind in (Q.TQ1_0, Q.TQ2_0, 42)
    name, values, result = made(source, wanted, allow_requantize=not is_ternary)
    assert name == found
    assert np.array_equal(values, weights)
    (matrix,) = (tensor for tensor in result.tensors if tensor.name == NAME)
    assert (matrix.loss, matrix.exact) == (0.0, True)
    how = f"as they are, in {found}" if found in ("MXFP4", "Q4_0") else f"exactly, as {found}"
    said = capsys.readouterr().err
    assert f"tensors taken over: 1 {how}" in said
    assert "quantized already" not in said


def test_fewer_bits_than_the_source_has_are_learned(tmp_path, capsys):
    data, weights = mxfp4(RNG(0), 3)
    name, values, result = made(model_of(tmp_path / "m.gguf", Q.MXFP4, data), "cb2", allow_requantize=True)
    assert name == "CB2"
    assert not np.array_equal(values, weights)
    assert not any(tensor.exact for tensor in result.tensors if tensor.name == NAME)
    said = capsys.readouterr().err
    assert "taken over" not in said
    assert "is quantized already (MXFP4)" in said


def test_a_type_that_is_named_counts(tmp_path):
    data, weights = of_type(Q.TQ2_0)
    source = model_of(tmp_path / "m.gguf", Q.TQ2_0, data)
    name, values, _ = made(source, "cb2", tensor_types=("ffn=cb4",))
    assert (name, np.array_equal(values, weights)) == ("CB4", True)  # which can be exact, too
    assert made(source, "cb3", tensor_types=("ffn=q8_0",))[0] == "Q8_0"
    assert made(source, "f16")[0] == "F16"


@pytest.mark.parametrize("architecture", ["LlamaForCausalLM", "BitNetForCausalLM"])
@pytest.mark.parametrize("form", [name for name in FORMS if name.startswith("bitnet")])
def test_bitnet_checkpoints(tmp_path, form, architecture):
    form = FORMS[form]
    model, plain = quantized_model(tmp_path, form.settings, form.make, architecture, **SIZES)
    options = ConversionOptions(type="cb4", calibrate=False)
    result = convert(model, options, tmp_path / "out.gguf")
    exact = {tensor.name for tensor in result.tensors if tensor.exact}
    with open_source(plain) as original, GGUFFile(tmp_path / "out.gguf") as file:
        for tensor in original.tensors:
            info = file.tensors[tensor.name]
            if tensor.name.startswith("blk.") and not tensor.keeps_f32:
                assert type_name(info.type) == "CB2"
                assert tensor.name in exact
                assert np.array_equal(read_rows(file, info, 0, tensor.rows), tensor.read())
    assert exact
    assert preview(model, options, tmp_path / "out.gguf").count("exact") == len(exact)


def test_calibration_goes_on_behind_what_is_exact(tmp_path):
    """Embeddings and output are calibrated, the rest is taken over."""
    form = FORMS["bitnet of AutoBitLinear"]
    model, _ = quantized_model(tmp_path, form.settings, form.make, "LlamaForCausalLM", **SIZES)
    text = tmp_path / "text.txt"
    text.write_text("A text that is long enough to be cut into pieces. " * 100)
    out = tmp_path / "out.gguf"
    done = lutra("convert", model, "--type", "cb3", "--calibration", text, "-o", out, "--pure")
    assert done.returncode == 0, done.stderr
    assert "7 exactly, as CB2" in done.stderr
    assert done.stderr.count("dB") == 0  # no bar without a terminal
    with GGUFFile(out) as file:
        assert [type_name(t.type) for t in file.tensors.values()].count("CB2") == 7
        assert "lutra.convert.uncalibrated" not in file.metadata


def test_a_matrix_that_begins_like_a_grid(tmp_path):
    w = np.random.default_rng(0).choice([-0.5, 0, 0.5], (ROWS, K)).astype(np.float16)
    w[-1, -1] = 0.3
    source = model_of(tmp_path / "m.gguf", Q.F16, w)
    name, _, result = made(source, "cb4")
    assert name == "CB4"
    assert not any(tensor.exact for tensor in result.tensors if tensor.name == NAME)


def test_zeros_say_nothing(tmp_path):
    source = model_of(tmp_path / "m.gguf", Q.F16, np.zeros((ROWS, K), np.float16))
    assert made(source, "cb4")[0] == "CB4"


def test_codes_of_mxfp4_need_the_option_unless_the_model_is_published_so(tmp_path):
    source = model_of(tmp_path / "m.gguf", Q.MXFP4, mxfp4(RNG(0), 3)[0])
    with pytest.raises(LutraError, match="--allow-requantize"):
        made(source)


def test_where_a_size_is_met_no_tensor_grows(tmp_path):
    """Super-blocks of 64 take more than what was planned; the published type does not."""
    source, rules = model_of(tmp_path / "m.gguf", 42, q2_0(RNG(0))[0]), Rules(RECIPES["cb2"])
    with open_source(source) as opened:
        planned = plan(opened.tensors, rules)
        for may_grow, found in ((True, "CB2_64"), (False, "Q2_0")):
            taken = take_over(planned, rules, 1, may_grow=may_grow)
            assert {p.name: p.type_name for p in taken}[NAME] == found


def test_weights_beyond_all_codebooks_are_an_error_of_one_line(tmp_path):
    w = np.ones((ROWS, K), np.float32)
    w[0, 0] = 1e9
    with pytest.raises(LutraError, match=NAME):
        made(model_of(tmp_path / "m.gguf", Q.F32, w))
