# SPDX-License-Identifier: MIT
"""What a family of models is to Lutra: one value, made of plain functions, in a module of ``families``.

Beside it are the parts that most families share.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from gguf_tools.errors import LutraError, warn
from gguf_tools.sources import rope
from gguf_tools.sources.config import Config
from gguf_tools.sources.weights import Weights


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
    what every model has. Any matrix of a block may have a bias, but those that end in "_exps", which every
    expert has.
    """

    arch: gguf.MODEL_ARCH
    # As config.json calls them, each with what transformers assumes where config.json is silent.
    architectures: Mapping[str, Mapping[str, Any]]
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
    # What the graph does not add to the weights of norms, but transformers does.
    norm_offset: float = 0.0
    # Whether such a config.json is of this family; others with its architectures are not read directly.
    is_member: Callable[[Mapping[str, Any]], bool] = lambda raw: True
    # The tensors that a stored one is made of.
    parts: Callable[[Weights], Iterable[Weights]] = lambda tensor: [tensor]


# ---- parts -----------------------------------------------------------------------------------


def add_common_keys(
    writer: gguf.GGUFWriter, config: Config, *, head_dim: bool, window_theta: float | None = None
) -> None:
    """The keys that llama.cpp's converter gives to most architectures, those of ``head_dim`` if wanted.

    ``window_theta``: base of the rotary frequencies in layers with a window, where it is another.
    """
    writer.add_block_count(config.layers)
    writer.add_context_length(config.context)
    writer.add_embedding_length(config.hidden)
    writer.add_feed_forward_length(config.ffn)
    writer.add_head_count(config.heads)
    writer.add_head_count_kv(config.kv_heads)
    rope.add_scaling(writer, config)
    writer.add_rope_freq_base(config.rope_theta)
    if window_theta is not None:
        writer.add_rope_freq_base_swa(window_theta)
    writer.add_layer_norm_rms_eps(config.rms_eps)
    if config.experts:
        writer.add_expert_count(config.experts)
        writer.add_expert_used_count(config.experts_used)
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


def refuse_window(config: Config, window: Any) -> None:
    """Raise ``LutraError`` if attention ends at a ``window``, which the graph knows nothing of."""
    if isinstance(window, int) and 0 < window < config.context:
        raise LutraError(
            f"{config.path}: sliding_window is {window}, which llama.cpp ignores in a {config.architecture}; "
            f"set max_position_embeddings to {window}, up to which both are the same"
        )


def warn_of_window(config: Config, window: Any) -> None:
    """The same as a warning, for models that everybody converts nevertheless."""
    if isinstance(window, int) and 0 < window < config.context:
        warn(f"{config.path}: sliding_window is {window}, which llama.cpp ignores: longer texts differ")


def refuse_head_dim(config: Config) -> None:
    """Raise ``LutraError`` if heads are not parts of a token's vector, as the graph takes for granted."""
    if config.head_dim * config.heads != config.hidden:
        raise LutraError(
            f"{config.path}: {config.heads} heads of head_dim {config.head_dim} are not the hidden_size, "
            f"{config.hidden}, as llama.cpp wants it in a {config.architecture}"
        )


def is_vector(name: str, shape: tuple[int, ...]) -> bool:
    """For ``Family.keeps_f32``: vectors, nothing else."""
    return len(shape) < 2


def is_vector_or_router(name: str, shape: tuple[int, ...]) -> bool:
    """For ``Family.keeps_f32`` of a mixture of experts: vectors, and what chooses the experts."""
    return is_vector(name, shape) or name.endswith(".ffn_gate_inp.weight")


def expert_matrices(config: Config, ffn: int) -> list[SharedInput]:
    """The matrices of a block of grouped-query attention and a mixture of gated experts of size ``ffn``."""
    return [
        *gated_matrices(config)[:2],
        SharedInput(config.hidden, {"ffn_gate_inp": config.experts}),
        SharedInput(config.hidden, {"ffn_gate_exps": ffn, "ffn_up_exps": ffn}),
        SharedInput(ffn, {"ffn_down_exps": config.hidden}),
    ]
