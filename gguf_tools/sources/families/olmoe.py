# SPDX-License-Identifier: MIT
"""OLMoE: a mixture of experts in every block, and norms over all of q and k."""

from __future__ import annotations

from pathlib import Path

import gguf

from gguf_tools.errors import LutraError
from gguf_tools.sources.config import Config
from gguf_tools.sources.family import (
    Family,
    SharedInput,
    add_common_keys,
    as_stored,
    expert_matrices,
    is_vector_or_router,
    norms_before,
    refuse_head_dim,
)
from gguf_tools.sources.vocab import add_vocabulary

_EPS = 1e-5  # whatever config.json says, in llama.cpp's converter


def _add_keys(writer: gguf.GGUFWriter, config: Config) -> None:
    refuse_head_dim(config)
    values = {**config.values, "num_key_value_heads": config.kv_heads}
    wanted = {
        "num_key_value_heads": config.heads,
        "rms_norm_eps": _EPS,
        "norm_topk_prob": False,
        "clip_qkv": None,
    }
    for key, granted in wanted.items():
        value = values.get(key)
        if value != granted:
            raise LutraError(f"{config.path}: {key} is {value!r}, but llama.cpp computes with {granted!r}")
    add_common_keys(writer, config, head_dim=config.head_dim_given)


def _add_vocabulary(writer: gguf.GGUFWriter, directory: Path, config: Config) -> None:
    add_vocabulary(writer, directory, config.vocab, names={"llama-bpe": "dbrx"})


def _vectors(config: Config) -> dict[str, int]:
    return norms_before(config) | {
        "attn_q_norm": config.heads * config.head_dim,
        "attn_k_norm": config.kv_heads * config.head_dim,
    }


def _matrices(config: Config) -> list[SharedInput]:
    return expert_matrices(config, config.ffn)


FAMILY = Family(
    arch=gguf.MODEL_ARCH.OLMOE,
    architectures={
        "OlmoeForCausalLM": {
            "max_position_embeddings": 4096,
            "rms_norm_eps": _EPS,
            "num_experts": 64,
            "num_experts_per_tok": 8,
            "norm_topk_prob": False,
        }
    },
    add_keys=_add_keys,
    add_vocabulary=_add_vocabulary,
    vectors=_vectors,
    matrices=_matrices,
    row_order=as_stored,
    keeps_f32=is_vector_or_router,
)
