# SPDX-License-Identifier: MIT
"""Llama, and Mistral, which is the same but for its defaults."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

from gguf_tools.sources import vocab
from gguf_tools.sources.config import Config
from gguf_tools.sources.family import (
    Family,
    add_common_keys,
    gated_matrices,
    is_vector,
    norms_before,
    warn_of_window,
)
from gguf_tools.sources.rope import interleaved
from gguf_tools.sources.safetensors import read_json

_NO_BOS = 49152  # size of Granite's and SmolLM's vocabulary, of which bos is no part whatever its json says


def _add_keys(writer: gguf.GGUFWriter, config: Config) -> None:
    if config.architecture == "MistralForCausalLM":
        warn_of_window(config, config.values.get("sliding_window"))
    add_common_keys(writer, config, head_dim=True)  # transformers fills it in where config.json is silent
    writer.add_vocab_size(config.vocab)
    writer.add_rope_dimension_count(config.head_dim)


def add_vocabulary(
    writer: gguf.GGUFWriter, directory: Path, config: Config, names: Mapping[str, str] | None = None
) -> None:
    """The tokenizer's keys, and what its configuration says about a space in front."""
    if (directory / "tokenizer_config.json").is_file():
        prefix = read_json(directory / "tokenizer_config.json").get("add_prefix_space")
        if prefix is not None:
            writer.add_add_space_prefix(bool(prefix))
    vocab.add_vocabulary(writer, directory, config.vocab, names)
    if config.vocab == _NO_BOS:
        writer.kv_data[0].pop("tokenizer.ggml.add_bos_token", None)
        writer.add_add_bos_token(False)


def row_order(name: str, config: Config) -> NDArray[np.intp] | None:
    """Of q and k, which the graph rotates in pairs of neighbours."""
    heads = {"attn_q": config.heads, "attn_k": config.kv_heads}.get(name)
    return interleaved(heads, config.head_dim) if heads else None


FAMILY = Family(
    arch=gguf.MODEL_ARCH.LLAMA,
    architectures={
        "LlamaForCausalLM": {"max_position_embeddings": 2048},
        "MistralForCausalLM": {"max_position_embeddings": 131072, "sliding_window": 4096},
    },
    add_keys=_add_keys,
    add_vocabulary=add_vocabulary,
    vectors=norms_before,
    matrices=gated_matrices,
    row_order=row_order,
    keeps_f32=is_vector,
)
