# SPDX-License-Identifier: MIT
"""The types that a tensor of a converted file can have, and the recipes that spread them over a model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, LlamaFileType

from gguf_tools.formats.family import CB_FORMATS, ROWS

# Signal to quantization noise in dB on normally distributed weights (scripts/layers.py types): what the
# planner of --target-bpw chooses by. Types that it does not choose from have none.
_SNR = {
    "cb2": 12.4, "cb25": 15.5, "cb3": 17.5, "cb4": 23.8, "cb5": 28.6, "cb6": 33.6, "q8_0": 45.4, "f16": 73.6,
}  # fmt: skip

# CB5 and CB6 lose as much by the rounding of inputs as by that of weights, and a third to a half of that in
# the matrices of these names, a quarter of all weights, whose inputs have outliers: they get two planes.
# KL divergence on wikitext of SmolLM2-135M in CB6 (measured): 0.0101 with one plane, 0.0071 with two in
# these, 0.0040 in all; of main-88m 0.0052, 0.0041.
_OUTLIERS = re.compile(r"\.(attn_v|ffn_down)")
_PLANES = {"cb5": _OUTLIERS, "cb6": _OUTLIERS}


@dataclass(frozen=True)
class Type:
    """A type as it is asked for, whatever ggml types it is made of.

    ``ids``: ggml type ids by the weights of a block (of a super-block), the largest first. ``bpw``: bits per
    weight with the largest. ``snr``: dB, see above. ``fallback``: what a tensor becomes whose shape this type
    cannot hold. ``file_type``: ``general.file_type`` of a file mostly of this type, None if none is said to
    be. ``two_planes``: the names of tensors of this type that get activations in two planes of int8.
    """

    name: str
    ids: Mapping[int, int] = field(hash=False)
    bpw: float
    is_codebook: bool = False
    snr: float | None = None
    fallback: Type | None = None
    file_type: int | None = None
    two_planes: re.Pattern[str] | None = None

    def id_for(self, shape: tuple[int, ...]) -> int | None:
        """The ggml type id for a tensor of ``shape`` (..., rows, k); None if it cannot or should not be it.

        A codebook needs strips of 8 rows in every matrix of a stack, and more bytes of rows than of library.
        """
        *leading, k = shape
        for block, type_id in self.ids.items():
            if k % block == 0 and k:
                fmt = CB_FORMATS.get(type_id)
                if fmt and (
                    len(shape) < 2 or shape[-2] % ROWS or prod(leading) * fmt.row_bytes(k) < fmt.library_bytes
                ):
                    return None
                return type_id
        return None

    def __str__(self) -> str:
        return self.name


def _upstream(name: str, fallback: Type | None, file_type: LlamaFileType | None = None) -> Type:
    kind = GGMLQuantizationType[name.upper()]
    block, nbytes = GGML_QUANT_SIZES[kind]
    return Type(
        name,
        {block: int(kind)},
        8 * nbytes / block,
        snr=_SNR.get(name),
        fallback=fallback,
        file_type=None if file_type is None else int(file_type),
    )


_F16 = _upstream("f16", None, LlamaFileType.MOSTLY_F16)
_Q8_0 = _upstream("q8_0", _F16, LlamaFileType.MOSTLY_Q8_0)


def _codebooks() -> list[Type]:
    """One type for the members that differ in their super-blocks only."""
    members: dict[str, dict[int, int]] = {}
    for fmt in sorted(CB_FORMATS.values(), key=lambda f: (-f.sb, f.type)):
        members.setdefault(fmt.family, {})[fmt.sb] = fmt.type
    types = []
    for name, ids in members.items():
        largest = CB_FORMATS[next(iter(ids.values()))]
        types.append(
            Type(name, ids, largest.bpw, True, _SNR.get(name), _Q8_0, largest.type, _PLANES.get(name))
        )
    return types


_FILE_TYPES = {"q5_k": LlamaFileType.MOSTLY_Q5_K_M, "q6_k": LlamaFileType.MOSTLY_Q6_K}
_OTHERS = (
    "q4_0 q4_1 q5_0 q5_1 q2_k q3_k q4_k q5_k q6_k "
    "iq1_s iq1_m iq2_xxs iq2_xs iq2_s iq3_xxs iq3_s iq4_nl iq4_xs"
)

TYPES: dict[str, Type] = {
    kind.name: kind
    for kind in (
        *_codebooks(),
        _upstream("f32", None, LlamaFileType.ALL_F32),
        _F16,
        _upstream("bf16", None, LlamaFileType.MOSTLY_BF16),
        _Q8_0,
        *(_upstream(name, _Q8_0, _FILE_TYPES.get(name)) for name in _OTHERS.split()),
    )
}
# What a tensor stays that was trained in it, if no codebook stands for the same numbers; by ggml's names.
PUBLISHED: dict[str, Type] = {
    kind.name.upper(): kind
    for kind in (
        _upstream("tq1_0", _Q8_0, LlamaFileType.MOSTLY_TQ1_0),
        _upstream("tq2_0", _Q8_0, LlamaFileType.MOSTLY_TQ2_0),
        Type("q2_0", {64: 42}, 2.25, fallback=_Q8_0),
        _upstream("mxfp4", _Q8_0, LlamaFileType.MOSTLY_MXFP4_MOE),
        TYPES["q4_0"],
    )
}
FLOATS = frozenset(
    GGMLQuantizationType[name] for name in ("F32", "F16", "BF16")
)  # ids of what is not quantized


@dataclass(frozen=True)
class Recipe:
    """What the matrices of a file get: ``base``, but for the names that an exception's pattern matches whole.

    The first exception counts.
    """

    name: str
    base: Type
    exceptions: tuple[tuple[re.Pattern[str], Type], ...] = ()

    @property
    def is_mix(self) -> bool:
        """Whether several types are what was asked for, not what a few matrices get besides."""
        return self.name != self.base.name

    def pure(self) -> Recipe:
        """The same without exceptions."""
        return Recipe(self.name, self.base)

    def wanted(self, name: str) -> Type:
        """The type for the matrix ``name``, its shape not looked at."""
        return next((better for pattern, better in self.exceptions if pattern.fullmatch(name)), self.base)


def _recipes() -> list[Recipe]:
    recipes = [Recipe(name, TYPES[name]) for name in ("f32", "f16", "bf16")]
    # The token embeddings and the output matrix take part in every prediction, so they get more bits. Of cb4,
    # tiny-chat, tied embeddings, KL divergence to F16 on wikitext and books (measured): with CB6 0.0427 and
    # 0.0282, with Q6_K, which needs rows of 256 and is 4% larger, 0.0425 and 0.0282.
    ends = re.compile(r"token_embd\.weight|output\.weight")
    better = {"cb2": "cb4", "cb25": "cb4", "cb3": "cb4", "cb4": "cb6", "cb5": "cb6", "cb6": "cb6"}
    # Small matrices around the stream of Gemma 3n and 4, which llama-quantize leaves alone too.
    small = re.compile(r"(blk\.\d+\.)?(altup_.*|laurel_.*|per_layer_model_proj)\.weight"), _F16
    recipes += [Recipe(name, TYPES[name], ((ends, TYPES[best]), small)) for name, best in better.items()]
    # The mixes give more bits where errors cost most per weight (measured on two models): as many as the
    # output gets to the values of attention, small matrices, ten times as sensitive as others; a step to the
    # embeddings, to values that are fused with queries and keys, and to the first layer, whose errors pass
    # through all others.
    most = re.compile(r"output\.weight|blk\.\d+\.attn_v(_b)?\.weight")
    more = re.compile(r"token_embd\.weight|blk\.\d+\.attn_(qkv|kv_b)\.weight|blk\.0\..*")
    step = {"cb2": "cb3", "cb25": "cb3", "cb3": "cb4", "cb4": "cb5"}
    recipes += [
        Recipe(f"{name}_m", TYPES[name], (small, (most, TYPES[better[name]]), (more, TYPES[larger])))
        for name, larger in step.items()
    ]
    return recipes


RECIPES: dict[str, Recipe] = {recipe.name: recipe for recipe in _recipes()}
