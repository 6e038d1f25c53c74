"""Watching a model compute: every matrix of the graph stops before it is applied, with its inputs at hand.

All tokens go through the model in one graph, node by node (llama.cpp's eval callback). Before a matrix is
multiplied, whoever watches sees its inputs and may replace its weights, so that one pass is enough to
quantize a model layer by layer behind the layers already quantized.
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gguf_tools.errors import LutraError
from lutra.runtime.model import bindings, load_backends
from lutra.runtime.paths import lib_path

_F32 = 0  # GGML_TYPE_F32


class _Tensor(ctypes.Structure):
    """struct ggml_tensor of ggml.h."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("buffer", ctypes.c_void_p),
        ("ne", ctypes.c_int64 * 4),
        ("nb", ctypes.c_size_t * 4),
        ("op", ctypes.c_int),
        ("op_params", ctypes.c_int32 * 16),
        ("flags", ctypes.c_int32),
        ("src", ctypes.c_void_p * 10),
        ("view_src", ctypes.c_void_p),
        ("view_offs", ctypes.c_size_t),
        ("data", ctypes.c_void_p),
        ("name", ctypes.c_char * 64),
    )


@functools.cache  # llama.cpp calls it for as long as the process lives
def _silence() -> Any:
    return bindings().llama_log_callback(lambda level, text, data: None)


def _tensor(address: int) -> _Tensor:
    return ctypes.cast(address, ctypes.POINTER(_Tensor)).contents


@dataclass
class Stop:
    """A matrix about to be used: its name and its inputs (tokens, k).

    ``inputs`` is None where rows are looked up (token embeddings). It is a view of the graph's memory, valid
    until the next stop; matrices with equal ``source`` have the same inputs. ``experts``, of a stack of
    experts: who gets them, (tokens, used); ``inputs`` then has one row or ``used`` rows per token.
    """

    name: str
    inputs: NDArray[np.float32] | None
    experts: NDArray[np.int32] | None
    source: int
    _weight: _Tensor
    _own: NDArray[np.float16] | None = None
    _original: int = 0

    def replace(self, weights: NDArray[np.float16]) -> None:
        """Let the graph use other weights (rows, k) until the next stop."""
        self._own = np.ascontiguousarray(weights)
        self._original, self._weight.data = self._weight.data, self._own.ctypes.data

    def restore(self) -> None:
        """Undo ``replace``."""
        if self._own is not None:
            self._weight.data, self._own = self._original, None


class Observer:
    """A model of F16 matrices computing ``pieces`` (sequences, tokens), all of one length.

    Iterating yields a Stop before every matrix in ``names`` is multiplied or, with ``lookups``, has rows
    looked up in it. The graph waits until the next one is asked for, and is left when all names have been
    seen. ``predictions`` bounds the logits (tokens times vocabulary) that the runtime keeps. Raises
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
        self._api = api = bindings()
        self._names = set(names)
        self._left = set(names)
        self._stops: SimpleQueue[Stop | Exception | None] = SimpleQueue()
        self._go: SimpleQueue[bool] = SimpleQueue()
        self._leaving = False
        self._path = path
        api.llama_log_set(_silence(), None)
        load_backends(api)
        base = ctypes.CDLL(str(lib_path("ggml-base")))
        base.ggml_op_name.restype = ctypes.c_char_p
        names_of_ops = {base.ggml_op_name(i).decode(): i for i in range(64)}
        self._stack = names_of_ops["MUL_MAT_ID"]
        self._ops = {names_of_ops["MUL_MAT"], self._stack} | (
            {names_of_ops["GET_ROWS"]} if lookups else set()
        )
        model_params = api.llama_model_default_params()
        model_params.use_extra_bufts = False
        self._model = api.llama_model_load_from_file(os.fsencode(path), model_params)
        if not self._model:
            raise LutraError(f"{path}: cannot be loaded for calibration")
        n, length = len(pieces), len(pieces[0])
        vocabulary = api.llama_vocab_n_tokens(api.llama_model_get_vocab(self._model))
        outputs = max(1, min(n * length, predictions // vocabulary))
        self._callback = api.ggml_backend_sched_eval_callback(self._on_node)
        params = api.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = n * length
        params.n_seq_max, params.kv_unified = n, False
        params.n_outputs_max = params.n_outputs_max_per_seq = outputs
        params.n_threads = params.n_threads_batch = threads
        params.cb_eval = self._callback
        self._ctx = api.llama_init_from_model(self._model, params)
        if not self._ctx:
            raise LutraError(f"{path}: no context of {n * length} tokens for calibration")
        self._batch = api.llama_batch_init(n * length, 0, 1)
        # The last layer computes only what is asked for: evenly spread tokens, few if the vocabulary is
        # large.
        every = -(-n * length // outputs)
        for i, token in enumerate(t for piece in pieces for t in piece):
            self._batch.token[i], self._batch.pos[i] = token, i % length
            self._batch.n_seq_id[i], self._batch.seq_id[i][0] = 1, i // length
            self._batch.logits[i] = i % every == 0
        self._batch.n_tokens = n * length

    def __iter__(self) -> Iterator[Stop]:
        thread = Thread(target=self._run, daemon=True)
        thread.start()
        last: Stop | None = None
        try:
            while (stop := self._stops.get()) is not None:
                if last:
                    last.restore()
                if isinstance(stop, Exception):
                    raise stop
                last = stop
                yield stop
                self._go.put(True)
        finally:
            self._leaving = True
            self._go.put(False)
            thread.join()

    def close(self) -> None:
        """Free the model."""
        self._api.llama_batch_free(self._batch)
        self._api.llama_free(self._ctx)
        self._api.llama_model_free(self._model)

    def _run(self) -> None:
        try:
            code = self._api.llama_decode(self._ctx, self._batch)
            self._stops.put(
                LutraError(f"{self._path}: computing failed ({code})") if code and not self._leaving else None
            )
        except Exception as error:  # must not be lost in this thread
            self._stops.put(error)

    def _on_node(self, address: int, ask: bool, _: int | None) -> bool:
        if self._leaving:
            return False
        if not ask:
            return bool(self._left)
        node = _tensor(address)
        if node.op not in self._ops:
            return True  # one node at a time: the inputs of the next one are ready
        weight = _tensor(node.src[0])
        name = weight.name.decode("utf-8", "replace")
        if name not in self._names:
            return True
        inputs = _tensor(node.src[1])
        x = _view(inputs) if inputs.type == _F32 else None
        experts = _indices(_tensor(node.src[2])) if node.op == self._stack else None
        self._left.discard(name)
        self._stops.put(Stop(name, x, experts, node.src[1], weight))
        if not self._go.get():
            self._leaving = True
        return True


def _view(tensor: _Tensor) -> NDArray[np.float32]:
    """A contiguous F32 tensor as (rows, k)."""
    k = tensor.ne[0]
    rows = tensor.ne[1] * tensor.ne[2] * tensor.ne[3]
    data: Any = (ctypes.c_float * (rows * k)).from_address(tensor.data)
    return np.frombuffer(data, np.float32).reshape(rows, k)


def _indices(tensor: _Tensor) -> NDArray[np.int32]:
    """A matrix of int32, rows anywhere."""
    columns, rows, stride = tensor.ne[0], tensor.ne[1], tensor.nb[1]
    data: Any = (ctypes.c_char * (stride * (rows - 1) + 4 * columns)).from_address(tensor.data)
    return np.ndarray((rows, columns), np.int32, data, strides=(stride, 4))
