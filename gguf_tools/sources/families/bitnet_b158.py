# SPDX-License-Identifier: MIT
"""BitNet b1.58 of Microsoft: Llama's blocks of ternary matrices, with norms within both parts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import gguf

from gguf_tools.errors import LutraError
from gguf_tools.sources.config import Config
from gguf_tools.sources.family import (
    Family,
    add_common_keys,
    as_stored,
    gated_matrices,
    is_vector,
    norms_before,
    refuse_head_dim,
)
from gguf_tools.sources.vocab import add_vocabulary
from gguf_tools.sources.weights import Weights

# What the first BitNet called the norms.
_NORMS = {"self_attn.attn_sub_norm": "self_attn.inner_attn_ln", "mlp.ffn_sub_norm": "mlp.ffn_layernorm"}
_SQUARED = "relu2"


def _add_keys(writer: gguf.GGUFWriter, config: Config) -> None:
    refuse_head_dim(config)
    if config.tied is False or config.values.get("attention_bias"):
        raise LutraError(
            f"{config.path}: an output matrix of its own, or biases, which llama.cpp does not compute in a "
            f"{config.architecture}: its answers would be noise"
        )
    add_common_keys(writer, config, head_dim=False)
    writer.add_vocab_size(config.vocab)
    writer.add_rope_dimension_count(config.head_dim)
    if config.activation == _SQUARED:  # else it is SiLU, as in the first BitNet
        writer.add_string(f"{gguf.MODEL_ARCH_NAMES[FAMILY.arch]}.hidden_activation", _SQUARED)


def _vectors(config: Config) -> dict[str, int]:
    return norms_before(config) | {"attn_sub_norm": config.hidden, "ffn_sub_norm": config.ffn}


def _parts(tensor: Weights) -> Iterable[Weights]:
    for theirs, known in _NORMS.items():
        if f".{theirs}." in tensor.name:
            return [replace(tensor, name=tensor.name.replace(theirs, known))]
    return [tensor]


FAMILY = Family(
    arch=gguf.MODEL_ARCH.BITNET,
    architectures={
        "BitNetForCausalLM": {
            "max_position_embeddings": 2048,
            "rope_theta": 500000.0,
            "rms_norm_eps": 1e-5,
            "hidden_act": _SQUARED,
        }
    },
    add_keys=_add_keys,
    add_vocabulary=lambda writer, directory, config: add_vocabulary(writer, directory, config.vocab),
    vectors=_vectors,
    matrices=gated_matrices,
    row_order=as_stored,
    keeps_f32=is_vector,
    activations=(_SQUARED, "silu", "swish"),
    parts=_parts,
)
