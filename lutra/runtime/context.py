# SPDX-License-Identifier: MIT
"""How many tokens of context fit into memory: what a server of several conversations takes by default."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf_tools.reader import GGUFFile
from lutra.runtime.memory import free_memory

MOST = 32768  # tokens of a conversation, unless more are asked for
STEP = 256  # llama.cpp rounds to multiples of it
_CACHE = 8 << 30  # llama-server's own limit for the conversations that it keeps


@dataclass(frozen=True)
class Context:
    """What a server is given: ``tokens`` for each conversation, ``total`` for all that run at once.

    They take ``nbytes`` of ``free`` bytes; ``cache`` more are for conversations that wait.
    """

    tokens: int
    total: int
    nbytes: int
    cache: int
    free: int


def choose_context(path: Path, conversations: int, tokens: int | None = None) -> Context:
    """The context for ``conversations`` at once with a file, of ``tokens`` each (None: what suits it).

    Weights, which are mapped from the file, should stay in memory: the conversations that run get half of
    what is left beside them, those that wait a quarter, and the rest is for intermediate results and for
    other programs. Raises LutraError for what is no GGUF file.
    """
    with GGUFFile(path) as file:
        token_bytes = kv_bytes(file)
        trained = _number(file, "context_length") or MOST
    free = free_memory()
    rest = max(0, free - path.stat().st_size)
    fit = rest // 2 // token_bytes if token_bytes else conversations * MOST
    each = tokens or max(STEP, min(trained, MOST, fit))
    total = max(each, min(each * conversations, fit))
    return Context(each, total, total * token_bytes, min(rest // 4, _CACHE), free)


def kv_bytes(file: GGUFFile) -> int:
    """Bytes that a token's keys and values take in F16. A bound: a layer with a window keeps less."""
    heads = _number(file, "attention.head_count")
    size = _number(file, "embedding_length") // heads if heads else 0
    of_head = sum(_number(file, f"attention.{kind}_length") or size for kind in ("key", "value"))
    kept = _value(file, "attention.head_count_kv")
    layers = kept if isinstance(kept, list) else [kept or heads] * _number(file, "block_count")
    return sum(layers) * of_head * 2


def _value(file: GGUFFile, name: str) -> Any:
    return file.get(f"{file.architecture}.{name}")


def _number(file: GGUFFile, name: str) -> int:
    value = _value(file, name)
    if isinstance(value, list):  # one for each layer
        value = max(value, default=0)
    return value if isinstance(value, int) else 0
