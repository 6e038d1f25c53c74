# SPDX-License-Identifier: MIT
"""What a family of models is to Lutra: one value, made of plain functions, in a module of ``families``.

Beside it are the parts that most families share.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

from gguf_tools.sources import rope
from gguf_tools.sources.config import Config


@dataclass(frozen=True)
class SharedInput:
    """A vector that matrices of a block multiply: its ``length``, and the ``rows`` of each by name."""

    length: int
    rows: Mapping[str, int]


@dataclass(frozen=True)
class Family:
    """Models that differ in their sizes only.

    Names of tensors and keys are those of ``arch`` in llama.cpp; names within a block come without the
    block and without ``.weight``: "attn_q". Token embeddings, the last norm and the output matrix are
    what every model has, and any matrix of a block may have a bias.
    """

    arch: gguf.MODEL_ARCH
    # As config.json calls them, each with what transformers assumes where config.json is silent.
    architectures: Mapping[str, Mapping[str, int]]
    # The architecture's keys and the tokenizer's, in the order of llama.cpp's converter.
    add_keys: Callable[[gguf.GGUFWriter, Config], None]
    add_vocabulary: Callable[[gguf.GGUFWriter, Path, Config], None]
    # A block: its vectors (name -> length), and its matrices by what they multiply.
    vectors: Callable[[Config], Mapping[str, int]]
    matrices: Callable[[Config], Sequence[SharedInput]]
    # Which stored row becomes which (of a matrix of a block, and its bias); None: they stay as they are.
    row_order: Callable[[str, Config], NDArray[np.intp] | None]
    # Whether the tensor of this GGUF name and shape is float32 in a file of any type.
    keeps_f32: Callable[[str, tuple[int, ...]], bool]
    # What its graph computes in the feed-forward part, by transformers' names.
    activations: tuple[str, ...] = ("silu", "swish")


# ---- parts -----------------------------------------------------------------------------------


def add_common_keys(writer: gguf.GGUFWriter, config: Config, *, head_dim: bool) -> None:
    """The keys that llama.cpp's converter gives to most architectures, those of ``head_dim`` if wanted."""
    writer.add_block_count(config.layers)
    writer.add_context_length(config.context)
    writer.add_embedding_length(config.hidden)
    writer.add_feed_forward_length(config.ffn)
    writer.add_head_count(config.heads)
    writer.add_head_count_kv(config.kv_heads)
    rope.add_scaling(writer, config)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.rms_eps)
    if head_dim:
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)


def norms_before(config: Config) -> dict[str, int]:
    """The vectors of a block with a norm in front of attention and one in front of the feed-forward part."""
    return {"attn_norm": config.hidden, "ffn_norm": config.hidden}


def gated_matrices(config: Config) -> list[SharedInput]:
    """The matrices of a block of grouped-query attention and a gated feed-forward part."""
    c = config
    q, kv = c.heads * c.head_dim, c.kv_heads * c.head_dim
    return [
        SharedInput(c.hidden, {"attn_q": q, "attn_k": kv, "attn_v": kv}),
        SharedInput(q, {"attn_output": c.hidden}),
        SharedInput(c.hidden, {"ffn_gate": c.ffn, "ffn_up": c.ffn}),
        SharedInput(c.ffn, {"ffn_down": c.hidden}),
    ]


def as_stored(name: str, config: Config) -> None:
    """For ``Family.row_order``: rows that stay as they are."""


def is_vector(name: str, shape: tuple[int, ...]) -> bool:
    """For ``Family.keeps_f32``: vectors, nothing else."""
    return len(shape) < 2
