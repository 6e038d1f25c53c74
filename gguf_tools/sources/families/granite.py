# SPDX-License-Identifier: MIT
"""Granite 3, dense: Llama with factors for embeddings, attention, residuals and logits."""

from __future__ import annotations

from pathlib import Path

import gguf

from gguf_tools.sources.config import Config
from gguf_tools.sources.families import llama
from gguf_tools.sources.family import (
    Family,
    add_common_keys,
    gated_matrices,
    is_vector,
    norms_before,
    refuse_head_dim,
)

PRE_TOKENIZERS = {"smollm": "refact", "llama-bpe": "dbrx"}  # by the names of others with the same rules


def _add_keys(writer: gguf.GGUFWriter, config: Config) -> None:
    refuse_head_dim(config)
    add_common_keys(writer, config, head_dim=False)
    writer.add_vocab_size(config.vocab)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_attention_scale(config.positive("attention_multiplier"))
    writer.add_embedding_scale(config.positive("embedding_multiplier"))
    writer.add_residual_scale(config.positive("residual_multiplier"))
    writer.add_logit_scale(config.positive("logits_scaling"))


def _add_vocabulary(writer: gguf.GGUFWriter, directory: Path, config: Config) -> None:
    llama.add_vocabulary(writer, directory, config, names=PRE_TOKENIZERS)


FAMILY = Family(
    arch=gguf.MODEL_ARCH.GRANITE,
    architectures={
        "GraniteForCausalLM": {
            "max_position_embeddings": 2048,
            "attention_multiplier": 1.0,
            "embedding_multiplier": 1.0,
            "residual_multiplier": 1.0,
            "logits_scaling": 1.0,
        }
    },
    add_keys=_add_keys,
    add_vocabulary=_add_vocabulary,
    vectors=norms_before,
    matrices=gated_matrices,
    row_order=llama.row_order,
    keeps_f32=is_vector,
)
