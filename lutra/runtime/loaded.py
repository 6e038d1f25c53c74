# SPDX-License-Identifier: MIT
"""What llama.cpp holds for a file, and its release."""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from gguf_tools.errors import LutraError
from gguf_tools.interrupts import can_wait, is_waiting, shielded
from lutra.runtime import crash, log
from lutra.runtime.native import llama, load_backends
from lutra.runtime.workers import Devices

_LONG = 32  # tokens at once that may take a while
# In llama.cpp's log: keys and values, recurrent states, and what the nodes of the largest graph need at once.
_MEBIBYTES = re.compile(r"(?:llama_\w+: size|compute buffer size) = +([\d.]+) MiB")

_Self = TypeVar("_Self", bound="Closing")


class Closing:
    """A context manager that closes what it is."""

    def close(self) -> None:
        """Release what is held. Closing twice is fine."""
        raise NotImplementedError

    def __enter__(self: _Self) -> _Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _is_interrupted(_: object) -> bool:
    return is_waiting()


class Loaded(Closing):
    """llama.cpp's model of a file, mapped into memory, and later its context.

    Without ``weights`` only the header is read. ``workers`` hold a part of the layers. ``verbose`` shows
    llama.cpp's log on stderr. Raises LutraError when the file cannot be loaded, with ``advice`` (default: to
    verify it).
    """

    def __init__(
        self,
        path: Path,
        *,
        weights: bool = True,
        workers: Sequence[str] = (),
        verbose: bool = False,
        advice: str | None = None,
    ) -> None:
        self._api = llama()
        self._model = self._ctx = None
        self.path = path
        self.context_bytes = 0  # of the context, without the logits that it gives out
        self._verbose = verbose
        self._weights = weights
        self._advice = advice or f"'lutra verify {path}' checks the file"
        self._ends = self._api.ggml_abort_callback(_is_interrupted)
        self._goes_on = self._api.ggml_abort_callback()
        log.install()
        load_backends()
        self._devices = Devices(workers) if workers else None
        try:
            self._load(weights)
        except BaseException:
            self.close()
            raise

    # Calls that may log are shielded: a signal must not be raised in the callback, where it would be lost.

    @shielded
    def _load(self, weights: bool) -> None:
        params = self._api.llama_model_default_params()
        if self._devices:
            params.devices = self._devices.address
            params.n_gpu_layers = self._devices.layers(self.path)
        params.use_extra_bufts = False  # weights stay where they are in the file, no repacked copy
        if not weights:
            params.no_alloc, params.load_mode = True, 0  # which must not be mmap then
        crash.opened(self.path, self._advice)
        with log.listening(self._verbose) as errors:
            self._model = self._api.llama_model_load_from_file(os.fsencode(self.path), params)
        if not self._model:
            crash.closed(self.path, self._advice)
            raise LutraError(f"{self.path}: {log.reason(errors)}; {self._advice}")

    @property
    def model(self) -> Any:
        """llama_model *. Raises LutraError after ``close``."""
        return self._open(self._model)

    @property
    def ctx(self) -> Any:
        """llama_context *. Raises LutraError after ``close``."""
        return self._open(self._ctx)

    @shielded
    def start(self, params: Any, advice: str) -> None:
        """Make the context; without weights, only see how large it would be.

        Raises LutraError, with ``advice``, when there cannot be one of this size.
        """
        lines: list[str] = []
        with log.listening(self._verbose, lines) as errors:
            self._ctx = self._api.llama_init_from_model(self.model, params)
        if not self._ctx:
            reason = log.reason(errors)
            raise LutraError(f"{self.path}: no context of {params.n_ctx} tokens: {reason}; {advice}")
        sizes = _MEBIBYTES.findall("".join(lines))
        self.context_bytes = int(sum(map(float, sizes)) * (1 << 20))

    @shielded
    def decode(self, batch: Any) -> None:
        """Compute a llama_batch. Raises LutraError when that fails, and without weights.

        A signal ends it early where a person would wait for its end; not for one token, where asking for
        signals at every step would take longer.
        """
        if not self._weights:
            raise LutraError(f"{self.path}: only the header was read; load the model with its weights")
        is_long = batch.n_tokens >= _LONG and can_wait()
        self._api.llama_set_abort_callback(self.ctx, self._ends if is_long else self._goes_on, None)
        with log.listening(self._verbose) as errors:
            code = self._api.llama_decode(self.ctx, batch)
        if code:
            raise LutraError(f"{self.path}: computing failed ({code}): {log.reason(errors)}")

    @shielded
    def save_state(self, path: Path, tokens: Sequence[int]) -> None:
        """Write what the context has computed of ``tokens``. Raises LutraError when that fails."""
        array = (self._api.llama_token * len(tokens))(*tokens)
        with log.listening(self._verbose) as errors:
            size = self._api.llama_state_seq_save_file(self.ctx, os.fsencode(path), 0, array, len(array))
        if not size or path.stat().st_size != size:
            raise LutraError(f"{path}: cannot be written: {log.reason(errors)}")

    @shielded
    def load_state(self, path: Path, n: int) -> list[int]:
        """Read what ``save_state`` has written of at most ``n`` tokens, and return those.

        Raises LutraError, with nothing computed in the context, when that fails.
        """
        api = self._api
        memory = api.llama_get_memory(self.ctx)
        api.llama_memory_clear(memory, True)
        array, count = (api.llama_token * n)(), ctypes.c_size_t()
        with log.listening(self._verbose) as errors:
            size = api.llama_state_seq_load_file(
                self.ctx, os.fsencode(path), 0, array, n, ctypes.byref(count)
            )
        if not size or api.llama_memory_seq_pos_max(memory, 0) != count.value - 1:
            api.llama_memory_clear(memory, True)
            raise LutraError(f"{path}: cannot be read: {log.reason(errors)}")
        return list(array[: count.value])

    @shielded
    def close(self) -> None:
        """Free the context and the model. Closing twice is fine."""
        if self._ctx:
            self._api.llama_free(self._ctx)
        if self._model:
            self._api.llama_model_free(self._model)
            crash.closed(self.path, self._advice)
        if self._devices:
            self._devices.close()
        self._model = self._ctx = self._devices = None

    def _open(self, pointer: Any) -> Any:
        if not pointer:
            raise LutraError(f"{self.path}: the model is closed")
        return pointer
