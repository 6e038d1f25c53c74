# SPDX-License-Identifier: MIT
"""Phi-3 and Phi-4: q, k and v are one matrix, as are gate and up; rope may have factors for long contexts."""

from __future__ import annotations

import math
from pathlib import Path

import gguf

from gguf_tools.errors import LutraError
from gguf_tools.sources import rope
from gguf_tools.sources.config import Config
from gguf_tools.sources.family import (
    Family,
    SharedInput,
    as_stored,
    is_vector,
    norms_before,
    refuse_head_dim,
    warn_of_window,
)
from gguf_tools.sources.vocab import add_vocabulary


def _add_keys(writer: gguf.GGUFWriter, config: Config) -> None:
    refuse_head_dim(config)
    _add_attention_factor(writer, config)
    writer.add_context_length(config.context)
    writer.add_rope_scaling_orig_ctx_len(_trained_context(config))
    writer.add_embedding_length(config.hidden)
    writer.add_feed_forward_length(config.ffn)
    writer.add_block_count(config.layers)
    writer.add_head_count(config.heads)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_layer_norm_rms_eps(config.rms_eps)
    writer.add_rope_dimension_count(rope.turned(config))
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    window = config.values.get("sliding_window")
    writer.add_sliding_window(int(config.positive("sliding_window")) if window else 0)
    warn_of_window(config, window)


def _trained_context(config: Config) -> int:
    return int(config.positive("original_max_position_embeddings", config.rope))


def _add_attention_factor(writer: gguf.GGUFWriter, config: Config) -> None:
    kind = config.rope.get("rope_type", "default")
    if kind == "default":
        return
    if kind not in rope.LONG:
        raise LutraError(f"{config.path}: rope type {kind!r} is none that llama.cpp computes in a Phi-3")
    trained = _trained_context(config)
    factor = math.sqrt(1 + math.log(max(config.context / trained, 1)) / math.log(trained))
    if not math.isclose(config.rope.get("attention_factor", factor), factor, rel_tol=1e-6):
        raise LutraError(
            f"{config.path}: attention_factor is not {factor:g}, which follows from the contexts"
        )
    keys = writer.kv_data[0]
    others = {key: keys.pop(key) for key in list(keys)[1:]}  # llama.cpp's converter knows this before them
    writer.add_rope_scaling_attn_factors(factor)
    keys |= others


def _add_vocabulary(writer: gguf.GGUFWriter, directory: Path, config: Config) -> None:
    add_vocabulary(writer, directory, config.vocab, names={"llama-bpe": "dbrx"})


def _matrices(config: Config) -> list[SharedInput]:
    q, kv = config.heads * config.head_dim, config.kv_heads * config.head_dim
    return [
        SharedInput(config.hidden, {"attn_qkv": q + 2 * kv}),
        SharedInput(q, {"attn_output": config.hidden}),
        SharedInput(config.hidden, {"ffn_up": 2 * config.ffn}),
        SharedInput(config.ffn, {"ffn_down": config.hidden}),
    ]


FAMILY = Family(
    arch=gguf.MODEL_ARCH.PHI3,
    architectures={
        "Phi3ForCausalLM": {
            "max_position_embeddings": 4096,
            "original_max_position_embeddings": 4096,
            "rms_norm_eps": 1e-5,
        }
    },
    add_keys=_add_keys,
    add_vocabulary=_add_vocabulary,
    vectors=norms_before,
    matrices=_matrices,
    row_order=as_stored,
    keeps_f32=is_vector,
)
