# SPDX-License-Identifier: MIT
"""Rotary embeddings: their keys, Llama 3's frequency factors, and the order of rows that they need."""

from __future__ import annotations

import math

import gguf
import numpy as np
from numpy.typing import NDArray

from gguf_tools.errors import LutraError
from gguf_tools.sources.config import Config

# Two names of one kind.
LONG = ("longrope", "su")
# Whose graphs have frequency factors, Llama 3's and those for long contexts.
_WITH_FACTORS = ("llama", "granite")


def add_scaling(writer: gguf.GGUFWriter, config: Config) -> None:
    """Add the keys ``rope.scaling.*``. Raises ``LutraError`` for a kind of scaling that the graph has not.

    llama.cpp's converter would leave it out without a word.
    """
    rope = config.rope
    kind = rope.get("rope_type")
    if kind in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(kind))
        writer.add_rope_scaling_factor(rope["factor"])
        if kind == "yarn":
            writer.add_rope_scaling_orig_ctx_len(rope.get("original_max_position_embeddings", config.context))
            for key, add in (  # what is absent has its default in llama.cpp
                ("extrapolation_factor", writer.add_rope_scaling_yarn_ext_factor),
                ("attention_factor", writer.add_rope_scaling_yarn_attn_factor),
                ("beta_fast", writer.add_rope_scaling_yarn_beta_fast),
                ("beta_slow", writer.add_rope_scaling_yarn_beta_slow),
            ):
                if rope.get(key) is not None:
                    add(rope[key])
            _add_attention_factor(writer, config)
    elif kind in LONG and writer.arch in _WITH_FACTORS:
        _add_long(writer, config)
    elif kind == "llama3" and writer.arch in _WITH_FACTORS:
        pass
    elif kind not in (None, "default", "dynamic"):  # dynamic: nothing changes within the context
        raise LutraError(
            f"{config.path}: rope type {kind!r} is none that llama.cpp computes in a {config.architecture}"
        )


def _add_long(writer: gguf.GGUFWriter, config: Config) -> None:
    trained = int(config.positive("original_max_position_embeddings", config.rope))
    stretch = config.rope.get("factor", config.context / trained)
    factor = math.sqrt(1 + math.log(max(stretch, 1)) / math.log(trained))
    writer.add_rope_scaling_type(gguf.RopeScalingType.LONGROPE)
    writer.add_rope_scaling_orig_ctx_len(trained)
    writer.add_rope_scaling_attn_factors(config.rope.get("attention_factor", factor))


def _add_attention_factor(writer: gguf.GGUFWriter, config: Config) -> None:
    """Add yarn's factor of attention, in relation to the one that llama.cpp computes itself."""
    rope = config.rope

    def scale(slope: float) -> float:
        return 0.1 * slope * math.log(max(rope["factor"], 1)) + 1

    factor = rope.get("attention_factor")
    if factor is None and rope.get("mscale") and rope.get("mscale_all_dim"):
        factor = scale(rope["mscale"]) / scale(rope["mscale_all_dim"])
    if factor is not None and not math.isclose(factor, scale(1), rel_tol=1e-4):
        writer.add_rope_scaling_attn_factors(factor / scale(1))
    if rope.get("truncate") is False:
        raise LutraError(f"{config.path}: rope has truncate false, which llama.cpp does not compute")


def factors(config: Config) -> dict[str, NDArray[np.float32]]:
    """Tensors of frequency factors that follow from config.json, by their names in GGUF."""
    if config.rope.get("rope_type") in LONG:
        return {f"rope_factors_{x}.weight": _long_factors(config, f"{x}_factor") for x in ("long", "short")}
    made = _llama3_factors(config)
    return {} if made is None else {"rope_freqs.weight": made}


def turned(config: Config) -> int:
    """How much of a head turns with its position."""
    share = config.rope.get("partial_rotary_factor", config.values.get("partial_rotary_factor", 1.0))
    if not isinstance(share, int | float) or not 0 < share <= 1:
        raise LutraError(f"{config.path}: partial_rotary_factor is {share!r}, not between 0 and 1")
    return int(share * config.head_dim)


def _long_factors(config: Config, key: str) -> NDArray[np.float32]:
    """(rotary dimensions / 2,), one of the two lists of factors for contexts beyond the trained one."""
    found, count = config.rope.get(key), turned(config) // 2
    if not isinstance(found, list) or len(found) != count:
        raise LutraError(f"{config.path}: rope type 'longrope', but its {key} is no list of {count} numbers")
    for factor in found:
        if not isinstance(factor, int | float) or not 0 < factor < 1e30:
            raise LutraError(f"{config.path}: {key} has {factor!r}, not a positive number")
    return np.array(found, np.float32)


def _llama3_factors(config: Config) -> NDArray[np.float32] | None:
    """Llama 3's frequency factors (head_dim / 2,), None without: 1 for short wavelengths, ``factor`` for long
    ones, between them interpolated in frequency (arXiv 2407.21783 gives the recipe's constants)."""
    rope = config.rope
    if rope.get("rope_type") != "llama3":
        return None
    factor = rope.get("factor", 8.0)
    low, high = rope.get("low_freq_factor", 1.0), rope.get("high_freq_factor", 4.0)
    context = rope.get("original_max_position_embeddings", 8192)
    if low >= high:
        raise LutraError(f"{config.path}: low_freq_factor {low} is not below high_freq_factor {high}")
    wavelength = 2 * math.pi * config.rope_theta ** (np.arange(0, config.head_dim, 2) / config.head_dim)
    smooth = (context / wavelength - low) / (high - low)
    factors = np.where(wavelength > context / low, factor, 1 / ((1 - smooth) / factor + smooth))
    return np.where(wavelength < context / high, 1, factors).astype(np.float32)


def interleaved(heads: int, head_dim: int) -> NDArray[np.intp]:
    """Rows of q or k as llama.cpp's llama graph wants them: per head the two halves, which Hugging
    Face rotates against each other, interleaved: 0, half, 1, half + 1, ..."""
    rows = np.arange(heads * head_dim).reshape(heads, 2, head_dim // 2)
    order: NDArray[np.intp] = rows.swapaxes(1, 2).reshape(-1)
    return order
