# SPDX-License-Identifier: MIT
"""Gemma 3, its text alone: norms around both parts of a block; most layers attend to a window."""

from __future__ import annotations

from pathlib import Path

import gguf

from gguf_tools.errors import LutraError
from gguf_tools.sources.config import Config
from gguf_tools.sources.family import (
    Family,
    add_common_keys,
    as_stored,
    gated_matrices,
    is_vector,
    norms_before,
)
from gguf_tools.sources.vocab import add_vocabulary

_STEP = 6  # one of so many layers has no window, where no key says otherwise
_LARGEST = 62  # layers of the 27B model, whose attention has another scale


def norms_around(config: Config) -> dict[str, int]:
    """The vectors of a block with norms before and after both of its parts."""
    return norms_before(config) | {"post_attention_norm": config.hidden, "post_ffw_norm": config.hidden}


def check_attention(config: Config, largest: int) -> None:
    """Raise ``LutraError`` unless attention is as llama.cpp scales it, with ``largest`` layers otherwise."""
    scale = config.hidden // config.heads if config.layers == largest else config.head_dim
    wanted = config.positive("query_pre_attn_scalar")
    if wanted != scale:
        raise LutraError(
            f"{config.path}: query_pre_attn_scalar is {wanted:g}, but llama.cpp computes with {scale}"
        )
    if config.values.get("use_bidirectional_attention"):
        raise LutraError(
            f"{config.path}: use_bidirectional_attention is no part of a model that predicts text"
        )


def windows(config: Config, step: int) -> list[bool]:
    """Of each layer, whether it attends to a window; all but every ``step``th where config.json is silent."""
    kinds = config.values.get("layer_types")
    if not kinds:
        step = config.values.get("sliding_window_pattern", step)
        return [(i + 1) % step != 0 for i in range(config.layers)]
    if len(kinds) != config.layers:
        raise LutraError(f"{config.path}: has {len(kinds)} layer_types for {config.layers} layers")
    return [kind == "sliding_attention" for kind in kinds]


def add_windows(writer: gguf.GGUFWriter, config: Config, step: int) -> None:
    """The window, and which layers attend to it if they are others than llama.cpp takes for granted."""
    found = windows(config, step)
    if any(found):
        writer.add_sliding_window(int(config.positive("sliding_window")))
        if found != [(i + 1) % step != 0 for i in range(config.layers)]:
            writer.add_sliding_window_pattern(found)


def add_gemma_vocabulary(writer: gguf.GGUFWriter, directory: Path, config: Config) -> None:
    """The tokenizer's keys: no space is put in front of a text."""
    add_vocabulary(writer, directory, config.vocab)
    if writer.kv_data[0]["tokenizer.ggml.model"].value == "llama":
        writer.add_add_space_prefix(False)


def window_theta(config: Config) -> float:
    """Base of the rotary frequencies in layers with a window."""
    rope = config.values.get("rope_parameters") or {}
    local = rope.get("sliding_attention") or {}
    if local.get("rope_type", "default") != "default":
        raise LutraError(
            f"{config.path}: rope is scaled in layers with a window, which llama.cpp does not compute"
        )
    return config.positive("rope_theta", local) if local else config.positive("rope_local_base_freq")


def _add_keys(writer: gguf.GGUFWriter, config: Config) -> None:
    check_attention(config, _LARGEST)
    if config.values.get("attn_logit_softcapping"):
        raise LutraError(f"{config.path}: attn_logit_softcapping is no part of a Gemma 3 in llama.cpp")
    add_common_keys(writer, config, head_dim=True, window_theta=window_theta(config))
    if config.values.get("final_logit_softcapping"):
        writer.add_final_logit_softcapping(config.positive("final_logit_softcapping"))
    add_windows(writer, config, _STEP)


def _vectors(config: Config) -> dict[str, int]:
    return norms_around(config) | {"attn_q_norm": config.head_dim, "attn_k_norm": config.head_dim}


_DEFAULTS = {
    "vocab_size": 262208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 131072,
    "rope_theta": 1000000.0,
    "rope_local_base_freq": 10000.0,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "tie_word_embeddings": True,
}

FAMILY = Family(
    arch=gguf.MODEL_ARCH.GEMMA3,
    architectures={"Gemma3ForCausalLM": _DEFAULTS, "Gemma3ForConditionalGeneration": _DEFAULTS},
    add_keys=_add_keys,
    add_vocabulary=add_gemma_vocabulary,
    vectors=_vectors,
    matrices=gated_matrices,
    row_order=as_stored,
    keeps_f32=is_vector,
    activations=("gelu_pytorch_tanh",),
    norm_offset=1.0,
)
