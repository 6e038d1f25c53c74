# SPDX-License-Identifier: MIT
"""Mixtral: Llama's blocks, each with a mixture of experts."""

from __future__ import annotations

import gguf

from gguf_tools.sources.config import Config
from gguf_tools.sources.families import llama
from gguf_tools.sources.family import (
    Family,
    SharedInput,
    add_common_keys,
    expert_matrices,
    is_vector_or_router,
    norms_before,
    refuse_window,
)


def _add_keys(writer: gguf.GGUFWriter, config: Config) -> None:
    refuse_window(config, config.values.get("sliding_window"))
    add_common_keys(writer, config, head_dim=config.head_dim_given)
    writer.add_vocab_size(config.vocab)
    writer.add_rope_dimension_count(config.head_dim)


def _matrices(config: Config) -> list[SharedInput]:
    return expert_matrices(config, config.ffn)


FAMILY = Family(
    arch=gguf.MODEL_ARCH.LLAMA,
    architectures={
        "MixtralForCausalLM": {
            "max_position_embeddings": 131072,
            "num_key_value_heads": 8,
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
            "rms_norm_eps": 1e-5,
            "rope_theta": 1000000.0,
        }
    },
    add_keys=_add_keys,
    add_vocabulary=llama.add_vocabulary,
    vectors=norms_before,
    matrices=_matrices,
    row_order=llama.row_order,
    keeps_f32=is_vector_or_router,
)
