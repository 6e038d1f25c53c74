# SPDX-License-Identifier: MIT
"""What a conversion is asked for, as one value that is checked when it is made."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from gguf_tools.errors import LutraError
from gguf_tools.formats.catalog import RECIPES
from gguf_tools.formats.family import CB_FORMATS
from gguf_tools.sources.hub import is_name
from gguf_tools.sources.hub_cache import model_name
from lutra.conversion.boards import BOARDS, HERE
from lutra.conversion.llama_quantize import llama_file_types
from lutra.conversion.plan import Rules, parse_pattern, parse_tensor_type, tensor_type
from lutra.conversion.text import CALIBRATION_TEXT, read_documents
from lutra.runtime.threads import checked_threads, default_threads
from pyquant.bipolar import has_integers

OPTIONS_KEY = "lutra.convert.options"
TOKENS_KEY = "lutra.convert.calibration_tokens"
# Arguments of --calibration beside files: the text that comes along, what the model writes itself.
DEFAULT, SELF = Path("default"), Path("self")
LEARNED, BIPOLAR = CODEBOOKS = ("learned", "bipolar")  # arguments of --codebook

_UNITS = {"K": 10**3, "M": 10**6, "G": 10**9, "KI": 2**10, "MI": 2**20, "GI": 2**30}


@dataclass(frozen=True)
class Target:
    """What the types of a file have to meet, ``text`` as it was given; one of the others.

    ``bpw``: bits per weight of all tensors; ``nbytes`` of the file; ``loss``: rise of the perplexity (0.01 is
    1%); ``kld``: KL divergence to the original's predictions, nats per token.
    """

    text: str
    bpw: float | None = None
    nbytes: int | None = None
    loss: float | None = None
    kld: float | None = None

    def __post_init__(self) -> None:
        given = [value for value in (self.bpw, self.nbytes, self.loss, self.kld) if value is not None]
        if len(given) != 1 or given[0] <= 0:
            raise LutraError(
                f"'{self.text}': a target is bits per weight, bytes or a loss, one of them, above 0"
            )

    @classmethod
    def parse_bpw(cls, text: str) -> Target:
        """From text such as "3.0". Raises LutraError."""
        return cls(text, bpw=_number(text, "number of bits per weight, e.g. 3.0"))

    @classmethod
    def parse_size(cls, text: str) -> Target:
        """From text such as "400M", "1.5G" (powers of ten) or "400MiB" (powers of two). Raises LutraError."""
        found = re.fullmatch(r"(\d+\.?\d*|\.\d+)([KMG]I?)B?", text.upper())
        if not found or not 1 <= (size := float(found[1]) * _UNITS[found[2]]) < 2**63:
            raise LutraError(f"'{text}' is no size, e.g. 400M, 1.5G or 400MiB")
        return cls(text, nbytes=int(size))

    @classmethod
    def parse_loss(cls, text: str) -> Target:
        """From text such as "1%". Raises LutraError."""
        what = "rise of the perplexity, e.g. 1%"
        if not text.endswith("%"):
            raise LutraError(f"'{text}' is no {what}")
        return cls(text, loss=_number(text[:-1], what) / 100)

    @classmethod
    def parse_kld(cls, text: str) -> Target:
        """From text such as "0.02". Raises LutraError."""
        return cls(text, kld=_number(text, "KL divergence in nats per token, e.g. 0.02"))

    @property
    def bound(self) -> float | None:
        """Nats per token that may be lost; None if a size is the target."""
        return math.log1p(self.loss) if self.loss else self.kld

    @property
    def option(self) -> str:
        """Its name on the command line."""
        given = {"bpw": self.bpw, "size": self.nbytes, "loss": self.loss, "kld": self.kld}
        name = next(name for name, value in given.items() if value is not None)
        return f"--target-{name}" if name in ("bpw", "size") else f"--max-{name}"

    def __str__(self) -> str:
        """For the name of a file."""
        if self.bound:
            return f"{self.option.removeprefix('--')}-{self.text.rstrip('%')}"
        return f"{self.text}bpw" if self.bpw else self.text


def _number(text: str, what: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.0 < value < math.inf:
        raise LutraError(f"'{text}' is no {what}")
    return value


@dataclass(frozen=True)
class ConversionOptions:
    """How to convert a model; the options of ``lutra convert`` have the same meaning.

    Either ``type`` (a type of Lutra's or of llama-quantize, lower case) or ``target`` is given. ``board``,
    with a target that bounds the loss: the machine that the file shall be fast on, one of ``boards``.
    ``tensor_types`` are "REGEX=TYPE", the first that matches a name counts. Codebooks whose name matches
    ``two_planes``, a regular expression, get activations in two planes of int8. ``imatrix``: a file of
    llama-imatrix. ``calibration``: a text file, "self" for what the model writes itself, or "default" for the
    text that comes along, which codebooks are calibrated with where neither this nor ``imatrix`` is given,
    unless ``calibrate`` is False; ``calibration_tokens`` of it instead of as many as mostly suffice. ``tune``
    takes what the model writes and some of that text, unless ``calibration`` is a file; ``device`` ("cpu",
    "cuda" or "auto") and ``tune_tokens``, at most, belong to it. ``cluster``: the address of a Dask
    scheduler. ``codebook``: "learned", or "bipolar" for tables of odd integers, which take no text and next
    to no time. ``threads`` default to the fast cores. ``allow_requantize``: a GGUF may be quantized already.

    Raises LutraError, naming the option of the command line, for what cannot be: no source is needed to know.
    """

    type: str | None = None
    target: Target | None = None
    board: str | None = None
    pure: bool = False
    tensor_types: Sequence[str] = ()
    output_type: str | None = None
    embedding_type: str | None = None
    two_planes: str | None = None
    imatrix: Path | None = None
    calibration: Path | None = None
    calibration_tokens: int | None = None
    calibrate: bool = True
    codebook: str = LEARNED
    tune: bool = False
    allow_requantize: bool = False
    device: str = "auto"
    tune_tokens: int | None = None
    seed: int = 0
    threads: int = field(default_factory=default_threads)
    cluster: str | None = None

    def __post_init__(self) -> None:
        for name in ("imatrix", "calibration"):  # paths may be given as text, and types as a list
            if path := getattr(self, name):
                object.__setattr__(self, name, Path(path))
        object.__setattr__(self, "tensor_types", tuple(self.tensor_types))
        if (self.type is None) == (self.target is None):
            raise LutraError("a conversion needs a type or a target, one of the two")
        if self.board and (self.target is None or self.target.bound is None):
            raise LutraError(f"--for {self.board} belongs to --max-loss or --max-kld: a size is no time")
        if self.board and self.board not in (HERE, *BOARDS):
            raise LutraError(
                f"--for {self.board}: no such machine; choose one of {', '.join((*BOARDS, HERE))}"
            )
        if not self.calibrate and (self.imatrix or self.calibration):
            option = "--imatrix" if self.imatrix else "--calibration"
            raise LutraError(f"{option} and --no-calibration contradict each other; drop one of them")
        if self.pure and (self.target or (self.type in RECIPES and RECIPES[self.type].is_mix)):
            several = self.target.option if self.target else f"--type {self.type}"
            raise LutraError(f"--pure gives every matrix one --type, {several} several; drop one of them")
        if self.codebook not in CODEBOOKS:
            raise LutraError(f"--codebook {self.codebook}: choose one of {', '.join(CODEBOOKS)}")
        if self.is_bipolar:
            self._check_bipolar()
        if self.tune and not self.calibration_text:
            raise LutraError(
                "--no-calibration and --tune contradict each other; drop one of them"
                if not self.calibrate
                else f"--tune needs codebooks and a text: a type of cb2 to cb6, --calibration {DEFAULT}"
            )
        if self.calibration_tokens and not self.calibration_text:
            raise LutraError(
                "--calibration-tokens: nothing is calibrated; drop it, or choose a type of cb2 to cb6"
            )
        if (self.tune_tokens or self.device != "auto") and not self.tune:
            raise LutraError(
                f"{'--tune-tokens' if self.tune_tokens else '--device'} belongs to --tune; add it"
            )
        if not self.is_own and self.type not in (types := llama_file_types()):
            choice = ", ".join(dict.fromkeys((*RECIPES, *types)))
            raise LutraError(f"'{self.type}' is no type; choose one of {choice}")
        if self.two_planes and not self.is_own:
            raise LutraError(f"--two-planes is for codebooks, {self.type} has none; drop it")
        _ = self.rules  # its types and patterns
        checked_threads(self.threads)
        if self.seed < 0:
            raise LutraError(f"--seed {self.seed}: give a number of 0 or more")
        for path in (self.imatrix, self.calibration):
            if path and path not in (DEFAULT, SELF) and not path.is_file():
                raise LutraError(f"{path}: {'not a file' if path.exists() else 'no such file'}")
        if self.calibration_text:
            for _ in read_documents(self.calibration_text):
                pass  # only whether it can be read
        if self.tune:
            from lutra.conversion.tune import device_of, require_torch

            require_torch()
            device_of(self.device)

    def _check_bipolar(self) -> None:
        given = {"--imatrix": self.imatrix, "--calibration": self.calibration, "--tune": self.tune}
        if option := next((option for option, value in given.items() if value), None):
            raise LutraError(
                f"--codebook {BIPOLAR} learns nothing, {option} is for what does; drop one of them"
            )
        if self.target or not self.is_own or not self.rules.may_have_codebooks:
            raise LutraError(f"--codebook {BIPOLAR} needs a --type of codebooks, e.g. cb4")
        ids = (number for kind in self.rules.types for number in kind.ids.values())
        if fmt := next(
            (CB_FORMATS[i] for i in ids if i in CB_FORMATS and not has_integers(CB_FORMATS[i])), None
        ):
            raise LutraError(
                f"--codebook {BIPOLAR}: {fmt.family} has no whole bits per weight; choose another type"
            )

    @property
    def is_bipolar(self) -> bool:
        """Whether tables are odd integers, and nothing is learned."""
        return self.codebook == BIPOLAR

    @property
    def is_own(self) -> bool:
        """Whether Lutra makes the file; llama-quantize makes the others."""
        return self.target is not None or self.type in RECIPES

    @cached_property
    def rules(self) -> Rules:
        """Which types tensors get, but for those that a target decides."""
        recipe = RECIPES[self.type if self.type in RECIPES else "f16"]
        return Rules(
            recipe.pure() if self.pure else recipe,
            tensor_types=tuple(parse_tensor_type(text) for text in self.tensor_types),
            output_type=tensor_type(self.output_type) if self.output_type else None,
            embedding_type=tensor_type(self.embedding_type) if self.embedding_type else None,
            two_planes=parse_pattern("--two-planes", self.two_planes) if self.two_planes else None,
        )

    @cached_property
    def calibration_text(self) -> Path | None:
        """The text that codebooks are calibrated with; None without calibration or without codebooks."""
        if not self.is_own or not (self.target or self.rules.may_have_codebooks) or not self.calibrate:
            return None
        if self.is_bipolar:
            return None
        if self.calibration in (DEFAULT, SELF) or not (self.calibration or self.imatrix):
            return CALIBRATION_TEXT
        return self.calibration

    @property
    def text(self) -> Path:
        """The text that the model computes, to calibrate or to measure."""
        return self.calibration_text or CALIBRATION_TEXT

    @property
    def calibrates_with_own_text(self) -> bool:
        """Whether the model writes the text; the one that comes along gives beginnings."""
        return self.calibration == SELF

    @property
    def tunes_with_own_text(self) -> bool:
        """Whether tuning has no file of the user's, but what the model writes."""
        return self.calibration_text is not None and self.calibration in (None, DEFAULT, SELF)

    @property
    def mixes_own_text(self) -> bool:
        """Whether what the model writes and the text that comes along are taken together, before tuning and
        in it.
        """
        return self.tune and self.tunes_with_own_text and not self.calibrates_with_own_text

    def least_bytes(self, weights: int) -> int:
        """Bytes that the file of a model of so many weights will have at least, by the name of the type."""
        if self.target and self.target.nbytes:
            return self.target.nbytes
        if self.target:
            bits = self.target.bpw or 0.0
        elif self.is_own:
            bits = int(RECIPES[str(self.type)].base.bpw)
        else:
            found = re.search(r"\d+", str(self.type))
            bits = int(found[0]) if found else 0
        return int(weights * bits / 8)

    def record(self, *, calibrated: bool = True) -> str:
        """The options that decide what is in the file, as on a command line; paths as bare names, no threads.

        ``calibrated``: whether there were codebooks that the text served for.
        """
        words = [self.target.option, self.target.text] if self.target else ["--type", str(self.type)]
        words += ["--for", self.board] if self.board else []
        words += ["--seed", str(self.seed)]
        words += ["--imatrix", self.imatrix.name] if self.imatrix else []
        if self.calibration_text and calibrated:
            words += ["--calibration", (self.calibration or DEFAULT).name]
        words += ["--calibration-tokens", str(self.calibration_tokens)] if self.calibration_tokens else []
        words += [] if self.calibrate else ["--no-calibration"]
        words += ["--two-planes", self.two_planes] if self.two_planes else []
        words += ["--codebook", self.codebook] if self.codebook != LEARNED else []
        words += ["--tune"] if self.tune else []
        words += ["--allow-requantize"] if self.allow_requantize else []
        words += ["--tune-tokens", str(self.tune_tokens)] if self.tune and self.tune_tokens else []
        return shlex.join(words + self.llama_words())

    def llama_words(self) -> list[str]:
        """The options that llama-quantize has too, under the same names."""
        words = ["--pure"] if self.pure else []
        for text in self.tensor_types:
            words += ["--tensor-type", text]
        words += ["--output-tensor-type", self.output_type] if self.output_type else []
        words += ["--token-embedding-type", self.embedding_type] if self.embedding_type else []
        return words


def source_name(source: str) -> str:
    """Name of the model in a source: the last part without .gguf, file number and a float type's suffix."""
    if is_name(source):
        source = re.sub(r"(-gguf)?(:.*)?$", "", source, flags=re.IGNORECASE)
    name = re.sub(r"(-\d{5}-of-\d{5})?\.gguf$", "", model_name(Path(source)))
    return re.sub(r"[-.](f32|f16|bf16)$", "", name, flags=re.IGNORECASE)
