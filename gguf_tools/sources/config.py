# SPDX-License-Identifier: MIT
"""config.json of a Hugging Face model: what a decoder needs of it, checked."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf_tools.errors import LutraError

# What transformers assumes for every family where config.json is silent.
_DEFAULTS = {"rms_norm_eps": 1e-6, "rope_theta": 10000.0}
# Numbers that may describe rotary embeddings.
_ROPE_NUMBERS = (
    "rope_theta",
    "factor",
    "original_max_position_embeddings",
    "low_freq_factor",
    "high_freq_factor",
    "extrapolation_factor",
    "attention_factor",
    "beta_fast",
    "beta_slow",
)
# How JSON writes numbers and truths, and what is text whatever it looks like.
_NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?(e[-+]?\d+)?|true|false", re.IGNORECASE)
_TEXTS = ("_name_or_path", "transformers_version")
_EXPERTS = ("num_local_experts", "num_experts")


@dataclass(frozen=True)
class Config:
    """The shape of a decoder and its constants; ``rope`` holds what is said about rotary embeddings."""

    path: Path
    architecture: str  # "LlamaForCausalLM"
    layers: int
    context: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    head_dim_given: bool
    vocab: int
    tied: bool | None  # the output matrix is the token embeddings; None: config.json does not say
    activation: str  # of the feed-forward part, as transformers calls it
    rms_eps: float
    rope: dict[str, Any]
    experts: int  # of a mixture; 0: none
    experts_used: int
    values: Mapping[str, Any]  # all of it, null where it says so: for what only one family knows

    @property
    def rope_theta(self) -> float:
        """Base of the rotary frequencies."""
        return float(self.rope["rope_theta"])

    def positive(self, key: str, values: Mapping[str, Any] | None = None) -> float:
        """A number of ``values``, by default of config.json; ``LutraError`` if it is none or not positive."""
        value = (self.values if values is None else values).get(key)
        if not isinstance(value, int | float) or not 0 < value < 1e30:
            raise LutraError(f"{self.path}: {key!r} is {value!r}, not a positive number")
        return float(value)


def read_config(path: Path, raw: Mapping[str, Any], architecture: str, defaults: Mapping[str, Any]) -> Config:
    """Read ``raw``, the object in config.json; ``defaults`` are its family's.

    Raises ``LutraError`` naming the key that is missing or makes no sense.
    """
    given = {key: value for key, value in raw.items() if value is not None}
    values = {**_DEFAULTS, **defaults, **given}

    def number(key: str, default: int | None = None) -> int:
        value = values.get(key, default)
        if value is None:
            raise LutraError(f"{path}: lacks {key!r}; download the model again")
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 1 << 31:
            raise LutraError(f"{path}: {key!r} is {value!r}, not a positive number")
        return value

    heads, hidden = number("num_attention_heads"), number("hidden_size")
    kv_heads = number("num_key_value_heads", heads)
    if heads % kv_heads:
        raise LutraError(f"{path}: {heads} attention heads cannot share {kv_heads} key-value heads")
    head_dim = number("head_dim", hidden // heads)
    if head_dim % 2:
        raise LutraError(f"{path}: a head_dim of {head_dim} is odd, rotary embeddings need pairs")
    experts = next((number(key) for key in _EXPERTS if values.get(key)), 0)
    rope, eps = read_rope(path, values), values["rms_norm_eps"]
    for key, value in {**{k: rope[k] for k in _ROPE_NUMBERS if k in rope}, "rms_norm_eps": eps}.items():
        if not isinstance(value, int | float) or not 0 < value < 1e30:
            raise LutraError(f"{path}: {key!r} is {value!r}, not a positive number")
    return Config(
        path=path,
        architecture=architecture,
        layers=number("num_hidden_layers"),
        context=number("max_position_embeddings"),
        hidden=hidden,
        ffn=number("intermediate_size"),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        head_dim_given="head_dim" in values,
        vocab=number("vocab_size"),
        tied=bool(values["tie_word_embeddings"]) if "tie_word_embeddings" in values else None,
        activation=str(values.get("hidden_activation", values.get("hidden_act", "silu"))),
        rms_eps=float(eps),
        rope=rope,
        experts=experts,
        experts_used=number("num_experts_per_tok") if experts else 0,
        values={**defaults, **raw},
    )


def with_numbers(value: Any) -> Any:
    """``value``, what a JSON file holds, with the numbers and truths in it that somebody wrote as text."""
    if isinstance(value, dict):
        return {key: entry if key in _TEXTS else with_numbers(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [with_numbers(entry) for entry in value]
    if isinstance(value, str) and _NUMBER.fullmatch(value):
        return json.loads(value.lower())
    return value


def read_rope(path: Path, values: Mapping[str, Any]) -> dict[str, Any]:
    """What is said of rotary embeddings, beside the other keys or under one of their own."""
    scaling = values.get("rope_parameters") or values.get("rope_scaling") or {}
    if isinstance(scaling, dict):  # those of the layers with a window may be others: their family's business
        scaling = scaling.get("full_attention", scaling)
    if not isinstance(scaling, dict):
        raise LutraError(f"{path}: the scaling of rope is {scaling!r}; download the model again")
    outer = {key: values.get(key) for key in ("rope_theta", "original_max_position_embeddings")}
    outer["rope_type"] = scaling.get("type")  # its former name
    return {key: value for key, value in [*outer.items(), *scaling.items()] if value is not None}
