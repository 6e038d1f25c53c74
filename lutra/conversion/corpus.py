# SPDX-License-Identifier: MIT
"""What a model reads while it is converted: the text that comes along, the user's, or its own words.

Where torch is there, for ``--tune``, half of the text to calibrate with and nine tenths of the text to tune
with are the model's own. Each half makes up for what the other does not show: its own words are what it
knows best, the text that comes along has kinds that it rarely writes (docs/CALIBRATION.md#which-text).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gguf_tools.formats.family import CBFormat
from gguf_tools.sources.tensors import Source
from lutra.conversion import own_text, tune
from lutra.conversion.calibrate import SEQUENCES, token_limit
from lutra.conversion.divergence import TOKENS as ASIDE_TOKENS
from lutra.conversion.network import NetworkSampling, network_of
from lutra.conversion.options import ConversionOptions
from lutra.conversion.text import keep_aside, piece_length, read_pieces, spread
from lutra.conversion.tuning_memory import at_once
from lutra.conversion.workdir import WorkDirectory
from lutra.runtime.model import Model

if TYPE_CHECKING:
    from lutra.conversion.network import Weights

Pieces = list[list[int]]
"""Sequences of tokens, all of one length."""

OWN = 2  # of so many sequences to calibrate with before tuning, one is the model's own
KNOWN = 10  # of so many sequences to tune with, one is of the text that comes along
TUNING = 1.0  # the temperature of what is tuned with: what the model would write


class Corpus:
    """The texts of a conversion, in the words of ``tokenizer``; ``f16`` gives the model as an F16 GGUF.

    What the model wrote is kept in ``work``, so that a conversion that goes on has the same.
    """

    def __init__(
        self,
        work: WorkDirectory,
        source: Source,
        options: ConversionOptions,
        tokenizer: Model,
        f16: Callable[[], Path],
    ) -> None:
        self._work, self._source, self._options = work, source, options
        self._tokenizer, self._f16 = tokenizer, f16
        self.length = piece_length(tokenizer)

    def limit(self, needed: Callable[[int], int]) -> int:
        """Tokens to calibrate with; ``needed``: of ``calibrate.copy_bytes``."""
        wanted, thorough = self._options.calibration_tokens, self._options.tune
        return token_limit(self._source, self.length, needed, wanted=wanted, thorough=thorough)

    def to_calibrate(
        self, limit: int, types: Mapping[str, CBFormat | None] | None = None
    ) -> tuple[Pieces, Pieces]:
        """At most ``limit`` tokens to calibrate with, and where there is a target others, kept aside for
        measuring. ``types`` of the file's tensors, where they are known.
        """
        options, count = self._options, limit // self.length
        if options.calibrates_with_own_text:
            own = self._own("own-text", count, own_text.TEMPERATURES, types=types)
            return keep_aside(own) if options.target else (own, [])
        own = []
        if options.tune and options.tunes_with_own_text and count >= OWN:
            own = self._own("own-text", count // OWN, [TUNING], types=types)
        if not options.target:
            return read_pieces(options.text, self._tokenizer, limit - len(own) * self.length) + own, []
        pieces, aside = keep_aside(read_pieces(options.text, self._tokenizer, sys.maxsize))
        return spread(pieces, count - len(own)) + own, spread(aside, ASIDE_TOKENS // self.length)

    def to_tune(
        self, limit: int, original: Weights, affordable: Callable[[float], int] | None
    ) -> tuple[Pieces, Pieces]:
        """About ``limit`` tokens to tune with, in two parts: what the model wrote, or the user's text, and
        what it may have been calibrated with. ``original``: of ``tune.load``. ``affordable`` gives the number
        of tokens instead, told the seconds that writing one takes.
        """
        options = self._options
        if not options.tunes_with_own_text:
            return read_pieces(options.text, self._tokenizer, affordable(0) if affordable else limit), []
        share = 1 if options.calibrates_with_own_text else 1 - 1 / KNOWN
        name = f"tuning-text-{tune.device_of(options.device).type}-{limit}"
        own = self._own(
            name, int(limit * share) // self.length, [TUNING],
            original=original, first=SEQUENCES,
            affordable=affordable and (lambda writing: int(affordable(writing) * share)),
        )  # fmt: skip
        known = int(len(own) * (1 / share - 1) + 0.5) * self.length
        return own, read_pieces(options.text, self._tokenizer, known, overlapping=True) if known else []

    def _own(
        self,
        name: str,
        count: int,
        temperatures: Sequence[float],
        *,
        types: Mapping[str, CBFormat | None] | None = None,
        original: Weights | None = None,
        first: int = 0,
        affordable: Callable[[float], int] | None = None,
    ) -> Pieces:
        """``count`` sequences that the model writes, the ``first`` one by its number, where tuning computes;
        see ``own_text.write_pieces``.
        """
        options, tokens = self._options, count * self.length

        def write() -> Pieces:
            if not options.tune or (device := tune.device_of(options.device)).type == "cpu":
                return own_text.write_on_cpu(
                    self._f16(), self._tokenizer, tokens, seed=options.seed, threads=options.threads,
                    temperatures=temperatures, first=first, affordable=affordable,
                )  # fmt: skip
            weights = original
            if not weights:
                frugal = tune.is_frugal(self._source, types or tune.smallest(self._source), device)
                weights = tune.load(self._source, device, frugal=frugal)
            network, frugal = network_of(self._source), tune.is_for_frugal(weights)
            most = at_once(
                network, self._source.tensors, device, self.length, most=own_text.ON_GPU, frugal=frugal
            )
            samples = NetworkSampling(network, weights, length=self.length)
            with tune.reproducible(device):
                return own_text.write_pieces(
                    samples, self._tokenizer, tokens,
                    seed=options.seed, at_once=most, temperatures=temperatures, first=first,
                )  # fmt: skip

        return self._work.tokens_of(name, write)
