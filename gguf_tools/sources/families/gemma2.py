# SPDX-License-Identifier: MIT
"""Gemma 2: norms around both parts of a block, logits within bounds; every other layer has a window."""

from __future__ import annotations

import gguf

from gguf_tools.errors import LutraError
from gguf_tools.sources.config import Config
from gguf_tools.sources.families.gemma3 import (
    add_gemma_vocabulary,
    add_windows,
    check_attention,
    norms_around,
)
from gguf_tools.sources.family import Family, as_stored, gated_matrices, is_vector

_STEP = 2  # one of so many layers has no window
_LARGEST = 46  # layers of the 27B model, whose attention has another scale
_THETA = 10000.0  # as llama.cpp has it where there is no key


def _add_keys(writer: gguf.GGUFWriter, config: Config) -> None:
    check_attention(config, _LARGEST)
    if config.rope_theta != _THETA or config.rope.get("rope_type", "default") != "default":
        raise LutraError(
            f"{config.path}: rope has another base or is scaled, which llama.cpp's Gemma 2 is not"
        )
    writer.add_context_length(config.context)
    writer.add_embedding_length(config.hidden)
    writer.add_block_count(config.layers)
    writer.add_feed_forward_length(config.ffn)
    writer.add_head_count(config.heads)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_layer_norm_rms_eps(config.rms_eps)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_attn_logit_softcapping(config.positive("attn_logit_softcapping"))
    writer.add_final_logit_softcapping(config.positive("final_logit_softcapping"))
    add_windows(writer, config, _STEP)


FAMILY = Family(
    arch=gguf.MODEL_ARCH.GEMMA2,
    architectures={
        "Gemma2ForCausalLM": {
            "head_dim": 256,
            "num_key_value_heads": 4,
            "hidden_activation": "gelu_pytorch_tanh",
            "max_position_embeddings": 8192,
            "query_pre_attn_scalar": 256,
            "sliding_window": 4096,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
            "tie_word_embeddings": True,
        }
    },
    add_keys=_add_keys,
    add_vocabulary=add_gemma_vocabulary,
    vectors=norms_around,
    matrices=gated_matrices,
    row_order=as_stored,
    keeps_f32=is_vector,
    activations=("gelu_pytorch_tanh",),
    norm_offset=1.0,
)
