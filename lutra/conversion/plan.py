"""Which type each tensor of a converted file gets: the rules of ``lutra convert``, no work done yet."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from gguf_tools.errors import LutraError
from gguf_tools.formats.family import ROWS, CBFormat, cb_format
from gguf_tools.reader import tensor_nbytes
from gguf_tools.sources.tensors import SourceTensor, keeps_f32
from lutra.cli.convert import MIXES
from lutra.console import mib, table

CB_TYPES = ("cb2", "cb3", "cb4")
FLOAT_TYPES = ("f32", "f16", "bf16")
# Types of upstream that ggml can make of float rows.
STOCK_TYPES = (
    *FLOAT_TYPES, "q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k",
    "iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs", "iq3_s", "iq4_nl", "iq4_xs",
)  # fmt: skip

# The token embeddings and the output matrix take part in every prediction, so they get more bits. With
# cb4 it is what upstream gives the output of its 4-bit types: tiny-chat, tied embeddings, KL divergence
# to BF16 (measured): 0.030, with CB4 embeddings 0.044, IQ4_NL 0.042.
RECIPE = {"cb2": "cb4", "cb3": "cb4", "cb4": "q6_k"}

# The mixes give more bits where errors cost most per weight (measured on two models): as many as the output
# gets to the values of attention, small matrices, ten times as sensitive as others; a step to the
# embeddings, and to the first layer, whose errors pass through all others.
VALUES = re.compile(r"blk\.\d+\.attn_v\.weight")
STEP = {"cb2": "cb3", "cb3": "cb4", "cb4": "q5_k"}

# For --dry-run's estimate only: weights per second and thread (one Zen 4 core).
SPEED, CALIBRATED_SPEED = 4e6, 0.3e6

EMBEDDING, OUTPUT = "token_embd.weight", "output.weight"


@dataclass(frozen=True)
class Rules:
    """What the user asked for: a base type (or mix) and exceptions, all in lower case.

    ``tensor_types`` are (regular expression, type) in order of precedence; ``pure`` drops the recipe for
    embeddings and output. ``solved`` are types by tensor name that take the base's place.
    """

    base: str
    pure: bool = False
    tensor_types: Sequence[tuple[str, str]] = ()
    output_type: str | None = None
    embedding_type: str | None = None
    solved: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Planned:
    """A tensor and the type it gets; ``fmt`` when that is a CB type, ``instead_of`` the type asked for."""

    source: SourceTensor
    type: int
    type_name: str
    nbytes: int
    fmt: CBFormat | None = None
    instead_of: str | None = field(default=None)

    @property
    def weights(self) -> int:
        """Number of weights."""
        return self.source.rows * self.source.k


def check_type(name: str) -> str:
    """``name`` in lower case. Raises LutraError when it is no type for a tensor."""
    if name.lower() not in (*CB_TYPES, *STOCK_TYPES):
        raise LutraError(f"'{name}' is no tensor type; choose one of {', '.join((*CB_TYPES, *STOCK_TYPES))}")
    return name.lower()


def parse_tensor_type(text: str) -> tuple[str, str]:
    """Parse REGEX=TYPE. Raises LutraError."""
    pattern, equals, name = text.rpartition("=")
    if not equals or not pattern:
        raise LutraError(f"--tensor-type {text}: write REGEX=TYPE, e.g. ffn_down=cb4")
    try:
        re.compile(pattern)
    except re.error as error:
        raise LutraError(f"--tensor-type {text}: '{pattern}' is no regular expression: {error}") from None
    return pattern, check_type(name)


def plan(tensors: Sequence[SourceTensor], rules: Rules) -> list[Planned]:
    """The type of every tensor, in order. Raises LutraError for a type that does not exist."""
    tied = all(tensor.name != OUTPUT for tensor in tensors)
    return [fit(tensor, override(tensor, rules, tied) or _wanted(tensor, rules)) for tensor in tensors]


def override(tensor: SourceTensor, rules: Rules, tied: bool) -> str | None:
    """The type that no base changes, if there is one. Precedence as in llama-quantize."""
    if keeps_f32(tensor.name, tensor.shape):
        return "f32"
    is_embedding = tensor.name == EMBEDDING
    is_output = tensor.name == OUTPUT or (tied and is_embedding)
    if is_embedding and rules.embedding_type:
        return rules.embedding_type
    if is_output and rules.output_type:
        return rules.output_type
    for pattern, name in rules.tensor_types:
        if re.search(pattern, tensor.name):
            return name
    return None


def _wanted(tensor: SourceTensor, rules: Rules) -> str:
    """The type that the base gives, before the shape is looked at."""
    if tensor.name in rules.solved:
        return rules.solved[tensor.name]
    base = rules.base.removesuffix("_m")
    better = base
    if rules.base in MIXES:
        if tensor.name == OUTPUT or VALUES.fullmatch(tensor.name):
            better = RECIPE[base]
        elif tensor.name == EMBEDDING or tensor.name.startswith("blk.0."):
            better = STEP[base]
    elif tensor.name in (EMBEDDING, OUTPUT) and not rules.pure:
        better = RECIPE.get(base, base)
    return better if better in CB_TYPES or tensor.k % block_size(better) == 0 else base


def block_size(name: str) -> int:
    """Weights per block of one of upstream's types."""
    return GGML_QUANT_SIZES[GGMLQuantizationType[name.upper()]][0]


def fit(tensor: SourceTensor, wanted: str) -> Planned:
    """The wanted type, or Q8_0, or F16: the first that can hold rows of this length."""
    for name in (wanted, "q8_0", "f16"):
        fmt = _cb_format(name, tensor) if name in CB_TYPES else None
        if name in CB_TYPES and fmt is None:
            continue
        type_id = fmt.type if fmt else GGMLQuantizationType[name.upper()].value
        if not fmt and tensor.k % block_size(name):
            continue
        return Planned(
            source=tensor,
            type=type_id,
            type_name=fmt.name if fmt else name.upper(),
            nbytes=tensor_nbytes(type_id, tensor.shape),
            fmt=fmt,
            instead_of=None if name == wanted else wanted.upper(),
        )
    raise AssertionError("F16 holds rows of any length")


def _cb_format(name: str, tensor: SourceTensor) -> CBFormat | None:
    # Each matrix of a stack of experts is made of whole strips.
    return None if tensor.shape[-2] % ROWS else cb_format(name, tensor.k, tensor.rows)


def describe(planned: Sequence[Planned], threads: int, calibrated: bool = False) -> str:
    """The table that --dry-run prints."""
    rows = [("tensor", "shape", "type", "bytes", "")]
    for p in planned:
        shape = " x ".join(map(str, p.source.shape))
        note = f"cannot be {p.instead_of}" if p.instead_of else ""
        rows.append((p.source.name, shape, p.type_name, str(p.nbytes), note))
    weights, nbytes = sum(p.weights for p in planned), sum(p.nbytes for p in planned)
    learned = sum(p.weights for p in planned if p.fmt)
    seconds = learned / (CALIBRATED_SPEED if calibrated else SPEED) / threads
    bpw = 8 * nbytes / weights
    totals = [
        f"{len(planned)} tensors, {weights / 1e6:.1f} M weights: {mib(nbytes)}, {bpw:.2f} bits per weight"
    ]
    if learned:
        totals.append(f"{learned / weights:.1%} of the weights in codebooks")
        how = "with calibration" if calibrated else "without calibration"
        totals.append(f"expected: {seconds:.0f} s with {threads} threads, {how} (an estimate)")
    return "\n".join([table(rows, right=(3,)), "", *totals])
