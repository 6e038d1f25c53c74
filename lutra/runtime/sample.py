# SPDX-License-Identifier: MIT
"""Many sequences that a model writes at once."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gguf_tools.interrupts import shielded
from lutra.runtime.loaded import Closing, Loaded
from lutra.runtime.native import llama

Writer = Generator[int, int, None]
"""Yields the next token of a sequence; is sent what the model would write behind it."""


class Sampling(Closing):
    """A model that writes sequences of ``length`` tokens, at most ``at_once`` side by side.

    The tokens are the same for any number of ``threads``: attention is computed without the blocks into which
    llama.cpp's fast one divides the keys between threads. Raises LutraError when the model cannot be loaded.
    """

    def __init__(self, path: Path, *, length: int, at_once: int, threads: int, advice: str) -> None:
        self._api = api = llama()
        self._length = length
        self._batch: Any = None
        self._loaded = Loaded(path, advice=advice)
        try:
            self._vocabulary = api.llama_vocab_n_tokens(api.llama_model_get_vocab(self._loaded.model))
            params = api.llama_context_default_params()
            params.n_ctx, params.n_batch, params.n_ubatch = at_once * length, at_once, at_once
            params.n_seq_max, params.kv_unified = at_once, False
            params.n_outputs_max, params.n_outputs_max_per_seq = at_once, 1
            params.n_threads = params.n_threads_batch = threads
            params.flash_attn_type = api.LLAMA_FLASH_ATTN_TYPE_DISABLED
            self._loaded.start(params, advice)
            self._batch = api.llama_batch_init(at_once, 0, 1)
        except BaseException:
            self.close()
            raise

    def write(
        self,
        writers: Sequence[Writer],
        temperatures: Sequence[float],
        seed: int,
        show: Callable[[int], object],
    ) -> list[list[int]]:
        """What each of at most ``at_once`` ``writers`` wrote at its temperature: ``length`` tokens.

        Tokens are drawn from all of the distribution. ``show`` is told the number of tokens of each step.
        """
        api, n = self._api, len(writers)
        api.llama_memory_clear(api.llama_get_memory(self._loaded.ctx), True)
        coldness = 1 / np.array(temperatures, np.float32)[:, None]
        rng = np.random.default_rng(seed)
        batch, written = self._batch, [[next(writer)] for writer in writers]
        for position in range(self._length - 1):
            for i, tokens in enumerate(written):
                batch.token[i], batch.pos[i], batch.logits[i] = tokens[-1], position, True
                batch.n_seq_id[i], batch.seq_id[i][0] = 1, i
            batch.n_tokens = n
            self._loaded.decode(batch)
            logits = np.ctypeslib.as_array(api.llama_get_logits(self._loaded.ctx), (n, self._vocabulary))
            drawn = _draw(np.multiply(logits, coldness, dtype=np.float32), rng.random(n))
            for tokens, writer, token in zip(written, writers, drawn, strict=True):
                tokens.append(writer.send(int(token)))
            show(n)
        return written

    @shielded
    def close(self) -> None:
        """Free the context and the model. Closing twice is fine."""
        if self._batch is not None:
            self._api.llama_batch_free(self._batch)
            self._batch = None
        self._loaded.close()


def _draw(logits: NDArray[np.float32], chance: NDArray[np.float64]) -> NDArray[np.int64]:
    """A token per row of ``logits``, by inverting the cumulative distribution at ``chance`` from [0, 1)."""
    p = np.exp(logits - logits.max(-1, keepdims=True))
    below = np.cumsum(p, -1, dtype=np.float64)
    reached = below <= chance[:, None] * below[:, -1:]
    drawn: NDArray[np.int64] = np.minimum(reached.sum(-1), logits.shape[-1] - 1)
    return drawn
