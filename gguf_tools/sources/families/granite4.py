# SPDX-License-Identifier: MIT
"""Granite 4, dense: Granite 3 in the form of its hybrids, without their recurrent layers and experts."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
from gguf.gguf_writer import GGUFValue

from gguf_tools.sources import vocab
from gguf_tools.sources.config import Config
from gguf_tools.sources.families import granite
from gguf_tools.sources.weights import Weights, half

_SHARED = re.compile(r"(.+)\.shared_mlp\.(input|output)_linear\.weight")  # gate and up are one


def _is_member(raw: Mapping[str, Any]) -> bool:
    """Whether all layers have attention with rope, and a feed-forward part but no experts beside it."""
    kinds = raw.get("layer_types")
    return (
        isinstance(kinds, list)
        and set(map(str, kinds)) <= {"attention", "full_attention"}
        and not raw.get("num_local_experts")
        and not raw.get("num_experts_per_tok")
        and raw.get("position_embedding_type") == "rope"
        and raw.get("shared_intermediate_size") == raw.get("intermediate_size")
    )


def _parts(tensor: Weights) -> Iterator[Weights]:
    match = _SHARED.fullmatch(tensor.name)
    if not match or len(tensor.shape) != 2:
        yield tensor
    elif match[2] == "output":
        yield replace(tensor, name=f"{match[1]}.mlp.down_proj.weight")
    else:
        for part, name in enumerate(("gate_proj", "up_proj")):
            yield half(tensor, part, f"{match[1]}.mlp.{name}.weight")


def _add_keys(writer: gguf.GGUFWriter, config: Config) -> None:
    """Granite's, and those of hybrids, which the graph does not read, as llama.cpp's converter has them."""
    granite.FAMILY.add_keys(writer, config)
    keys = writer.kv_data[0]
    heads = gguf.Keys.Attention.HEAD_COUNT_KV.format(arch=writer.arch)
    keys[heads] = GGUFValue(
        [config.kv_heads] * config.layers, gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.INT32
    )
    start = list(keys).index(gguf.Keys.General.FILE_TYPE)
    behind = {key: keys.pop(key) for key in list(keys)[start:]}
    writer.add_expert_count(0)
    writer.add_expert_used_count(0)
    keys |= behind
    writer.add_expert_shared_feed_forward_length(config.ffn)
    writer.add_ssm_conv_kernel(int(config.positive("mamba_d_conv")))
    writer.add_ssm_state_size(int(config.positive("mamba_d_state")))
    writer.add_ssm_group_count(int(config.positive("mamba_n_groups")))
    writer.add_ssm_inner_size(int(config.positive("mamba_expand")) * config.hidden)
    writer.add_ssm_time_step_rank(int(config.positive("mamba_n_heads")))
    writer.add_rope_scaling_finetuned(True)


def _add_vocabulary(writer: gguf.GGUFWriter, directory: Path, config: Config) -> None:
    vocab.add_vocabulary(writer, directory, config.vocab, granite.PRE_TOKENIZERS)


FAMILY = replace(
    granite.FAMILY,
    architectures={
        "GraniteMoeHybridForCausalLM": {
            **granite.FAMILY.architectures["GraniteForCausalLM"],
            "mamba_d_conv": 4,
            "mamba_d_state": 256,
            "mamba_expand": 2,
            "mamba_n_groups": 1,
            "mamba_n_heads": 128,
        }
    },
    add_keys=_add_keys,
    add_vocabulary=_add_vocabulary,
    is_member=_is_member,
    parts=_parts,
)
