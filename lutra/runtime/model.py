"""A model in memory: tokens in, tokens out, through the stock llama-cpp-python bindings.

Only their low-level module (ctypes) is loaded: the package itself would import numpy and a disk cache,
which cost more memory than a small model.
"""

from __future__ import annotations

import codecs
import ctypes
import importlib.util
import os
import re
import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

from gguf_tools.errors import LutraError
from lutra.runtime.kernels import require_obeyed_choice
from lutra.runtime.paths import lib_dir, lib_path

_ERROR = 4  # GGML_LOG_LEVEL_ERROR
_BATCH = 512  # tokens per llama_decode of a prompt


def bindings() -> Any:
    """The module llama_cpp.llama_cpp on our libllama, without running the package's __init__."""
    if "llama_cpp" not in sys.modules:
        spec: ModuleSpec | None = importlib.util.find_spec("llama_cpp")
        if spec is None or not spec.submodule_search_locations:
            raise LutraError("the package llama-cpp-python is missing; run 'pip install .'")
        package = ModuleType("llama_cpp")
        package.__path__ = list(spec.submodule_search_locations)
        sys.modules["llama_cpp"] = package
    lib_path("llama")  # names what is missing before the bindings fail on it
    os.environ["LLAMA_CPP_LIB_PATH"] = str(lib_dir())
    return importlib.import_module("llama_cpp.llama_cpp")


def load_backends(api: Any) -> None:
    """Find the CPU backend of this machine where the backends are separate libraries."""
    ctypes.CDLL(str(lib_path("ggml"))).ggml_backend_load_all_from_path(os.fsencode(lib_dir()))
    api.llama_backend_init()


class Model:
    """A GGUF file mapped into memory with one sequence of at most ``n_ctx`` tokens.

    ``n_ctx`` None takes the model's own context, at most 4096. ``verbose`` shows llama.cpp's log on
    stderr; otherwise only Lutra's own lines are shown. Without ``weights`` only the header is read: enough
    to tokenize. Raises LutraError when the file cannot be loaded.
    """

    def __init__(
        self,
        path: Path,
        *,
        threads: int,
        n_ctx: int | None = None,
        verbose: bool = False,
        weights: bool = True,
    ) -> None:
        require_obeyed_choice()
        self._api = api = bindings()
        self._errors: list[str] = []
        self._log = api.llama_log_callback(lambda level, text, _: self._on_log(level, text, verbose))
        api.llama_log_set(self._log, None)
        load_backends(api)

        model_params = api.llama_model_default_params()
        model_params.use_extra_bufts = False  # weights stay where they are in the file, no repacked copy
        if not weights:
            model_params.no_alloc, model_params.load_mode = True, 0  # which must not be mmap then
        self._model = api.llama_model_load_from_file(os.fsencode(path), model_params)
        if not self._model:
            raise LutraError(f"{path}: {self._reason()}; 'lutra verify {path}' checks the file")
        self._vocab = api.llama_model_get_vocab(self._model)
        if api.llama_vocab_n_tokens(self._vocab) == 0 or api.llama_vocab_type(self._vocab) == 0:
            raise LutraError(f"{path}: no tokenizer in the file; convert the model with its tokenizer")
        params = api.llama_context_default_params()
        params.n_ctx = n_ctx or min(api.llama_model_n_ctx_train(self._model), 4096)
        params.n_batch = params.n_ubatch = self._batch = min(_BATCH, params.n_ctx)
        params.n_threads = params.n_threads_batch = threads
        self._ctx = api.llama_init_from_model(self._model, params)
        if not self._ctx:
            raise LutraError(
                f"{path}: no context of {params.n_ctx} tokens: {self._reason()}; try a smaller --ctx"
            )
        self.path = path
        self.n_vocab: int = api.llama_vocab_n_tokens(self._vocab)
        self.n_ctx: int = params.n_ctx  # llama.cpp rounds its own up
        self._memory = api.llama_get_memory(self._ctx)
        self._cached: list[int] = []  # the tokens in the KV cache

    def _on_log(self, level: int, text: bytes, verbose: bool) -> None:
        line = text.decode("utf-8", "replace")
        if verbose or line.startswith("lutra:"):
            sys.stderr.write(line)
            sys.stderr.flush()
        if level == _ERROR:
            self._errors.append(line)

    def _reason(self) -> str:
        # llama.cpp says "function: what happened", the cause first.
        message = self._errors[0].strip() if self._errors else "llama.cpp gave no reason"
        return re.sub(r"^[A-Za-z_0-9:~]+: (error loading model: )?", "", message)

    # ---- text and tokens -------------------------------------------------------------------

    @property
    def chat_template(self) -> str | None:
        """The Jinja template stored in the file."""
        template = self._api.llama_model_chat_template(self._model, None)
        return template.decode() if template else None

    def special_token(self, name: str) -> str:
        """Text of the token "bos" or "eos"; empty when the vocabulary has none."""
        token = getattr(self._api, f"llama_vocab_{name}")(self._vocab)
        return self.piece(token, special=True).decode("utf-8", "replace") if token >= 0 else ""

    def tokenize(self, text: str) -> list[int]:
        """Tokens of ``text`` with its special tokens; BOS first if the model wants it and it is not there."""
        api = self._api
        bos = self.special_token("bos")
        if bos and api.llama_vocab_get_add_bos(self._vocab):
            text = text.removeprefix(bos)
        data = text.encode()
        size = len(data) + 8  # no token is shorter than a byte; room for BOS and EOS
        tokens = (api.llama_token * size)()
        n = api.llama_tokenize(self._vocab, data, len(data), tokens, size, True, True)
        if n < 0:
            raise LutraError(f"{self.path}: the tokenizer refuses a text of {len(data)} bytes")
        return list(tokens[:n])

    def piece(self, token: int, special: bool = False) -> bytes:
        """Bytes of one token; they may be a part of a UTF-8 character."""
        buffer = ctypes.create_string_buffer(256)
        n = self._api.llama_token_to_piece(self._vocab, token, buffer, len(buffer), 0, special)
        if n < 0:
            buffer = ctypes.create_string_buffer(-n)
            n = self._api.llama_token_to_piece(self._vocab, token, buffer, len(buffer), 0, special)
        return buffer.raw[:n]

    # ---- prediction ------------------------------------------------------------------------

    def logits(self, tokens: list[int]) -> Any:
        """What is predicted after each of ``tokens`` (at most 512), a sequence of its own.

        A pointer to (tokens, ``n_vocab``) floats, valid until the next call.
        """
        api, n = self._api, len(tokens)
        self._cached.clear()
        api.llama_memory_clear(self._memory, True)
        batch = api.llama_batch_init(n, 0, 1)
        try:
            for i, token in enumerate(tokens):
                batch.token[i], batch.pos[i], batch.logits[i] = token, i, True
                batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
            batch.n_tokens = n
            if code := api.llama_decode(self._ctx, batch):
                raise LutraError(f"{self.path}: computing failed ({code}): {self._reason()}")
        finally:
            api.llama_batch_free(batch)
        return api.llama_get_logits(self._ctx)

    # ---- generation ------------------------------------------------------------------------

    def generate(self, prompt: list[int], sampler: Sampler, limit: int | None = None) -> Iterator[int]:
        """Yield the tokens that follow ``prompt`` until the end of the turn, ``limit`` or a full context.

        What the KV cache already holds of the prompt is not computed again.
        """
        if not 0 < len(prompt) < self.n_ctx:
            raise LutraError(f"a prompt of {len(prompt)} tokens for a context of {self.n_ctx}; see --ctx")
        self._keep_common_prefix(prompt)
        pending = prompt[len(self._cached) :]
        produced = 0
        while limit is None or produced < limit:
            self._decode(pending)
            token = sampler.sample(self._ctx)
            if self._api.llama_vocab_is_eog(self._vocab, token):
                return
            yield token
            produced += 1
            if len(self._cached) >= self.n_ctx:
                return
            pending = [token]

    def text(self, tokens: Iterator[int]) -> Iterator[str]:
        """Decode a stream of tokens; characters split across tokens come out whole."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        for token in tokens:
            if part := decoder.decode(self.piece(token)):
                yield part
        if rest := decoder.decode(b"", final=True):
            yield rest

    def _keep_common_prefix(self, prompt: list[int]) -> None:
        common = 0
        # The last token of the prompt is always computed: its logits are needed.
        for cached, wanted in zip(self._cached, prompt[:-1], strict=False):
            if cached != wanted:
                break
            common += 1
        if not self._api.llama_memory_seq_rm(self._memory, 0, common, -1):
            # Recurrent models cannot forget a part.
            self._api.llama_memory_clear(self._memory, True)
            common = 0
        del self._cached[common:]

    def _decode(self, tokens: list[int]) -> None:
        for start in range(0, len(tokens), self._batch):
            part = tokens[start : start + self._batch]
            array = (self._api.llama_token * len(part))(*part)
            if code := self._api.llama_decode(self._ctx, self._api.llama_batch_get_one(array, len(part))):
                raise LutraError(f"{self.path}: computing failed ({code}): {self._reason()}")
            self._cached += part


class Sampler:
    """Chooses the next token: the best one at temperature 0, else top-k 40, top-p 0.95, min-p 0.05."""

    def __init__(self, temperature: float, seed: int | None = None) -> None:
        self._api = api = bindings()
        self._chain = api.llama_sampler_chain_init(api.llama_sampler_chain_default_params())
        if temperature <= 0:
            links = [api.llama_sampler_init_greedy()]
        else:
            links = [
                api.llama_sampler_init_top_k(40),
                api.llama_sampler_init_top_p(0.95, 1),
                api.llama_sampler_init_min_p(0.05, 1),
                api.llama_sampler_init_temp(temperature),
                api.llama_sampler_init_dist(api.LLAMA_DEFAULT_SEED if seed is None else seed),
            ]
        for link in links:
            api.llama_sampler_chain_add(self._chain, link)

    def sample(self, ctx: Any) -> int:
        """The next token for the last logits of the context."""
        return self._api.llama_sampler_sample(self._chain, ctx, -1)
