# SPDX-License-Identifier: MIT
"""A model in memory: messages or tokens in, text or tokens out."""

from __future__ import annotations

import codecs
import ctypes
import functools
import itertools
import re
from collections.abc import Container, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gguf_tools.errors import LutraError, warn
from gguf_tools.formats.keys import END_TOKENS_KEY
from lutra.runtime.context import CACHE_TYPES, STEP, USUAL, fitting, token_bytes
from lutra.runtime.kernels import require_obeyed_choice
from lutra.runtime.loaded import Closing, Loaded
from lutra.runtime.native import llama
from lutra.runtime.probe import require_loadable
from lutra.runtime.sampling import Sampler, Sampling
from lutra.runtime.threads import checked_threads
from lutra.runtime.workers import require_workers

if TYPE_CHECKING:
    from lutra.runtime.template import ChatTemplate, Message

_MAX_CONTEXT = 2**32 - 1  # what a uint32 counts
_BATCH = 512  # tokens per llama_decode of a prompt
_SURROGATE = re.compile("[\ud800-\udfff]")


class Model(Closing):
    """A GGUF file mapped into memory with one conversation, or text, of at most ``n_ctx`` tokens.

        with Model("model-cb4.gguf") as model:
            print(model.chat("What is the capital of France?"))

    ``path`` may also be a name on the Hugging Face hub, ORG/MODEL or ORG/MODEL:TYPE: what is missing of that
    file is fetched into the hub's cache.

    ``threads`` None takes the fast physical cores, ``n_ctx`` None the model's own context, at most 4096 and
    what half of the free memory has room for. ``cache_types`` are those of keys and values in the context,
    see ``CACHE_TYPES``. ``evaluated`` counts the tokens that were computed.
    ``verbose`` shows llama.cpp's log on stderr; otherwise only Lutra's own lines are shown. Without
    ``weights`` only the header is read: enough to tokenize. The file is tried in a child process first, as
    some damage ends the process that loads it; not with ``probe`` False.

    ``workers``, "HOST:PORT" each, are machines where ``lutra worker`` runs. They hold and compute some of the
    layers. When one is lost later, the process ends.

    Raises LutraError when the file cannot be loaded, and from every method after ``close``. One thread at a
    time may use it.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        threads: int | None = None,
        n_ctx: int | None = None,
        cache_types: tuple[str, str] = ("f16", "f16"),
        verbose: bool = False,
        weights: bool = True,
        probe: bool = True,
        workers: Sequence[str] = (),
    ) -> None:
        self.path = Path(path)
        threads = checked_threads(threads)
        if n_ctx is not None and not 0 < n_ctx <= _MAX_CONTEXT:
            raise LutraError(f"{path}: no context of {n_ctx} tokens; give a positive number, or none")
        if not self.path.exists():
            from gguf_tools.sources.hub import local_gguf

            self.path = local_gguf(path)
        for kind in cache_types:
            if kind not in CACHE_TYPES:
                raise LutraError(f"no cache type {kind}; choose one of {', '.join(CACHE_TYPES)}")
        self.cache_types = cache_types
        self._has_weights = weights
        require_obeyed_choice()
        if probe:
            require_loadable(self.path)
        self._api = api = llama()
        require_workers(workers)
        self._loaded = loaded = Loaded(self.path, weights=weights, workers=workers, verbose=verbose)
        try:
            self.n_vocab: int = api.llama_vocab_n_tokens(self._vocab)
            if self.n_vocab == 0 or api.llama_vocab_type(self._vocab) == 0:
                raise LutraError(f"{path}: no tokenizer in the file; convert the model with its tokenizer")
            params = api.llama_context_default_params()
            self.n_ctx_train: int = api.llama_model_n_ctx_train(loaded.model)
            params.n_ctx = n_ctx or self._usual_context()
            params.n_batch = params.n_ubatch = self._batch = min(_BATCH, params.n_ctx)
            params.n_threads = params.n_threads_batch = threads
            params.type_k, params.type_v = (CACHE_TYPES[kind][0] for kind in cache_types)
            self.n_ctx: int = params.n_ctx  # llama.cpp rounds its own up
            another = "" if cache_types == ("f16", "f16") else "other --ctk and --ctv, or "
            loaded.start(params, f"try {another}a smaller --ctx")
        except BaseException:
            loaded.close()
            raise
        self.evaluated = 0
        self._cached: list[int] = []  # the tokens in the KV cache
        self._turn = object()  # whose they are: only the last call of ``generate`` may add to them

    def close(self) -> None:
        """Free the memory and the file. Closing twice is fine; using the model afterwards is an error."""
        self._loaded.close()

    def _usual_context(self) -> int:
        """Tokens, of those that the model was trained for; a warning says when memory makes them fewer."""
        api, model = self._api, self._loaded.model
        wanted = min(self.n_ctx_train, USUAL)
        if not self._has_weights:
            return wanted
        kind = self.value("general.architecture")
        own = api.llama_model_n_embd(model) // max(1, api.llama_model_n_head(model))
        key, value = (int(self.value(f"{kind}.attention.{k}_length") or own) for k in ("key", "value"))
        heads = [api.llama_model_n_head_kv(model)] * api.llama_model_n_layer(model)
        fit = fitting(token_bytes(heads, (key, value), self.cache_types), api.llama_model_size(model))
        if fit < wanted:
            wanted = min(wanted, max(STEP, fit))
            warn(
                f"{self.path}: a context of {wanted} tokens, as there is little memory; --ctx takes another, "
                "--ctk q8_0 and --ctv q8_0 halve what it needs"
            )
        return wanted

    @property
    def _vocab(self) -> Any:
        return self._api.llama_model_get_vocab(self._loaded.model)

    @property
    def _memory(self) -> Any:
        return self._api.llama_get_memory(self._loaded.ctx)

    # ---- conversation ----------------------------------------------------------------------

    def chat(
        self,
        messages: str | Sequence[Message],
        *,
        max_tokens: int | None = None,
        temperature: float = 0.0,
        seed: int | None = None,
    ) -> str:
        """The answer to ``messages``: see ``stream``."""
        return "".join(self.stream(messages, max_tokens=max_tokens, temperature=temperature, seed=seed))

    def stream(
        self,
        messages: str | Sequence[Message],
        *,
        max_tokens: int | None = None,
        temperature: float = 0.0,
        seed: int | None = None,
    ) -> Iterator[str]:
        """The answer to ``messages`` piece by piece, as the model writes it.

        ``messages`` are what was said so far, {"role": "system", "user" or "assistant", "content": text}
        each, or one question; they go through the file's chat template. The answer ends by itself, at
        ``max_tokens``, or where the context is full. ``temperature`` 0 takes the likeliest token always;
        above, ``seed`` None is a random one. What the last call has computed of the same conversation is
        not computed again. Raises LutraError without a chat template, or for more text than the context
        holds.
        """
        turns: list[Message] = (
            [{"role": "user", "content": messages}] if isinstance(messages, str) else list(messages)
        )
        prompt = self.tokenize(self.template.render(turns))
        with self.sampler(Sampling(temp=temperature), seed) as sampler:
            yield from self.text(self.generate(prompt, sampler, max_tokens))

    @functools.cached_property
    def template(self) -> ChatTemplate:
        """The chat template in the file. Raises LutraError when there is none."""
        from lutra.runtime.template import ChatTemplate  # with Jinja, which not every use of a model needs

        return ChatTemplate.of(self)

    # ---- text and tokens -------------------------------------------------------------------

    @property
    def chat_template(self) -> str | None:
        """The Jinja template stored in the file."""
        template = self._api.llama_model_chat_template(self._loaded.model, None)
        return template.decode() if template else None

    def special_token(self, name: str) -> str:
        """Text of the token "bos", "eos", "pad", "sep" or "mask"; empty when the vocabulary has none."""
        # llama.cpp makes 11 of a byte-level BPE's bos and eos that are not there, as it is in GPT-2.
        if name in ("bos", "eos") and self._is_bpe and self.value(f"tokenizer.ggml.{name}_token_id") is None:
            return ""
        token = getattr(self._api, f"llama_vocab_{name}")(self._vocab)
        return self.piece(token, special=True).decode("utf-8", "replace") if token >= 0 else ""

    def tokenize(self, text: str, *, start: bool = True) -> list[int]:
        """Tokens of ``text`` with its special tokens; BOS first if the model wants it and it is not there.

        Not with ``start`` False: the text goes on after another.
        EOS is not added, whatever the file says: a prompt is no finished text. Lone surrogates, which stand
        for bytes that are no UTF-8, become U+FFFD.
        """
        api = self._api
        bos = self.special_token("bos")
        # A text has it as templates write it, some after an empty line.
        whole = not start or (bool(bos) and text.lstrip().startswith(bos))
        data = _SURROGATE.sub("\ufffd", text).encode()
        size = len(data) + 8  # no token is shorter than a byte; room for BOS and EOS
        tokens = (api.llama_token * size)()
        n = api.llama_tokenize(self._vocab, data, len(data), tokens, size, not whole, True)
        if n < 0:
            raise LutraError(f"{self.path}: the tokenizer refuses a text of {len(data)} bytes")
        if (
            n
            and not whole
            and api.llama_vocab_get_add_eos(self._vocab)
            and tokens[n - 1] == api.llama_vocab_eos(self._vocab)
        ):
            n -= 1
        return list(tokens[:n])

    def value(self, key: str) -> str | None:
        """A key/value of the file that is no array, as text; None where it has no such key."""
        buffer = ctypes.create_string_buffer(4096)
        n = self._api.llama_model_meta_val_str(self._loaded.model, key.encode(), buffer, len(buffer))
        return buffer.value.decode("utf-8", "replace") if n >= 0 else None

    @property
    def _is_bpe(self) -> bool:
        return bool(self._api.llama_vocab_type(self._vocab) == self._api.LLAMA_VOCAB_TYPE_BPE)

    def ends(self, token: int) -> bool:
        """Whether ``token`` ends an answer."""
        return token in self._ends or self._api.llama_vocab_is_eog(self._vocab, token)

    @functools.cached_property
    def _ends(self) -> frozenset[int]:
        """Tokens that end an answer beside those that llama.cpp knows."""
        ids = (self.value(END_TOKENS_KEY) or "").split()
        return frozenset(int(i) for i in ids if i.isdecimal())

    def piece(self, token: int, special: bool = False) -> bytes:
        """Bytes of one token; they may be a part of a UTF-8 character. Raises LutraError for others."""
        vocab = self._vocab
        if not 0 <= token < self.n_vocab:
            raise LutraError(f"{self.path}: no token {token} among {self.n_vocab}")
        buffer = ctypes.create_string_buffer(256)
        n = self._api.llama_token_to_piece(vocab, token, buffer, len(buffer), 0, special)
        if n < 0:
            buffer = ctypes.create_string_buffer(-n)
            n = self._api.llama_token_to_piece(vocab, token, buffer, len(buffer), 0, special)
        return buffer.raw[:n]

    # ---- prediction ------------------------------------------------------------------------

    def logits(self, tokens: list[int]) -> Any:
        """What is predicted after each of ``tokens`` (at most 512, or the context), a sequence of its own.

        A pointer to (tokens, ``n_vocab``) floats, valid until the next call.
        """
        api, n = self._api, len(tokens)
        if n > self._batch:
            raise LutraError(f"{self.path}: {n} tokens at once, {self._batch} are possible")
        self._turn = object()
        self._cached.clear()
        api.llama_memory_clear(self._memory, True)
        batch = api.llama_batch_init(n, 0, 1)
        try:
            for i, token in enumerate(tokens):
                batch.token[i], batch.pos[i], batch.logits[i] = token, i, True
                batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
            batch.n_tokens = n
            self._loaded.decode(batch)
        finally:
            api.llama_batch_free(batch)
        return api.llama_get_logits(self._loaded.ctx)

    # ---- generation ------------------------------------------------------------------------

    def generate(self, prompt: list[int], sampler: Sampler, limit: int | None = None) -> Iterator[int]:
        """Yield the tokens that follow ``prompt`` until the end of the turn, ``limit`` or a full context.

        What the KV cache already holds of the prompt is not computed again. Raises LutraError in a call that
        is continued after a later one has begun: there is one conversation.
        """
        if not 0 < len(prompt) < self.n_ctx:
            raise LutraError(f"a prompt of {len(prompt)} tokens for a context of {self.n_ctx}; see --ctx")
        turn = self._turn = object()
        sampler.begin(prompt)
        self._keep_common_prefix(prompt)
        pending = prompt[len(self._cached) :]
        produced = 0
        while limit is None or produced < limit:
            if self._turn is not turn:
                raise LutraError(f"{self.path}: this answer was cut short by another; open a second Model")
            self._decode(pending)
            token = sampler.sample(self._loaded.ctx)
            if self.ends(token):
                return
            yield token
            produced += 1
            if len(self._cached) >= self.n_ctx:
                return
            pending = [token]

    def sampler(self, settings: Sampling, seed: int | None = None) -> Sampler:
        """A sampler for ``generate``; ``seed`` None is a random one."""
        return Sampler(settings, seed, self._vocab, self.n_ctx)

    def text(self, tokens: Iterator[int], shown: Container[int] = ()) -> Iterator[str]:
        """Decode a stream of tokens; characters split across tokens come out whole.

        Of special tokens those in ``shown`` have their text, the others none.
        """
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        for token in tokens:
            if part := decoder.decode(self.piece(token, special=token in shown)):
                yield part
        if rest := decoder.decode(b"", final=True):
            yield rest

    # ---- what was computed, on disk --------------------------------------------------------

    @property
    def state_size(self) -> int:
        """Bytes, about, that ``save_state`` would write."""
        size: int = self._api.llama_state_seq_get_size(self._loaded.ctx, 0)
        return size + 4 * len(self._cached) + 64

    def save_state(self, path: Path) -> None:
        """Write what is computed of the last prompt and answer. Raises LutraError when that fails."""
        self._loaded.save_state(path, self._cached)

    def load_state(self, path: Path) -> None:
        """Go on from a file of ``save_state``, of the same model and ``cache_types``, without computing it.

        Raises LutraError, and nothing is computed then, when the file is damaged or has more than ``n_ctx``.
        """
        self._turn = object()
        self._cached.clear()
        self._cached += self._loaded.load_state(path, self.n_ctx)

    @property
    def computed(self) -> tuple[int, ...]:
        """The tokens of the last prompt and answer that are computed."""
        return tuple(self._cached)

    # ---- what is computed ------------------------------------------------------------------

    def unread(self, prompt: Sequence[int]) -> int:
        """How many tokens of ``prompt`` are not computed yet, and would be for the next one."""
        # The last token of the prompt is always computed: its logits are needed.
        both = zip(self._cached, prompt[:-1], strict=False)
        return len(prompt) - sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], both))

    def _keep_common_prefix(self, prompt: list[int]) -> None:
        common = len(prompt) - self.unread(prompt)
        if not self._api.llama_memory_seq_rm(self._memory, 0, common, -1):
            # Recurrent models cannot forget a part.
            self._api.llama_memory_clear(self._memory, True)
            common = 0
        del self._cached[common:]

    def _decode(self, tokens: list[int]) -> None:
        for start in range(0, len(tokens), self._batch):
            part = tokens[start : start + self._batch]
            array = (self._api.llama_token * len(part))(*part)
            self._loaded.decode(self._api.llama_batch_get_one(array, len(part)))
            self._cached += part
            self.evaluated += len(part)
