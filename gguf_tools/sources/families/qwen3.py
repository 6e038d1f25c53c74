# SPDX-License-Identifier: MIT
"""Qwen3: Qwen2's blocks, whose heads of q and k have norms of their own."""

from __future__ import annotations

from pathlib import Path

import gguf

from gguf_tools.errors import Unfamiliar
from gguf_tools.sources.config import Config
from gguf_tools.sources.family import (
    Family,
    add_common_keys,
    as_stored,
    gated_matrices,
    is_vector,
    norms_before,
    refuse_window,
)
from gguf_tools.sources.vocab import add_vocabulary


def check(config: Config) -> None:
    """Raise ``LutraError`` for attention that is not llama.cpp's."""
    refuse_window(config, config.values.get("use_sliding_window") and config.values.get("sliding_window"))


def vectors(config: Config) -> dict[str, int]:
    """Those of a block."""
    return norms_before(config) | {"attn_q_norm": config.head_dim, "attn_k_norm": config.head_dim}


def _add_keys(writer: gguf.GGUFWriter, config: Config) -> None:
    check(config)
    add_common_keys(writer, config, head_dim=True)


def _add_vocabulary(writer: gguf.GGUFWriter, directory: Path, config: Config) -> None:
    card = directory / "README.md"
    text = card.read_text("utf-8", "replace").lower() if card.is_file() else ""
    named = (directory.resolve().name, str(config.values.get("_name_or_path")))
    if "# qwen3-reranker" in text or any("qwen3-reranker" in name.lower() for name in named):
        raise Unfamiliar(f"{directory}: is a reranker, which is not read directly")
    add_vocabulary(writer, directory, config.vocab)


FAMILY = Family(
    arch=gguf.MODEL_ARCH.QWEN3,
    architectures={"Qwen3ForCausalLM": {"max_position_embeddings": 32768, "head_dim": 128}},
    add_keys=_add_keys,
    add_vocabulary=_add_vocabulary,
    vectors=vectors,
    matrices=gated_matrices,
    row_order=as_stored,
    keeps_f32=is_vector,
)
