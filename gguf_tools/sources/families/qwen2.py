# SPDX-License-Identifier: MIT
"""Qwen2 and Qwen2.5: Llama's blocks with biases on q, k and v; q and k stay as they are stored."""

from __future__ import annotations

from pathlib import Path

import gguf

from gguf_tools.sources.config import Config
from gguf_tools.sources.family import (
    Family,
    add_common_keys,
    as_stored,
    gated_matrices,
    is_vector,
    norms_before,
    warn_of_window,
)
from gguf_tools.sources.vocab import add_vocabulary


def _add_keys(writer: gguf.GGUFWriter, config: Config) -> None:
    warn_of_window(config, config.values.get("use_sliding_window") and config.values.get("sliding_window"))
    add_common_keys(writer, config, head_dim=config.head_dim_given)


def _add_vocabulary(writer: gguf.GGUFWriter, directory: Path, config: Config) -> None:
    add_vocabulary(writer, directory, config.vocab)


FAMILY = Family(
    arch=gguf.MODEL_ARCH.QWEN2,
    architectures={"Qwen2ForCausalLM": {"max_position_embeddings": 32768}},
    add_keys=_add_keys,
    add_vocabulary=_add_vocabulary,
    vectors=norms_before,
    matrices=gated_matrices,
    row_order=as_stored,
    keeps_f32=is_vector,
)
