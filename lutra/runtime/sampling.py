# SPDX-License-Identifier: MIT
"""How the next token is chosen: llama.cpp's samplers, their settings, and what ends an endless answer."""

from __future__ import annotations

import ctypes
import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from gguf_tools.errors import LutraError
from gguf_tools.interrupts import shielded
from lutra.runtime.loaded import Closing
from lutra.runtime.native import llama

_INT_MAX = 2**31 - 1
_BREAKERS = (b"\n", b":", b'"', b"*")  # llama.cpp's: DRY counts no repetition across them
_LONGEST_PERIOD = 256  # tokens of a loop that is noticed


def _setting(default: float, least: float, most: float, text: str, key: str = "") -> Any:
    """A field of ``Sampling`` with its bounds, what it does, and the key of a GGUF file that has it."""
    return field(default=default, metadata={"bounds": (least, most), "text": text, "key": key})


@dataclass(frozen=True)
class Sampling:
    """The settings of llama.cpp's samplers, by their names there. Each in its bounds, else LutraError."""

    temp: float = _setting(0.7, 0, 1e6, "temperature; 0: the likeliest token always", "temp")
    top_k: int = _setting(40, 0, _INT_MAX, "the K likeliest tokens; 0: all", "top_k")
    top_p: float = _setting(0.95, 0, 1, "the likeliest that together have this probability", "top_p")
    min_p: float = _setting(0.05, 0, 1, "those with this part of the likeliest's probability", "min_p")
    xtc_probability: float = _setting(
        0, 0, 1, "how often all likely tokens but the last are left out", "xtc_probability"
    )
    xtc_threshold: float = _setting(
        0.1, 0, 1, "the probability from which XTC calls one likely", "xtc_threshold"
    )
    repeat_penalty: float = _setting(1, 0.01, 1e6, "for tokens said lately; 1: none", "penalty_repeat")
    repeat_last_n: int = _setting(64, -1, _INT_MAX, "how many are late; -1: the context", "penalty_last_n")
    presence_penalty: float = _setting(0, -1e6, 1e6, "for a token among them; 0: none")
    frequency_penalty: float = _setting(0, -1e6, 1e6, "each time that it is; 0: none")
    dry_multiplier: float = _setting(0, 0, 1e6, "DRY: for what makes a repetition longer; 0: none")
    dry_base: float = _setting(1.75, 0, 1e6, "DRY: how the penalty grows with each token")
    dry_allowed_length: int = _setting(2, 0, _INT_MAX, "DRY: tokens that may be repeated")
    dry_penalty_last_n: int = _setting(-1, -1, _INT_MAX, "DRY: where it looks; -1: the context")
    stop_loop: int = _setting(
        200, 0, _INT_MAX, "end an answer that has repeated itself over N tokens; 0: never"
    )

    def __post_init__(self) -> None:
        for setting in dataclasses.fields(self):
            value, (least, most) = getattr(self, setting.name), setting.metadata["bounds"]
            if not least <= value <= most:
                upper = "" if most in (_INT_MAX, 1e6) else f" to {most:g}"
                raise LutraError(f"{setting.name} is {value:g}; give a number from {least:g}{upper}")

    def with_texts(self, values: dict[str, str]) -> Sampling:
        """With settings by name as people write them. Raises LutraError for others, and for no numbers."""
        changes = {}
        for name, text in values.items():
            kind = _KINDS.get(name)
            if kind is None:
                raise LutraError(f"no setting '{name}'; there are {', '.join(_KINDS)}")
            try:
                changes[name] = kind(text)
            except ValueError:
                what = "a whole number" if kind is int else "a number"
                raise LutraError(f"{name} is {what}, not '{text}'") from None
        return dataclasses.replace(self, **changes)

    @classmethod
    def of_file(cls, value: Callable[[str], str | None], usual: Sampling) -> Sampling:
        """What the author of a GGUF file recommends, the rest as ``usual``.

        ``value`` gives a key's value in the file as text. What makes no sense is left out.
        """
        chosen = usual
        for setting in dataclasses.fields(cls):
            text = value(f"general.sampling.{setting.metadata['key']}") if setting.metadata["key"] else None
            if text is not None:
                try:
                    chosen = chosen.with_texts({setting.name: text})
                except LutraError:
                    continue
        return chosen


_KINDS: dict[str, type] = {
    setting.name: {"int": int, "float": float}[str(setting.type)] for setting in dataclasses.fields(Sampling)
}


class Sampler(Closing):
    """llama.cpp's samplers in the order that llama.cpp has them; see ``Model.sampler``.

    ``seed`` None is a random one. ``vocab`` is a llama_vocab *, ``n_ctx`` the context in tokens.
    """

    def __init__(self, settings: Sampling, seed: int | None, vocab: Any, n_ctx: int) -> None:
        self._api = api = llama()
        seed = api.LLAMA_DEFAULT_SEED if seed is None else seed
        self._chain = api.llama_sampler_chain_init(api.llama_sampler_chain_default_params())
        window, dry_window = (
            n_ctx if last < 0 else min(last, n_ctx)
            for last in (settings.repeat_last_n, settings.dry_penalty_last_n)
        )
        breakers = (ctypes.c_char_p * len(_BREAKERS))(*_BREAKERS)
        # These count what was said; each is empty unless it is asked for.
        self._counting = [
            api.llama_sampler_init_penalties(
                api.llama_vocab_n_tokens(vocab), window, settings.repeat_penalty,
                settings.frequency_penalty, settings.presence_penalty,
            ),
            api.llama_sampler_init_dry(
                vocab, settings.dry_multiplier, settings.dry_base, settings.dry_allowed_length, dry_window,
                breakers, len(_BREAKERS),
            ),
        ]  # fmt: skip
        self._window = max(window, dry_window)
        links = list(self._counting)
        if settings.temp <= 0:
            links.append(api.llama_sampler_init_greedy())
        else:
            links += [
                api.llama_sampler_init_top_k(settings.top_k),
                api.llama_sampler_init_top_p(settings.top_p, 1),
                api.llama_sampler_init_min_p(settings.min_p, 1),
                api.llama_sampler_init_xtc(settings.xtc_probability, settings.xtc_threshold, 1, seed),
                api.llama_sampler_init_temp(settings.temp),
                api.llama_sampler_init_dist(seed),
            ]
        for link in links:
            api.llama_sampler_chain_add(self._chain, link)

    def begin(self, prompt: Sequence[int]) -> None:
        """Count what is in ``prompt`` as said, and nothing else. Raises LutraError after ``close``."""
        self._require_open()
        for link in self._counting:
            self._api.llama_sampler_reset(link)
            for token in prompt[-self._window :]:
                self._api.llama_sampler_accept(link, token)

    def sample(self, ctx: Any) -> int:
        """The next token for the last logits of the context. Raises LutraError after ``close``."""
        self._require_open()
        return int(self._api.llama_sampler_sample(self._chain, ctx, -1))

    def _require_open(self) -> None:
        if not self._chain:
            raise LutraError("the sampler is closed")

    @shielded
    def close(self) -> None:
        """Free the sampler. Closing twice is fine."""
        if self._chain:
            self._api.llama_sampler_free(self._chain)
        self._chain = None


class Loop:
    """Notices an answer that only repeats itself: the same tokens at least four times, over ``length``.

    ``length`` 0: never.
    """

    def __init__(self, length: int) -> None:
        self._length = length
        self._tokens: list[int] = []
        self._runs: dict[int, int] = {}  # by period: how many of the last tokens are as they were one earlier
        self.period = 0  # tokens that are repeated, once it is noticed

    def goes_on(self, token: int) -> bool:
        """Whether the answer has come to repeat itself with ``token``, its next."""
        said = self._tokens
        said.append(token)
        periods = range(1, min(len(said) - 1, _LONGEST_PERIOD) + 1)
        self._runs = {p: self._runs.get(p, 0) + 1 for p in periods if said[-1 - p] == token}
        for period, run in self._runs.items():
            if self._length and period + run >= max(self._length, 4 * period):
                self.period = period
                return True
        return False
