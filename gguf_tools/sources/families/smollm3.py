# SPDX-License-Identifier: MIT
"""SmolLM3: Llama's blocks, but every fourth layer has no rotary embeddings."""

from __future__ import annotations

import gguf

from gguf_tools.errors import LutraError
from gguf_tools.sources.config import Config
from gguf_tools.sources.families import llama
from gguf_tools.sources.family import (
    Family,
    add_common_keys,
    gated_matrices,
    is_vector,
    norms_before,
    refuse_window,
)

_STEP = 4  # what llama.cpp has, without a key


def _add_keys(writer: gguf.GGUFWriter, config: Config) -> None:
    refuse_window(config, config.values.get("use_sliding_window") and config.values.get("sliding_window"))
    step = config.values.get("no_rope_layer_interval", _STEP)
    has_rope = config.values.get("no_rope_layers") or [int((i + 1) % step != 0) for i in range(config.layers)]
    if has_rope != [int((i + 1) % _STEP != 0) for i in range(config.layers)]:
        raise LutraError(
            f"{config.path}: no_rope_layers are others than every {_STEP}th, which llama.cpp does not compute"
        )
    add_common_keys(writer, config, head_dim=config.head_dim_given)
    writer.add_vocab_size(config.vocab)
    writer.add_rope_dimension_count(config.head_dim)


FAMILY = Family(
    arch=gguf.MODEL_ARCH.SMOLLM3,
    architectures={
        "SmolLM3ForCausalLM": {
            "max_position_embeddings": 32768,
            "num_key_value_heads": 4,
            "rope_theta": 2000000.0,
            "tie_word_embeddings": True,
        }
    },
    add_keys=_add_keys,
    add_vocabulary=llama.add_vocabulary,
    vectors=norms_before,
    matrices=gated_matrices,
    row_order=llama.row_order,
    keeps_f32=is_vector,
)
