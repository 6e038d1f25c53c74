# SPDX-License-Identifier: MIT
"""Watching a model compute: the inputs of each matrix are shown before the product, and its weights replaced.

All tokens go through the model in one graph, node by node (llama.cpp's eval callback), so that one pass is
enough to quantize a model matrix by matrix, each behind those already quantized. What a node of the graph is
and where its operands lie is known in C: cpu_kernels/ggml/capture.c.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gguf_tools.errors import LutraError
from gguf_tools.interrupts import shielded
from lutra.runtime.loaded import Closing, Loaded
from lutra.runtime.native import llama, load

_ADVICE = "--no-calibration converts without computing the model"


class Operands(ctypes.Structure):
    """struct lutra_matmul_inputs of cpu_kernels/ggml/lutra_ggml.h."""

    _fields_ = (
        ("weights", ctypes.c_void_p),
        ("name", ctypes.c_char_p),
        ("source", ctypes.c_void_p),
        ("rows", ctypes.c_void_p),
        ("n_rows", ctypes.c_int64),
        ("k", ctypes.c_int64),
        ("n_tokens", ctypes.c_int64),
        ("n_used", ctypes.c_int64),
    )


@functools.cache
def _ggml() -> ctypes.CDLL:
    base, pointer = load("ggml-base"), ctypes.c_void_p
    base.lutra_capture.argtypes = (pointer, ctypes.POINTER(Operands))
    base.lutra_capture.restype = ctypes.c_bool
    base.lutra_copy_rows.argtypes = base.lutra_copy_matrices.argtypes = (pointer, pointer)
    base.lutra_copy_rows.restype = base.lutra_copy_matrices.restype = None
    base.lutra_set_planes.argtypes, base.lutra_set_planes.restype = (pointer, ctypes.c_int), None
    base.lutra_replace_data.argtypes, base.lutra_replace_data.restype = (pointer, pointer), pointer
    return base


def operands(node: int) -> Operands | None:
    """What ``node``, a ggml_tensor, multiplies or looks up; None if it does neither."""
    found = Operands()
    return found if _ggml().lutra_capture(node, ctypes.byref(found)) else None


def replace_data(tensor: int, address: int) -> int:
    """Let ``tensor`` have its data at another address, and return the one that it had."""
    return int(_ggml().lutra_replace_data(tensor, address))


def set_planes(weights: int, planes: int) -> None:
    """Let the inputs of a codebook have so many planes of int8, 1 or 2."""
    _ggml().lutra_set_planes(weights, planes)


@dataclass
class MatmulInputs:
    """A matrix about to be used: its name and its inputs, float32 (rows, k).

    ``inputs`` is None where rows are looked up (token embeddings). It may be a view of the graph's memory,
    valid until the next matrix; matrices with equal ``source`` have the same inputs. ``experts``, of a stack
    of matrices: which of them meet each token's inputs, int32 (tokens, used); ``inputs`` then has one row or
    ``used`` rows per token.
    """

    name: str
    inputs: NDArray[np.float32] | None
    experts: NDArray[np.int32] | None
    source: int
    _weights: int
    _own: NDArray[np.float16] | None = None
    _original: int = 0

    def replace(self, weights: NDArray[np.float16]) -> None:
        """Let the graph use other weights (rows, k) until the next matrix."""
        self.restore()
        self._own = np.ascontiguousarray(weights)
        self._original = replace_data(self._weights, self._own.ctypes.data)

    def restore(self) -> None:
        """Undo ``replace``."""
        if self._own is not None:
            replace_data(self._weights, self._original)
            self._own = None


def bytes_needed(path: Path, sequences: int, length: int, *, predictions: int) -> int:
    """What ``Capture`` takes for so many sequences, beside the weights: keys and values, recurrent states,
    and what the graph computes. Only the header is read.

    Raises LutraError when there cannot be such a context.
    """
    with Loaded(path, weights=False, advice=_ADVICE) as loaded:
        loaded.start(_context(loaded, sequences, length, predictions), _ADVICE)
        return loaded.context_bytes


def _context(loaded: Loaded, sequences: int, length: int, predictions: int) -> Any:
    """llama_context_params for all of ``sequences`` in one graph."""
    api, n = llama(), sequences * length
    vocabulary = api.llama_vocab_n_tokens(api.llama_model_get_vocab(loaded.model))
    params = api.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = n
    params.n_seq_max, params.kv_unified = sequences, False
    outputs = min(n, max(sequences, predictions // max(1, vocabulary)))  # llama.cpp wants one of each
    params.n_outputs_max = params.n_outputs_max_per_seq = outputs
    return params


class Capture(Closing):
    """A model of F16 matrices computing ``pieces`` (sequences, tokens), all of one length.

    Iterating, once, yields MatmulInputs before every matrix in ``names`` is multiplied or, with ``lookups``,
    has rows looked up in it. The graph waits until the next one is asked for, and is left when all names have
    been seen. ``predictions`` bounds the logits (tokens times vocabulary) that the runtime keeps. Raises
    LutraError when the model cannot be loaded or computed.
    """

    def __init__(
        self,
        path: Path,
        pieces: Sequence[Sequence[int]],
        names: set[str],
        *,
        threads: int,
        predictions: int,
        lookups: bool = True,
    ) -> None:
        self._names = set(names)
        self._left = set(names)
        self._lookups = lookups
        self._seen: SimpleQueue[MatmulInputs | Exception | None] = SimpleQueue()
        self._go: SimpleQueue[None] = SimpleQueue()
        self._leaving = False
        self._thread: Thread | None = None
        self._last: MatmulInputs | None = None  # whose weights the graph may be using
        self._batch: Any = None
        self._api = llama()
        self._loaded = Loaded(path, advice=_ADVICE)
        try:
            self._start(pieces, threads, predictions)
        except BaseException:
            self.close()
            raise

    def _start(self, pieces: Sequence[Sequence[int]], threads: int, predictions: int) -> None:
        api, length = self._api, len(pieces[0])
        n = len(pieces) * length
        self._callback = api.ggml_backend_sched_eval_callback(self._on_node)
        params = _context(self._loaded, len(pieces), length, predictions)
        params.n_threads = params.n_threads_batch = threads
        params.cb_eval = self._callback
        self._loaded.start(params, _ADVICE)
        self._batch = api.llama_batch_init(n, 0, 1)
        # The last layer computes only what is asked for: evenly spread tokens, few if the vocabulary is
        # large.
        every = -(-n // params.n_outputs_max)
        for i, token in enumerate(t for piece in pieces for t in piece):
            self._batch.token[i], self._batch.pos[i] = token, i % length
            self._batch.n_seq_id[i], self._batch.seq_id[i][0] = 1, i // length
            self._batch.logits[i] = i % every == 0
        self._batch.n_tokens = n

    def __iter__(self) -> Iterator[MatmulInputs]:
        if self._thread or self._batch is None:
            raise LutraError(f"{self._loaded.path}: was computed already, or is closed")
        self._thread = Thread(target=self._run, daemon=True)
        self._thread.start()
        while True:
            seen = self._seen.get()
            if self._last:
                self._last.restore()
            if seen is None:
                return
            if isinstance(seen, Exception):
                raise seen
            self._last = seen
            yield seen
            self._go.put(None)

    @property
    def bytes(self) -> int:
        """What the model takes beside its weights: see ``bytes_needed``."""
        return self._loaded.context_bytes

    @shielded
    def close(self) -> None:
        """Leave the graph and free the model. Closing twice is fine."""
        self._leaving = True
        if self._thread:
            self._go.put(None)
            self._thread.join()
        if self._batch is not None:
            self._api.llama_batch_free(self._batch)
            self._batch = None
        self._loaded.close()

    # ---- in the thread that computes -------------------------------------------------------

    def _run(self) -> None:
        try:
            self._loaded.decode(self._batch)
            self._seen.put(None)
        except Exception as error:  # must not be lost in this thread
            self._seen.put(error)

    def _on_node(self, node: int, ask: bool, _: int | None) -> bool:
        """Called before a node is computed, to ``ask`` whether to stop behind it, and there: to go on?

        One node at a time, so that the operands of the next one are there when it is asked about.
        """
        try:
            if ask:
                if not self._leaving:
                    self._show(node)
                return True
            return bool(self._left) and not self._leaving
        except Exception as error:  # would only be printed
            self._leaving = True
            self._seen.put(error)
            return ask

    def _show(self, node: int) -> None:
        if not (found := operands(node)):
            return
        name = found.name.decode("utf-8", "replace")
        if name not in self._names or not (found.source or self._lookups):
            return
        self._left.discard(name)
        inputs = rows(node, found) if found.source else None
        experts = _matrices(node, found) if found.n_used else None
        self._seen.put(MatmulInputs(name, inputs, experts, found.source or 0, found.weights))
        self._go.get()


def rows(node: int, found: Operands) -> NDArray[np.float32]:
    """What ``node`` multiplies, (rows, k): where it lies, or a copy if its rows lie apart."""
    n, k = found.n_rows, found.k
    if found.rows:
        data = (ctypes.c_float * (n * k)).from_address(found.rows)
        return np.frombuffer(data, np.float32).reshape(n, k)
    rows = np.empty((n, k), np.float32)
    _ggml().lutra_copy_rows(node, rows.ctypes.data)
    return rows


def _matrices(node: int, found: Operands) -> NDArray[np.int32]:
    """Which matrices meet the inputs of each token, (tokens, used)."""
    out = np.empty((found.n_tokens, found.n_used), np.int32)
    _ggml().lutra_copy_matrices(node, out.ctypes.data)
    return out
