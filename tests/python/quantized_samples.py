# SPDX-License-Identifier: MIT
"""Matrices as quantized checkpoints have them, made of random codes, and what they stand for.

Nothing here is shared with gguf_tools: values of codes follow from their bits one by one, words are written
bit by bit.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from gguf_samples import hf_model, read_hf, stored_names, to_bf16, write_safetensors, write_stored

Stored = dict[str, tuple[str, np.ndarray]]


def float8(code: int, exponent_bits: int) -> float:
    """The value of E4M3 (without infinities) or E5M2."""
    mantissa_bits = 7 - exponent_bits
    exponent, mantissa = code >> mantissa_bits & ((1 << exponent_bits) - 1), code & ((1 << mantissa_bits) - 1)
    if exponent_bits == 4 and code & 127 == 127:
        return np.nan
    if exponent_bits == 5 and exponent == 31:
        return np.nan if mantissa else np.inf * (-1) ** (code >> 7)
    bias = (1 << (exponent_bits - 1)) - 1
    fraction = mantissa / (1 << mantissa_bits) + (exponent > 0)
    return (-1) ** (code >> 7) * fraction * 2.0 ** (max(exponent, 1) - bias)


E4M3, E5M2 = (np.array([float8(code, bits) for code in range(256)], np.float32) for bits in (4, 5))
E2M1 = np.array(
    [(-1) ** (code >> 3) * [0, 0.5, 1, 1.5, 2, 3, 4, 6][code & 7] for code in range(16)], np.float32
)


def packed(codes: np.ndarray, bits: int, per_word: int = 0) -> np.ndarray:
    """Rows of codes as int32 words; ``per_word`` in each if a code must not go on in the next one."""
    rows = []
    for row in codes.tolist():
        stream = 0
        for i, code in enumerate(row):
            stream |= code << (i // per_word * 32 + i % per_word * bits if per_word else i * bits)
        words = -(-len(row) // per_word) if per_word else -(-len(row) * bits // 32)
        rows.append(np.frombuffer(stream.to_bytes(4 * words, "little"), "<i4"))
    return np.stack(rows)


def spread(scale: np.ndarray, shape: tuple[int, int], block: tuple[int, int]) -> np.ndarray:
    """A number of ``scale`` for each weight, by the block that it is in."""
    rows, columns = np.indices(shape)
    return scale[rows // block[0], columns // block[1]]


def bf16(rng: np.random.Generator, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Random positive numbers, as stored and as float32."""
    stored = to_bf16(rng.uniform(1e-3, 1e-2, shape))
    return stored, (stored.astype(np.uint32) << 16).view(np.float32)


@dataclass
class Form:
    """``make(rng, rows, k)``: what a matrix is stored as, by the end of its name, and its weights."""

    settings: dict
    make: Callable[[np.random.Generator, int, int], tuple[Stored, np.ndarray]] = field(repr=False)


FORMS: dict[str, Form] = {}


def form(name: str, **settings: object) -> Callable:
    """Register a form under what config.json says of it."""

    def add(make: Callable) -> Callable:
        FORMS[name] = Form(settings, make)
        return make

    return add


# ---- FP8 -------------------------------------------------------------------------------------


def codes8(rng: np.random.Generator, shape: tuple[int, ...], values: np.ndarray = E4M3) -> np.ndarray:
    """Random codes of finite numbers."""
    return rng.choice(np.flatnonzero(np.isfinite(values)).astype(np.uint8), shape)


@form("fp8 blocks", quant_method="fp8", weight_block_size=[128, 128], activation_scheme="dynamic")
def fp8_blocks(rng, rows, k):
    codes = codes8(rng, (rows, k))
    scale = rng.uniform(1e-4, 1e-3, (-(-rows // 128), -(-k // 128))).astype(np.float32)
    stored = {"weight": ("F8_E4M3", codes), "weight_scale_inv": ("F32", scale)}
    return stored, E4M3[codes] * spread(scale, (rows, k), (128, 128))


@form("fp8 powers of two", quant_method="fp8", weight_block_size=[64, 32])
def fp8_e8m0(rng, rows, k):
    codes = codes8(rng, (rows, k), E5M2)
    scale = rng.integers(110, 120, (-(-rows // 64), -(-k // 32)), np.uint8)
    stored = {"weight": ("F8_E5M2", codes), "weight_scale_inv": ("F8_E8M0", scale)}
    return stored, E5M2[codes] * spread(2.0 ** (scale - 127.0), (rows, k), (64, 32)).astype(np.float32)


@form("fp8 whole", quant_method="fp8", weight_block_size=None, activation_scheme="static")
def fp8_whole(rng, rows, k):
    codes, (scale, number) = codes8(rng, (rows, k)), bf16(rng, ())
    stored = {"weight": ("F8_E4M3", codes), "weight_scale_inv": ("BF16", scale)}
    return stored | {"activation_scale": ("BF16", scale)}, E4M3[codes] * number


@form("fp8 rows", quant_method="fbgemm_fp8", activation_scale_ub=1200.0)
def fp8_rows(rng, rows, k):
    codes, scale = codes8(rng, (rows, k)), rng.uniform(1e-4, 1e-3, (rows, 1)).astype(np.float32)
    bound = np.float32([1200])
    stored = {"weight": ("F8_E4M3", codes), "weight_scale": ("F32", scale), "input_scale_ub": ("F32", bound)}
    return stored, E4M3[codes] * scale


@form("fp8 of modelopt", quant_method="modelopt", quant_algo="FP8")
def fp8_modelopt(rng, rows, k):
    codes, scale = codes8(rng, (rows, k)), np.float32(rng.uniform(1e-4, 1e-3))
    stored = {"weight": ("F8_E4M3", codes), "weight_scale": ("F32", scale), "input_scale": ("F32", scale)}
    return stored, E4M3[codes] * scale


# ---- FP4 -------------------------------------------------------------------------------------


def nvfp4(rng, rows, k):
    codes, groups = rng.integers(0, 16, (rows, k), np.uint8), codes8(rng, (rows, k // 16)) & 127
    return codes, codes[:, ::2] | codes[:, 1::2] << 4, groups, spread(E4M3[groups], (rows, k), (1, 16))


@form("nvfp4 of modelopt", quant_method="modelopt", quant_algo="NVFP4")
def nvfp4_modelopt(rng, rows, k):
    codes, pairs, groups, scale = nvfp4(rng, rows, k)
    whole = np.float32(rng.uniform(1e-5, 1e-4))
    stored = {"weight": ("U8", pairs), "weight_scale": ("F8_E4M3", groups), "weight_scale_2": ("F32", whole)}
    return stored, E2M1[codes] * (scale * whole)


def compressed(kind: str, **weights: object) -> dict:
    """config.json of compressed-tensors with one group."""
    group = {"targets": ["Linear"], "weights": {"symmetric": True, **weights}, "input_activations": None}
    ignore = {"ignore": ["lm_head"], "quantization_status": "compressed"}
    return {
        "quant_method": "compressed-tensors",
        "format": kind,
        "config_groups": {"group_0": group},
        **ignore,
    }


@form(
    "nvfp4 of compressed-tensors",
    **compressed("nvfp4-pack-quantized", num_bits=4, type="float", group_size=16),
)
def nvfp4_compressed(rng, rows, k):
    codes, pairs, groups, scale = nvfp4(rng, rows, k)
    whole = rng.uniform(1e4, 1e5, 1).astype(np.float32)
    stored = {"weight_packed": ("U8", pairs), "weight_scale": ("F8_E4M3", groups)}
    stored |= {"weight_global_scale": ("F32", whole), "input_global_scale": ("F32", whole)}
    return stored, E2M1[codes] * (scale / whole)


@form("mxfp4", **compressed("mxfp4-pack-quantized", num_bits=4, type="float", group_size=32))
def mxfp4(rng, rows, k):
    codes, groups = (
        rng.integers(0, 16, (rows, k), np.uint8),
        rng.integers(110, 125, (rows, k // 32), np.uint8),
    )
    pairs = codes[:, ::2] | codes[:, 1::2] << 4
    scale = spread(2.0 ** (groups - 127.0), (rows, k), (1, 32)).astype(np.float32)
    return {"weight_packed": ("U8", pairs), "weight_scale": ("U8", groups)}, E2M1[codes] * scale


# ---- compressed-tensors ----------------------------------------------------------------------


@form("float rows", **compressed("float-quantized", num_bits=8, type="float", strategy="channel"))
def float_rows(rng, rows, k):
    codes, (scale, number) = codes8(rng, (rows, k)), bf16(rng, (rows, 1))
    return {"weight": ("F8_E4M3", codes), "weight_scale": ("BF16", scale)}, E4M3[codes] * number


@form("float whole", **compressed("float-quantized", num_bits=8, type="float", strategy="tensor"))
def float_whole(rng, rows, k):
    codes, (scale, number) = codes8(rng, (rows, k)), bf16(rng, (1,))
    return {"weight": ("F8_E4M3", codes), "weight_scale": ("BF16", scale)}, E4M3[codes] * number


@form(
    "float blocks",
    **compressed("float-quantized", num_bits=8, type="float", strategy="block", block_structure=[128, 128]),
)
def float_blocks(rng, rows, k):
    stored, weights = fp8_blocks(rng, rows, k)
    return {"weight": stored["weight"], "weight_scale": stored["weight_scale_inv"]}, weights


@form("mxfp8", **compressed("mxfp8-quantized", num_bits=8, type="float", strategy="group", group_size=32))
def mxfp8(rng, rows, k):
    codes, groups = codes8(rng, (rows, k)), rng.integers(110, 125, (rows, k // 32), np.uint8)
    scale = spread(2.0 ** (groups - 127.0), (rows, k), (1, 32)).astype(np.float32)
    return {"weight": ("F8_E4M3", codes), "weight_scale": ("U8", groups)}, E4M3[codes] * scale


@form("int rows", **compressed("int-quantized", num_bits=8, type="int", strategy="channel"))
def int_rows(rng, rows, k):
    codes, (scale, number) = rng.integers(-128, 128, (rows, k), np.int8), bf16(rng, (rows, 1))
    return {"weight": ("I8", codes), "weight_scale": ("BF16", scale)}, codes * number


@form("int groups", **compressed("int-quantized", num_bits=8, type="int", strategy="group", group_size=64))
def int_groups(rng, rows, k):
    codes, (scale, number) = rng.integers(-128, 128, (rows, k), np.int8), bf16(rng, (rows, k // 64))
    zero = rng.integers(-128, 128, number.shape, np.int8)
    stored = {"weight": ("I8", codes), "weight_scale": ("BF16", scale), "weight_zero_point": ("I8", zero)}
    zero = spread(zero.astype(np.float32), (rows, k), (1, 64))
    return stored, (codes - zero) * spread(number, (rows, k), (1, 64))


def pack(rng, rows, k, *, bits, group, per_word=0, zeros="", shuffled=False):
    """Integers as "pack-quantized" has them, with zero points that are "packed", "plain" or not there."""
    codes = rng.integers(0, 1 << bits, (rows, k))
    scale, number = bf16(rng, (rows, -(-k // group)))
    index = rng.permutation(k) // group if shuffled else np.arange(k) // group
    zero = np.full(number.shape, 1 << (bits - 1))
    stored = {
        "weight_packed": ("I32", packed(codes, bits, per_word)),
        "weight_scale": ("BF16", scale),
        "weight_shape": ("I64", np.array([rows, k], "<i8")),
    }
    if zeros:
        zero = rng.integers(0, 1 << bits, number.shape)
        words = np.ascontiguousarray(packed(zero.T, bits, per_word).T)
        plain = (zero - (1 << (bits - 1))).astype(np.int8)
        stored["weight_zero_point"] = ("I32", words) if zeros == "packed" else ("I8", plain)
    if shuffled:
        stored["weight_g_idx"] = "I32", index.astype("<i4")
    return stored, ((codes - zero[:, index]) * number[:, index]).astype(np.float32)


def pack_form(name: str, bits: int, group: int, **options: object) -> None:
    """Register a form of "pack-quantized"; a ``group`` of 0 is a whole row."""
    grouped = {"strategy": "group", "group_size": group} if group else {"strategy": "channel"}
    settings = compressed("pack-quantized", num_bits=bits, type="int", **grouped)
    form(name, **settings)(lambda rng, rows, k: pack(rng, rows, k, bits=bits, group=group or k, **options))


pack_form("packed", 4, 64)
pack_form("packed rows", 4, 0)
pack_form("packed 8 bits", 8, 64)
pack_form("packed rows with zero points", 4, 0, zeros="packed")
pack_form("packed with zero points", 4, 64, zeros="packed")
pack_form("packed with plain zero points", 4, 64, zeros="plain")
pack_form("packed in another order", 4, 64, zeros="packed", shuffled=True)
pack_form("packed 3 bits", 3, 64, zeros="packed")
pack_form("packed 5 bits", 5, 64)
pack_form("packed 3 bits by words", 3, 64, zeros="packed", per_word=10)


# ---- GPTQ and AWQ ----------------------------------------------------------------------------


def gptq(rng, rows, k, *, bits, group, less=1, shuffled=False, ordered=True):
    """GPTQ: ``less`` is what zero points are stored less."""
    codes, number = rng.integers(0, 1 << bits, (k, rows)), rng.uniform(1e-3, 1e-2, (k // group, rows))
    number = number.astype(np.float16)
    zero = rng.integers(0, 1 << bits, number.shape)
    index = rng.permutation(k) // group if shuffled else np.arange(k) // group
    stored = {
        "qweight": ("I32", np.ascontiguousarray(packed(codes.T, bits).T)),
        "qzeros": ("I32", packed((zero - less) % (1 << bits), bits)),
        "scales": ("F16", number),
    }
    if shuffled or ordered:
        stored["g_idx"] = "I32", index.astype("<i4")
    return stored, ((codes - zero[index]) * number.astype(np.float32)[index]).T.astype(np.float32)


def gptq_form(name: str, bits: int, group: int, **options: object) -> None:
    """Register a form of GPTQ; a ``group`` of -1 is a whole column."""
    settings = {"quant_method": "gptq", "bits": bits, "group_size": group}
    if options.get("less") == 0:
        settings["checkpoint_format"] = "gptq_v2"

    def make(rng, rows, k):
        return gptq(rng, rows, k, bits=bits, group=k if group == -1 else group, **options)

    form(name, **settings)(make)


gptq_form("gptq", 4, 64)
gptq_form("gptq without an index", 4, 64, ordered=False)
gptq_form("gptq in another order", 4, 64, shuffled=True)
gptq_form("gptq of whole columns", 4, -1)
gptq_form("gptq 2", 4, 64, less=0)
for width in (2, 3, 8):
    gptq_form(f"gptq {width} bits", width, 64)


@form("awq", quant_method="awq", bits=4, group_size=64, version="gemm", zero_point=True)
def awq(rng, rows, k):
    codes, number = (
        rng.integers(0, 16, (k, rows)),
        rng.uniform(1e-3, 1e-2, (k // 64, rows)).astype(np.float16),
    )
    zero = rng.integers(0, 16, number.shape)
    order = [0, 2, 4, 6, 1, 3, 5, 7]  # the rows of a word from its lowest bits on

    def words(values: np.ndarray) -> np.ndarray:
        return packed(values.reshape(len(values), -1, 8)[:, :, order].reshape(values.shape), 4)

    stored = {"qweight": ("I32", words(codes)), "qzeros": ("I32", words(zero)), "scales": ("F16", number)}
    weights = (codes - np.repeat(zero, 64, axis=0)) * np.repeat(number.astype(np.float32), 64, axis=0)
    return stored, np.ascontiguousarray(weights.T, np.float32)


# ---- BitNet ----------------------------------------------------------------------------------


def bitnet_form(name: str, weight: Callable[[np.float32], float], **settings: object) -> None:
    """Register a form of BitNet whose scale means what ``weight`` makes of it."""

    def make(rng, rows, k):
        trits, (scale, number) = rng.integers(-1, 2, (rows, k)), bf16(rng, (1,))
        codes = np.zeros((rows // 4, k), np.uint8)
        for i in range(rows):
            codes[i % (rows // 4)] |= (trits[i] + 1 << 2 * (i // (rows // 4))).astype(np.uint8)
        stored = {"weight": ("U8", codes), "weight_scale": ("BF16", scale)}
        return stored, (trits * np.float32(weight(number[0]))).astype(np.float32)

    form(name, quant_method="bitnet", **settings)(make)


bitnet_form("bitnet", lambda scale: np.float16(1 / scale))
bitnet_form("bitnet of AutoBitLinear", lambda scale: scale, linear_class="autobitlinear")


@form(
    "bitnet that is not rounded",
    quant_method="bitnet",
    linear_class="autobitlinear",
    quantization_mode="online",
)
def bitnet_online(rng, rows, k):
    stored = to_bf16(rng.standard_normal((rows, k)) * 0.05)
    w = (stored.astype(np.uint32) << 16).view(np.float32)
    scale = np.float32(1) / np.float32(np.abs(w).astype(np.float64).mean())
    third = np.float32(1) / scale  # the size of a weight, in bfloat16
    near = (np.array([third]).view(np.uint32) + 0x8000 & 0xFFFF0000).view(np.float32)[0]
    return {"weight": ("BF16", stored)}, np.where(abs(w * scale) > 0.5, np.sign(w) * near, 0).astype(
        np.float32
    )


# ---- models ----------------------------------------------------------------------------------

# Blocks of 128 are cut off at the ends, groups of 64 are not.
SMALL = {"hidden_size": 192, "intermediate_size": 320, "num_attention_heads": 3}


def quantized_model(
    directory: Path, settings: dict, make: Callable, architecture: str = "Qwen2ForCausalLM", **config: object
) -> tuple[Path, Path]:
    """A model whose matrices in blocks ``make`` has made, and the same one saved as F32."""
    config = {**SMALL, **config}
    plain = hf_model(directory / "plain", architecture, **config)
    model = hf_model(directory / "quantized", architecture, **config)
    tensors = {name: read_hf(plain, name) for name in stored_names(plain)}
    stored: Stored = {}
    rng = np.random.default_rng(1)
    for name, array in tensors.items():
        module = name.removesuffix(".weight")
        if ".layers." in name and array.ndim == 2 and not module.endswith(".gate"):
            parts, tensors[name] = make(rng, *array.shape)
            stored |= {f"{module}.{part}": value for part, value in parts.items()}
        else:
            stored[name] = "F32", array
    write_safetensors(plain / "model.safetensors", tensors, "F32")
    write_stored(model / "model.safetensors", dict(sorted(stored.items())))
    path = model / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": settings}))
    return model, plain
