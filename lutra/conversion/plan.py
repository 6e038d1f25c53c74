# SPDX-License-Identifier: MIT
"""Which type each tensor of a converted file gets: the rules of ``lutra convert``, no work done yet."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from gguf_tools.errors import LutraError
from gguf_tools.formats.catalog import FLOATS, TYPES, Recipe, Type
from gguf_tools.formats.family import CB_FORMATS, CBFormat
from gguf_tools.reader import tensor_nbytes, type_name
from gguf_tools.sources.tensors import EMBEDDING, OUTPUT, SourceTensor
from lutra.console import mib, table

# For --dry-run's estimate only: weights per second and thread (one Zen 4 core).
SPEED, CALIBRATED_SPEED = 4e6, 0.3e6


@dataclass(frozen=True)
class Rules:
    """What the user asked for: a recipe and exceptions.

    ``tensor_types`` are (regular expression, type) in order of precedence. Activations for codebooks whose
    name ``two_planes`` matches get two planes of int8; by default their types say which.
    """

    recipe: Recipe
    tensor_types: Sequence[tuple[re.Pattern[str], Type]] = ()
    output_type: Type | None = None
    embedding_type: Type | None = None
    two_planes: re.Pattern[str] | None = None

    @property
    def may_have_codebooks(self) -> bool:
        """Whether a tensor can become a codebook under these rules."""
        return any(kind.is_codebook for kind in (self.recipe.base, *self._named))

    @property
    def types(self) -> list[Type]:
        """All that tensors can be under these rules, fallbacks aside."""
        return [self.recipe.base, *(kind for _, kind in self.recipe.exceptions), *self._named]

    @property
    def _named(self) -> list[Type]:
        named = (self.output_type, self.embedding_type, *(kind for _, kind in self.tensor_types))
        return [kind for kind in named if kind]


@dataclass(frozen=True)
class Planned:
    """A tensor and the type it gets; ``id`` is ggml's, ``instead_of`` the type that its shape forbids.

    ``exact``: the codebook stands for the very same numbers.
    """

    source: SourceTensor
    type: Type
    id: int
    instead_of: Type | None = None
    exact: bool = False
    has_two_planes: bool = False

    @property
    def name(self) -> str:
        """Name of the tensor."""
        return self.source.name

    @property
    def fmt(self) -> CBFormat | None:
        """The member of the codebook family, None for upstream's types."""
        return CB_FORMATS.get(self.id)

    @property
    def is_quantized(self) -> bool:
        """False for types of plain floats."""
        return self.id not in FLOATS

    @property
    def is_kept(self) -> bool:
        """Whether its bytes are those of a source that is quantized in the same way."""
        same = self.source.stored is not None and self.type_name == self.source.dtype
        return same and self.is_quantized and not self.fmt

    @property
    def is_lossless(self) -> bool:
        """Whether it was taken over from a source of few bits."""
        return self.exact or self.is_kept

    @property
    def type_name(self) -> str:
        """Name of the ggml type."""
        return type_name(self.id)

    @property
    def weights(self) -> int:
        """Number of weights."""
        return self.source.rows * self.source.k

    @property
    def nbytes(self) -> int:
        """Bytes of its data, unpadded."""
        return tensor_nbytes(self.id, self.source.shape)


def tensor_type(name: str) -> Type:
    """The type of this name. Raises LutraError when there is none for tensors."""
    if name.lower() not in TYPES:
        raise LutraError(f"'{name}' is no tensor type; choose one of {', '.join(TYPES)}")
    return TYPES[name.lower()]


def parse_tensor_type(text: str) -> tuple[re.Pattern[str], Type]:
    """Parse REGEX=TYPE. Raises LutraError."""
    pattern, equals, name = text.rpartition("=")
    if not equals or not pattern:
        raise LutraError(f"--tensor-type {text}: write REGEX=TYPE, e.g. ffn_down=cb4")
    return parse_pattern("--tensor-type", pattern), tensor_type(name)


def parse_pattern(option: str, text: str) -> re.Pattern[str]:
    """A regular expression. Raises LutraError."""
    try:
        return re.compile(text)
    except re.error as error:
        raise LutraError(f"{option}: '{text}' is no regular expression: {error}") from None


def plan(tensors: Sequence[SourceTensor], rules: Rules) -> list[Planned]:
    """The type of every tensor, in order."""
    tied = is_tied(tensors)
    return [
        plan_as(tensor, fixed_type(tensor, rules, tied) or rules.recipe.wanted(tensor.name))
        for tensor in tensors
    ]


def give_planes(planned: list[Planned], rules: Rules) -> list[Planned]:
    """``planned`` with the planes that the rules ask for, if any. Raises LutraError if nothing has them."""
    if not (pattern := rules.two_planes):
        return planned
    planned = [replace(p, has_two_planes=bool(p.fmt and pattern.search(p.name))) for p in planned]
    if not any(p.has_two_planes for p in planned):
        raise LutraError(f"--two-planes {pattern.pattern}: no codebook has such a name; see --dry-run")
    return planned


def is_tied(tensors: Sequence[SourceTensor]) -> bool:
    """Whether the token embeddings are the output matrix too."""
    return all(tensor.name != OUTPUT for tensor in tensors)


def fixed_type(tensor: SourceTensor, rules: Rules, tied: bool) -> Type | None:
    """The type that neither recipe nor target changes, if there is one. Precedence as in llama-quantize."""
    if tensor.keeps_f32:
        return TYPES["f32"]
    is_embedding = tensor.name == EMBEDDING
    is_output = tensor.name == OUTPUT or (tied and is_embedding)
    if is_embedding and rules.embedding_type:
        return rules.embedding_type
    if is_output and rules.output_type:
        return rules.output_type
    return next((kind for pattern, kind in rules.tensor_types if pattern.search(tensor.name)), None)


def plan_as(tensor: SourceTensor, wanted: Type) -> Planned:
    """The wanted type, or the first of its fallbacks that can hold the tensor's shape."""
    kind = wanted
    while (type_id := kind.id_for(tensor.shape)) is None:
        assert kind.fallback, "F16 holds rows of any length"
        kind = kind.fallback
    planes = kind.two_planes is not None and bool(kind.two_planes.search(tensor.name))
    return Planned(tensor, kind, type_id, None if kind is wanted else wanted, has_two_planes=planes)


def main_type(planned: Sequence[Planned]) -> Type:
    """The type that most weights have, of those that a file can be said to be of."""
    weights = Counter({"f16": 0})
    for p in planned:
        if p.type.file_type is not None:
            weights[p.type.name] += p.weights
    return TYPES[weights.most_common(1)[0][0]]


def describe(planned: Sequence[Planned], threads: int, calibrated: bool = False) -> str:
    """The table that --dry-run prints."""
    rows = [("tensor", "shape", "type", "bytes", "")]
    for p in planned:
        shape = " x ".join(map(str, p.source.shape))
        note = f"cannot be {p.instead_of.name.upper()}" if p.instead_of else ""
        note = "exact" if p.exact else "as it is" if p.is_kept else note
        if p.has_two_planes:
            note = ", ".join(filter(None, (note, "two planes")))
        rows.append((p.name, shape, p.type_name, str(p.nbytes), note))
    weights, nbytes = sum(p.weights for p in planned), sum(p.nbytes for p in planned)
    learned = sum(p.weights for p in planned if p.fmt and not p.exact)
    seconds = learned / (CALIBRATED_SPEED if calibrated else SPEED) / threads
    bpw = 8 * nbytes / weights
    totals = [
        f"{len(planned)} tensors, {weights / 1e6:.1f} M weights: {mib(nbytes)}, {bpw:.2f} bits per weight"
    ]
    if codebooks := sum(p.weights for p in planned if p.fmt):
        totals.append(f"{codebooks / weights:.1%} of the weights in codebooks")
    if learned:
        how = "with calibration" if calibrated else "without calibration"
        totals.append(f"expected: {seconds:.0f} s with {threads} threads, {how} (an estimate)")
    return "\n".join([table(rows, right=(3,)), "", *totals])
