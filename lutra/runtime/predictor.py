# SPDX-License-Identifier: MIT
"""What a model predicts when the inputs of its matrices are rounded, or less so."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gguf_tools.errors import LutraError
from lutra.runtime.context import CACHE_TYPES
from lutra.runtime.loaded import Closing, Loaded
from lutra.runtime.matmul_inputs import operands, replace_data, rows, set_planes
from lutra.runtime.native import llama

Array = NDArray[np.float32]
Rounding = Callable[[Array], Array]  # of inputs (rows, k), which are not written to
Choice = Callable[[str], Rounding | None]  # by the name of a matrix
Planes = Mapping[str, int]  # 1 or 2, by the name of a codebook


class Predictor(Closing):
    """The logits of a GGUF file behind each of the last tokens of a sequence.

    Sequences have ``length`` tokens, of which those from ``first`` on are predicted from; nothing is kept
    between them. ``cache_types`` are those of keys and values; None: all of attention is in float32. Raises
    LutraError when the file cannot be loaded.
    """

    def __init__(
        self,
        path: Path,
        length: int,
        first: int,
        *,
        threads: int,
        cache_types: tuple[str, str] | None = None,
    ) -> None:
        self._choose: Choice | None = None
        self._planes: Planes = {}
        self._key: tuple[int, Rounding] | None = None  # a tensor and how it was rounded: to this
        self._rounded = np.empty(0, np.float32)
        self._original: tuple[int, int] | None = None  # the same tensor, and the address of its own data
        self._error: Exception | None = None
        self._batch: Any = None
        self._api = api = llama()
        self._length, self._outputs = length, length - first
        self._loaded = Loaded(path)
        try:
            self._callback = api.ggml_backend_sched_eval_callback(self._on_node)
            params = api.llama_context_default_params()
            params.n_ctx = params.n_batch = params.n_ubatch = length
            params.n_seq_max = 1
            params.n_threads = params.n_threads_batch = threads
            types = cache_types or ("f32", "f32")
            params.type_k, params.type_v = (CACHE_TYPES[kind][0] for kind in types)
            if not cache_types:  # flash attention takes float16 for float32
                params.flash_attn_type = api.LLAMA_FLASH_ATTN_TYPE_DISABLED
            params.cb_eval = self._callback
            self._loaded.start(params, "see --ctx")
            self.n_vocab: int = api.llama_vocab_n_tokens(api.llama_model_get_vocab(self._loaded.model))
            self._batch = api.llama_batch_init(length, 0, 1)
            for i in range(length):
                self._batch.pos[i], self._batch.logits[i] = i, i >= first
                self._batch.n_seq_id[i], self._batch.seq_id[i][0] = 1, 0
            self._batch.n_tokens = length
        except BaseException:
            self.close()
            raise

    def logits(
        self, tokens: Sequence[int], choose: Choice | None = None, planes: Planes | None = None
    ) -> Array:
        """The logits behind tokens ``first`` to ``length`` - 1, (tokens, vocabulary).

        ``choose`` says of each matrix how its inputs are rounded before the product, ``planes`` of codebooks
        how many planes of int8 their inputs have in it, from now on.
        """
        for i, token in enumerate(tokens):
            self._batch.token[i] = token
        api, self._choose, self._planes = self._api, choose, planes or {}
        self._key, self._error = None, None
        api.llama_memory_clear(api.llama_get_memory(self._loaded.ctx), True)
        self._loaded.decode(self._batch)
        if self._error:
            raise self._error
        pointer = api.llama_get_logits(self._loaded.ctx)
        logits: Array = np.ctypeslib.as_array(pointer, (self._outputs, self.n_vocab)).copy()
        return logits

    def close(self) -> None:
        """Free the model. Closing twice is fine."""
        if self._batch is not None:
            self._api.llama_batch_free(self._batch)
            self._batch = None
        self._loaded.close()

    def _on_node(self, node: int, ask: bool, _: int | None) -> bool:
        """Called before a node is computed, to ``ask`` whether to stop behind it, and there: to go on?

        One node at a time, so that the operands of the next one are there when it is asked about.
        """
        try:
            if self._original:
                replace_data(*self._original)
                self._original = None
            if ask and not self._error:
                self._put(node)
        except Exception as error:  # would only be printed
            self._error = error
        return self._choose is not None if ask else not self._error

    def _put(self, node: int) -> None:
        """Round the inputs of ``node`` if it is the product of a matrix whose inputs are to be rounded, and
        give it its planes.
        """
        found = operands(node)
        if not found or not found.source:
            return
        name = found.name.decode("utf-8", "replace")
        if planes := self._planes.get(name):
            set_planes(found.weights, planes)
        if not self._choose or not (rounding := self._choose(name)):
            return
        key = found.source, rounding
        if key != self._key:  # else it is the next matrix of the same inputs
            if not found.rows:
                raise LutraError(f"{self._loaded.path}: {name}: its inputs do not lie together in memory")
            self._key = key
            self._rounded = np.ascontiguousarray(rounding(rows(node, found)), np.float32)
        self._original = found.source, replace_data(found.source, self._rounded.ctypes.data)
