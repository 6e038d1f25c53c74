# SPDX-License-Identifier: MIT
"""Quantized checkpoints are read as the weights that they stand for, to the bit, or one line says why not."""

from __future__ import annotations

import json

import numpy as np
import pytest
from gguf_samples import hf_model, read_hf, stored_names, to_bf16, write_safetensors, write_stored
from quantized_samples import (
    E4M3,
    E5M2,
    FORMS,
    SMALL,
    codes8,
    compressed,
    gptq,
    pack,
    quantized_model,
    spread,
)

from gguf_tools.errors import LutraError
from gguf_tools.formats.floats import to_float32
from gguf_tools.sources.dequantize import METHODS
from gguf_tools.sources.open import open_source

ALL = np.arange(256, dtype=np.uint8)


def read(model):
    with open_source(model) as source:
        return {t.name: (t.shape, t.keeps_f32, t.read()) for t in source.tensors}


def compare(model, plain):
    found, expected = read(model), read(plain)
    assert found.keys() == expected.keys()
    for name, (shape, keeps_f32, weights) in expected.items():
        assert found[name][:2] == (shape, keeps_f32), name
        assert np.array_equal(found[name][2], weights), name


@pytest.mark.parametrize(("dtype", "values"), [("F8_E4M3", E4M3), ("F8_E5M2", E5M2)])
def test_every_code_of_fp8(dtype, values):
    assert np.array_equal(to_float32(ALL, dtype, 256), values, equal_nan=True)


@pytest.mark.torch
@pytest.mark.parametrize(
    ("dtype", "name"),
    [("F8_E4M3", "float8_e4m3fn"), ("F8_E5M2", "float8_e5m2"), ("F8_E8M0", "float8_e8m0fnu")],
)
def test_every_code_of_fp8_is_that_of_torch(dtype, name):
    import torch

    values = torch.from_numpy(ALL.copy()).view(getattr(torch, name)).float().numpy()
    assert np.array_equal(to_float32(ALL, dtype, 256), values, equal_nan=True)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_weights_are_what_the_codes_stand_for(tmp_path, form):
    compare(*quantized_model(tmp_path, form.settings, form.make))


def test_every_method_is_tried():
    assert {form.settings["quant_method"] for form in FORMS.values()} == set(METHODS)


@pytest.mark.parametrize("architecture", ["LlamaForCausalLM", "Qwen3MoeForCausalLM"])
@pytest.mark.parametrize("name", ["fp8 blocks", "packed in another order", "gptq", "awq", "mxfp4"])
def test_rows_are_reordered_and_experts_stacked(tmp_path, name, architecture):
    form = FORMS[name]
    compare(*quantized_model(tmp_path, form.settings, form.make, architecture))


@pytest.mark.parametrize(
    "name", ["fp8 blocks", "packed with zero points", "gptq in another order", "awq", "mxfp4"]
)
def test_any_rows_can_be_asked_for(tmp_path, name):
    model, _ = quantized_model(tmp_path, FORMS[name].settings, FORMS[name].make)
    with open_source(model) as source:
        tensor = next(t for t in source.tensors if t.name == "blk.0.ffn_up.weight")
        whole = tensor.read()
        for part in ((0, 1), (3, 131), (129, 130), (200, 320), (7, 7)):
            assert np.array_equal(tensor.read(*part), whole[slice(*part)]), part


# ---- stacks of experts -----------------------------------------------------------------------


def fused(tensors):
    """Experts as transformers has them in memory."""
    kept = {name: array for name, array in tensors.items() if ".experts." not in name}
    block = "model.layers.0.mlp.experts."
    for name in tensors:
        if name.endswith(".experts.0.gate_proj.weight"):
            block = name.removesuffix("0.gate_proj.weight")
            count = sum(other.startswith(block) for other in tensors) // 3
            gate, up, down = (
                np.stack([tensors[f"{block}{i}.{part}_proj.weight"] for i in range(count)])
                for part in ("gate", "up", "down")
            )
            kept |= {f"{block}gate_up_proj": np.concatenate([gate, up], axis=1), f"{block}down_proj": down}
    return kept


@pytest.mark.parametrize("end", ["", ".weight"])
def test_experts_that_are_stacked_already(tmp_path, end):
    plain = hf_model(tmp_path / "m", "Qwen3MoeForCausalLM", **SMALL)
    model = hf_model(tmp_path / "s", "Qwen3MoeForCausalLM", **SMALL)
    tensors = fused({name: read_hf(plain, name) for name in stored_names(plain)})
    tensors = {name + end if name.endswith("_proj") else name: array for name, array in tensors.items()}
    write_safetensors(model / "model.safetensors", tensors)
    compare(model, plain)


def test_mixtrals_experts_by_the_names_of_transformers(tmp_path):
    plain = hf_model(tmp_path / "m", "MixtralForCausalLM", **SMALL)
    model = hf_model(tmp_path / "s", "MixtralForCausalLM", **SMALL)
    names = {"block_sparse_moe": "mlp", "w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
    tensors = {}
    for name in stored_names(plain):
        words = [names.get(word, word) for word in name.split(".")]
        tensors[".".join(words)] = read_hf(plain, name)
    write_safetensors(model / "model.safetensors", fused(tensors))
    compare(model, plain)


def test_stacks_of_fp8(tmp_path):
    """A scale for each block of each expert, or one for each expert."""
    plain = hf_model(tmp_path / "m", "Qwen3MoeForCausalLM", **SMALL)
    model = hf_model(tmp_path / "s", "Qwen3MoeForCausalLM", **SMALL)
    tensors = {name: read_hf(plain, name) for name in stored_names(plain)}
    stored, rng = {}, np.random.default_rng(2)
    for name, array in fused(tensors).items():
        if name.endswith("gate_up_proj"):
            codes, grid = (
                codes8(rng, array.shape),
                (array.shape[0], array.shape[1] // 64, array.shape[2] // 64),
            )
            scale = rng.uniform(1e-3, 1e-2, grid).astype(np.float32)
            of = np.stack([spread(s, array.shape[1:], (64, 64)) for s in scale])
        elif name.endswith("down_proj"):
            codes, scale = codes8(rng, array.shape), rng.uniform(1e-3, 1e-2, len(array)).astype(np.float32)
            of = scale[:, None, None]
        else:
            stored[name] = "BF16", to_bf16(array)
            continue
        stored |= {name: ("F8_E4M3", codes), f"{name}_scale_inv": ("F32", scale)}
        weights = E4M3[codes] * of
        for i, expert in enumerate(weights):
            parts = np.split(expert, 2) if "gate_up" in name else [expert]
            for part, rows in zip(("gate", "up") if "gate_up" in name else ("down",), parts, strict=True):
                tensors[
                    name.replace("gate_up_proj", "down_proj").replace("down", f"{i}.{part}") + ".weight"
                ] = rows
    write_stored(model / "model.safetensors", stored)
    write_safetensors(plain / "model.safetensors", tensors, "F32")
    configure(model, quantization_config={"quant_method": "fp8", "weight_block_size": [64, 64]})
    compare(model, plain)


def configure(model, **changes):
    path = model / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# ---- what is not quantized, or not as config.json says ---------------------------------------


def test_fp8_without_scales(tmp_path):
    """Weights that were only cast."""
    plain, model = hf_model(tmp_path / "m", **SMALL), hf_model(tmp_path / "s", **SMALL)
    rng = np.random.default_rng(3)
    shapes = {name: read_hf(plain, name).shape for name in stored_names(plain)}
    codes = {name: codes8(rng, shape) for name, shape in shapes.items()}
    write_stored(model / "model.safetensors", {name: ("F8_E4M3", array) for name, array in codes.items()})
    write_safetensors(
        plain / "model.safetensors", {name: E4M3[array] for name, array in codes.items()}, "F32"
    )
    compare(model, plain)


@pytest.mark.parametrize("name", ["fp8 of modelopt", "nvfp4 of modelopt"])
def test_modelopt_without_a_word_in_config(tmp_path, name):
    """Former versions had hf_quant_config.json instead."""
    compare(*quantized_model(tmp_path, None, FORMS[name].make))


def test_a_name_that_ends_like_a_scale(tmp_path):
    """It is no scale where there is nothing to be scaled."""
    model = damaged(tmp_path, "fp8 blocks", lambda stored: stored.pop("weight"))
    refused(model, "weight_scale_inv' is no part of a Qwen2ForCausalLM")


def test_a_bias_that_adds_nothing_is_left_out(tmp_path):
    """AutoGPTQ writes one for each matrix; llama.cpp refuses those that a family does not have."""

    def make(rng, rows, k):
        stored, weights = gptq(rng, rows, k, bits=4, group=64)
        return stored | {"bias": ("F16", np.zeros(rows, np.float16))}, weights

    compare(*quantized_model(tmp_path, FORMS["gptq"].settings, make, "LlamaForCausalLM"))


def test_groups_of_modules(tmp_path):
    """Two schemes in one model: by name, and for all others."""
    settings = compressed("pack-quantized", num_bits=4, type="int", group_size=64)
    eight = {"targets": ["re:.*down_proj"], "weights": {"num_bits": 8, "type": "int", "strategy": "channel"}}
    settings["config_groups"]["group_1"] = eight

    def make(rng, rows, k):
        is_down = (rows, k) == (192, 320)
        return pack(rng, rows, k, bits=8 if is_down else 4, group=k if is_down else 64)

    compare(*quantized_model(tmp_path, settings, make))


# ---- damage ----------------------------------------------------------------------------------


def refused(model, *words):
    with pytest.raises(LutraError) as error:
        read(model)
    text = str(error.value)
    assert "\n" not in text
    for word in words:
        assert word in text, text


def damaged(tmp_path, name, change, **settings):
    """A model of the form ``name`` after ``change`` of what each matrix is stored as."""
    form = FORMS[name]

    def make(rng, rows, k):
        stored, weights = form.make(rng, rows, k)
        change(stored)
        return stored, weights

    return quantized_model(tmp_path, form.settings | settings, make)[0]


def without(name):
    return lambda stored: stored.pop(name)


def cut(name, axis=0):
    def change(stored):
        dtype, array = stored[name]
        stored[name] = dtype, np.ascontiguousarray(np.delete(array, -1, axis))

    return change


def as_type(name, dtype, kind):
    return lambda stored: stored.update({name: (dtype, stored[name][1].astype(kind))})


def filled(name, value):
    return lambda stored: stored.update({name: (stored[name][0], np.full_like(stored[name][1], value))})


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("fp8 blocks", without("weight_scale_inv"), "has no 'weight_scale_inv' beside it"),
        ("fp8 blocks", cut("weight_scale_inv", 1), "[192, 320] or for each row or block of [128, 128]"),
        ("fp8 blocks", filled("weight_scale_inv", np.nan), "has a NaN or an infinity in row 0"),
        ("fp8 blocks", filled("weight", 0x7F), "has a NaN or an infinity in row 0"),
        ("fp8 blocks", as_type("weight_scale_inv", "I32", np.int32), "not numbers"),
        ("fp8 blocks", as_type("weight", "I8", np.int8), "is I8, which is no float"),
        ("fp8 rows", cut("weight_scale"), "or for each row"),
        ("packed", without("weight_scale"), "has no 'weight_scale' beside it"),
        ("packed", without("weight_shape"), "has no 'weight_shape' beside it"),
        ("packed", cut("weight_packed", 1), "words of 320 times 4 bits"),
        ("packed", cut("weight_packed"), "not I32 [192, 40]"),
        ("packed", filled("weight_shape", -5), "not I32 [-5, 40]"),
        ("packed", filled("weight_shape", 1 << 62), "words of 4611686018427387904 times 4 bits"),
        ("packed", cut("weight_shape"), "not I64 or I32 [2]"),
        ("packed", cut("weight_scale", 1), "or for each row or block of [1, 64]"),
        ("packed", as_type("weight_packed", "I64", np.int64), "not I32 [192, 40]"),
        ("packed with zero points", cut("weight_zero_point"), "words of 192 times 4 bits"),
        ("packed with zero points", cut("weight_zero_point", 1), "weight_zero_point' is I32"),
        ("packed with plain zero points", cut("weight_zero_point"), "weight_zero_point' is I8"),
        ("packed in another order", filled("weight_g_idx", 3), "numbers of 3 groups"),
        ("packed in another order", cut("weight_g_idx"), "not I32 or I64 [320]"),
        ("int groups", cut("weight_zero_point", 1), "weight_zero_point' is I8"),
        ("mxfp4", cut("weight_scale", 1), "not U8 or F8_E8M0 [192, 10]"),
        ("mxfp4", filled("weight_scale", 255), "has a NaN or an infinity in row 0"),
        ("nvfp4 of modelopt", without("weight_scale"), "has no 'weight_scale' beside it"),
        ("nvfp4 of modelopt", filled("weight_scale_2", np.nan), "has a NaN or an infinity"),
        ("nvfp4 of modelopt", without("weight_scale_2"), "is U8, which is no float"),
        ("gptq", without("scales"), "has no 'scales' beside it"),
        ("gptq", without("qzeros"), "has no 'qzeros' beside it"),
        ("gptq", cut("scales"), "not F16 or BF16 or F32 [5, 192]"),
        ("gptq", cut("qzeros", 1), "not I32 [5, 24]"),
        ("gptq", cut("qweight"), "not I32 or I64 [312]"),
        ("gptq without an index", cut("qweight"), "has the shape [192, 312], but config.json makes"),
        ("gptq", filled("g_idx", -1), "numbers of 5 groups"),
        ("gptq", filled("scales", np.inf), "has a NaN or an infinity"),
        ("gptq", as_type("qweight", "F32", np.float32), "not I32"),
        ("awq", cut("qweight", 1), "not F16 or BF16 or F32"),
        ("awq", cut("qzeros"), "not I32 [5, 24]"),
    ],
)  # fmt: skip
def test_damage_is_named(tmp_path, name, change, words):
    refused(damaged(tmp_path, name, change), words)


def packed_with(**weights):
    return compressed("pack-quantized", **weights)


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("fp8 blocks", {"weight_block_size": [100, 128]}, "or for each row or block of [100, 128]"),
        ("fp8 blocks", {"weight_block_size": [0, 128]}, "blocks of [0, 128]"),
        ("fp8 blocks", {"weight_block_size": [128]}, "blocks of [128]"),
        ("packed", {"config_groups": {}}, "says nothing about model.layers.0"),
        ("packed", {"config_groups": []}, "says nothing about model.layers.0"),
        ("packed", packed_with(num_bits=9, group_size=64), "'num_bits' of its quantization is 9"),
        ("packed", packed_with(num_bits=4, group_size="x"), "'group_size' of its quantization is 'x'"),
        ("packed", packed_with(num_bits=4, group_size=48), "or for each row or block of [1, 48]"),
        ("gptq", {"bits": 5}, "'bits' of its quantization is 5"),
        ("gptq", {"bits": True}, "'bits' of its quantization is True"),
        ("gptq", {"group_size": 0}, "'group_size' of its quantization is 0"),
        ("gptq", {"group_size": 48}, "not F16 or BF16 or F32 [7, 192]"),
        ("gptq", {"checkpoint_format": "marlin"}, "GPTQ's format 'marlin'"),
        ("awq", {"version": "gemv"}, "AWQ's version 'gemv'"),
        ("packed", {"quant_method": "bitsandbytes"}, "quantized by bitsandbytes, which is not read (fp8"),
        ("packed", {"quant_method": None}, "quantized by None, which is not read"),
        ("gptq", {"quant_method": "awq"}, "g_idx' is I32, which is no float"),
        ("awq", {"quant_method": "fp8"}, "is I32, which is no float"),
    ],
)  # fmt: skip
def test_settings_that_are_not_read(tmp_path, name, settings, words):
    refused(damaged(tmp_path, name, lambda stored: None, **settings), words)


def test_weights_of_integers_without_a_word_in_config(tmp_path):
    model = damaged(tmp_path, "gptq", lambda stored: None)
    configure(model, quantization_config=None)
    refused(model, "is I32, which is no float", "start from the original")


def test_stacks_of_odd_rows(tmp_path):
    model = hf_model(tmp_path / "m", "Qwen3MoeForCausalLM", **SMALL)
    tensors = fused({name: read_hf(model, name) for name in stored_names(model)})
    name = next(name for name in tensors if name.endswith("gate_up_proj"))
    write_safetensors(model / "model.safetensors", tensors | {name: tensors[name][:, :-1]})
    refused(model, "255 rows, no two halves")
