# SPDX-License-Identifier: MIT
"""OLMo 2: norms behind both parts of a block, and over all of q and k; OLMo 3 has windows as well."""

from __future__ import annotations

from pathlib import Path

import gguf

from gguf_tools.errors import LutraError
from gguf_tools.sources.config import Config
from gguf_tools.sources.families import gemma3
from gguf_tools.sources.family import Family, add_common_keys, as_stored, gated_matrices, is_vector
from gguf_tools.sources.vocab import add_vocabulary

_STEP = 4  # one of so many layers has no window


def _add_keys(writer: gguf.GGUFWriter, config: Config) -> None:
    has_windows = config.architecture.startswith("Olmo3")
    theta = gemma3.window_theta(config) if has_windows else None
    if theta not in (None, config.rope_theta):
        raise LutraError(
            f"{config.path}: rope_theta is {theta:g} in layers with a window and {config.rope_theta:g} "
            "in others, but llama.cpp computes with one for all"
        )
    add_common_keys(writer, config, head_dim=config.head_dim_given, window_theta=theta)
    if has_windows:
        writer.add_sliding_window(int(config.positive("sliding_window")))
        writer.add_sliding_window_pattern(gemma3.windows(config, _STEP))


def _add_vocabulary(writer: gguf.GGUFWriter, directory: Path, config: Config) -> None:
    add_vocabulary(writer, directory, config.vocab, names={"llama-bpe": "dbrx"})


def _vectors(config: Config) -> dict[str, int]:
    return {
        "attn_q_norm": config.heads * config.head_dim,
        "attn_k_norm": config.kv_heads * config.head_dim,
        "post_attention_norm": config.hidden,
        "post_ffw_norm": config.hidden,
    }


FAMILY = Family(
    arch=gguf.MODEL_ARCH.OLMO2,
    architectures={
        "Olmo2ForCausalLM": {"max_position_embeddings": 2048, "rms_norm_eps": 1e-5},
        "Olmo3ForCausalLM": {
            "max_position_embeddings": 2048,
            "rms_norm_eps": 1e-5,
            "rope_theta": 500000.0,
            "rope_local_base_freq": 500000.0,  # whatever the other is, as transformers has it
            "sliding_window": 4096,
        },
    },
    add_keys=_add_keys,
    add_vocabulary=_add_vocabulary,
    vectors=_vectors,
    matrices=gated_matrices,
    row_order=as_stored,
    keeps_f32=is_vector,
)
