# SPDX-License-Identifier: MIT
"""Qwen3 with a mixture of experts in every block."""

from __future__ import annotations

from pathlib import Path

import gguf

from gguf_tools.errors import LutraError
from gguf_tools.sources.config import Config
from gguf_tools.sources.families import qwen3
from gguf_tools.sources.family import (
    Family,
    SharedInput,
    add_common_keys,
    as_stored,
    expert_matrices,
    is_vector_or_router,
)
from gguf_tools.sources.vocab import add_vocabulary

# What llama.cpp takes for granted.
_GRANTED = {"norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": []}


def _add_keys(writer: gguf.GGUFWriter, config: Config) -> None:
    qwen3.check(config)
    for key, granted in _GRANTED.items():
        value = config.values.get(key) or type(granted)()
        if value != granted:
            raise LutraError(f"{config.path}: {key} is {value!r}, but llama.cpp computes with {granted!r}")
    add_common_keys(writer, config, head_dim=config.head_dim_given)
    writer.add_expert_feed_forward_length(_ffn(config))


def _ffn(config: Config) -> int:
    return int(config.positive("moe_intermediate_size"))


def _matrices(config: Config) -> list[SharedInput]:
    return expert_matrices(config, _ffn(config))


def _add_vocabulary(writer: gguf.GGUFWriter, directory: Path, config: Config) -> None:
    add_vocabulary(writer, directory, config.vocab)


FAMILY = Family(
    arch=gguf.MODEL_ARCH.QWEN3MOE,
    architectures={
        "Qwen3MoeForCausalLM": {
            "max_position_embeddings": 32768,
            "num_key_value_heads": 4,
            "num_experts": 128,
            "num_experts_per_tok": 8,
            "moe_intermediate_size": 768,
            "decoder_sparse_step": 1,
        }
    },
    add_keys=_add_keys,
    add_vocabulary=_add_vocabulary,
    vectors=qwen3.vectors,
    matrices=_matrices,
    row_order=as_stored,
    keeps_f32=is_vector_or_router,
)
