# SPDX-License-Identifier: MIT
"""What a model reads while it is converted: the text that comes along, the user's, or its own words.

With ``--tune``, and no other text asked for, half of what is calibrated with and nine tenths of what is tuned
with are the model's own. Its own words are what it knows best; the text that comes along has kinds that it
rarely writes (docs/TUNING.md#which-text).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gguf_tools.formats.family import CBFormat
from gguf_tools.sources.tensors import EMBEDDING, Source
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
SHIPPED = 10  # of so many sequences to tune with, one is of the text that comes along
TUNING = 1.0  # the temperature of what is tuned with: what the model would write


def own_share(options: ConversionOptions) -> float:
    """Of the text to calibrate with."""
    if options.calibrates_with_own_text:
        return 1.0
    return 1 / OWN if options.mixes_own_text else 0.0


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
        """Tokens to calibrate with; ``needed``: of ``calibrate.copy_bytes``. Kept: memory may change."""
        wanted, thorough = self._options.calibration_tokens, self._options.tune
        return int(self._work.number("calibration tokens", lambda: token_limit(
            self._source, self.length, needed, wanted=wanted, thorough=thorough
        )))  # fmt: skip

    def to_calibrate(
        self, limit: int, types: Mapping[str, CBFormat | None], check: Callable[[int], object]
    ) -> tuple[Pieces, Pieces]:
        """At most ``limit`` tokens to calibrate a file of these ``types`` with: of a text, and the model's
        own. ``check`` is told how many sequences there will be before any is written.
        """
        options, count = self._options, limit // self.length
        if options.calibrates_with_own_text:
            check(count)
            own = self._own("own-text", count, own_text.TEMPERATURES, types=types)
            return [], keep_aside(own)[0] if options.target else own
        written = count // OWN if options.mixes_own_text else 0
        if options.target:
            given, _ = self.to_measure((count - written) * self.length)
        else:
            given = read_pieces(options.text, self._tokenizer, (count - written) * self.length)
        check(len(given) + written)
        return given, self._own("own-text", written, [TUNING], types=types) if written else []

    def to_measure(self, limit: int) -> tuple[Pieces, Pieces]:
        """For a target: at most ``limit`` tokens of a text, of those to calibrate with, to learn what costs
        how much, and others, which nothing is calibrated with, to measure a file.
        """
        count = limit // self.length
        if self._options.calibrates_with_own_text:
            return keep_aside(self._own("own-text", count, own_text.TEMPERATURES))
        pieces, aside = keep_aside(read_pieces(self._options.text, self._tokenizer, sys.maxsize))
        return spread(pieces, count), spread(aside, ASIDE_TOKENS // self.length)

    def to_tune(
        self, limit: int | None, original: Weights, affordable: Callable[[float], int]
    ) -> tuple[Pieces, Pieces]:
        """About ``limit`` tokens to tune with, in two parts: what the model wrote, or the user's text, and
        what it may have been calibrated with. ``original``: of ``tune.load``. Without a limit ``affordable``
        gives the number of tokens, told the seconds that writing one takes.
        """
        options = self._options
        if not options.tunes_with_own_text:
            tokens = affordable(0) if limit is None else max(limit, self.length)
            return read_pieces(options.text, self._tokenizer, tokens), []

        def to_write(tokens: int) -> int:
            return tokens - tokens // SHIPPED if options.mixes_own_text else tokens

        own = self._own(
            f"tuning-text-{'by-time' if limit is None else limit}",
            to_write(limit or tune.MOST) // self.length, [TUNING],
            original=original, first=SEQUENCES,  # calibration has none of these numbers
            affordable=(lambda writing: to_write(affordable(writing))) if limit is None else None,
        )  # fmt: skip
        if not options.mixes_own_text:
            return own, []
        again = len(own) // (SHIPPED - 1) * self.length
        return own, read_pieces(options.text, self._tokenizer, again, overlapping=True)

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
            assert affordable is None  # a GPU has time
            weights = original
            if not weights:
                frugal = tune.is_frugal(self._source, types or tune.smallest(self._source), device)
                weights = tune.load(self._source, device, frugal=frugal)
            return self._written_by(weights, tokens, temperatures, first)

        return self._work.tokens_of(name, write)

    def _written_by(self, weights: Weights, tokens: int, temperatures: Sequence[float], first: int) -> Pieces:
        """``_own`` by torch."""
        device, network = weights[EMBEDDING].device, network_of(self._source)
        most = at_once(
            network, self._source.tensors, device, self.length,
            most=own_text.ON_GPU, frugal=tune.is_for_frugal(weights),
        )  # fmt: skip
        with tune.reproducible(device):
            return own_text.write_pieces(
                NetworkSampling(network, weights, length=self.length), self._tokenizer, tokens,
                seed=self._options.seed, at_once=most, temperatures=temperatures, first=first,
            )  # fmt: skip
