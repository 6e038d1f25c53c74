# SPDX-License-Identifier: MIT
"""How many tokens of context fit into memory: what a conversation or a server takes by default."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lutra.runtime.memory import free_memory

if TYPE_CHECKING:
    from gguf_tools.reader import GGUFFile

USUAL = 4096  # tokens of a single conversation, unless more are asked for
MOST = 32768  # tokens of a conversation, unless more are asked for
STEP = 256  # llama.cpp rounds to multiples of it
_CACHE = 8 << 30  # llama-server's own limit for the conversations that it keeps


# What llama.cpp keeps keys and values in: ggml's id, and bits for each.
CACHE_TYPES = {
    "f16": (1, 16.0),
    "q8_0": (8, 8.5),
    "q4_0": (2, 4.5),
    "q4_1": (3, 5.0),
    "q5_0": (6, 5.5),
    "q5_1": (7, 6.0),
    "iq4_nl": (20, 4.5),
    "bf16": (30, 16.0),
    "f32": (0, 32.0),
}


@dataclass(frozen=True)
class Context:
    """What a server is given: ``tokens`` for each conversation, ``total`` for all that run at once.

    They take ``nbytes`` of ``free`` bytes, beside the ``weights`` of the file; ``cache`` more are for
    conversations that wait.
    """

    tokens: int
    total: int
    nbytes: int
    cache: int
    free: int
    weights: int


def choose_context(
    path: Path, conversations: int, tokens: int | None = None, types: tuple[str, str] = ("f16", "f16")
) -> Context:
    """The context for ``conversations`` at once with a file, of ``tokens`` each (None: what suits it).
    ``types`` of keys and values.

    Weights that are used, which are mapped from the file, should stay in memory: the conversations that run
    get half of what is left beside them, those that wait a quarter, and the rest is for intermediate results
    and for other programs. Raises LutraError for what is no GGUF file.
    """
    from gguf_tools.inspect import second_bytes  # with numpy, which a chat does without
    from gguf_tools.reader import GGUFFile
    from gguf_tools.sources.gguf import other_parts

    with GGUFFile(path) as file:
        each_bytes = kv_bytes(file, types)
        weights = sum(part.stat().st_size for part in (path, *other_parts(file)))
        if os.environ.get("LUTRA_LAYERS") == "1":
            weights -= sum(map(second_bytes, file.tensors.values()))  # mapped, but never touched
        trained = _number(file, "context_length") or MOST
    free = free_memory()
    rest = max(0, free - weights)
    fit = rest // 2 // each_bytes if each_bytes else conversations * MOST
    each = tokens or max(STEP, min(trained, MOST, fit))
    total = max(each, min(each * conversations, fit))
    return Context(each, total, total * each_bytes, min(rest // 4, _CACHE), free, weights)


def fitting(token_bytes: int, weights: int) -> int:
    """Tokens of a conversation that fit into half of the free memory beside so many bytes of weights."""
    rest = max(0, free_memory() - weights)
    return rest // 2 // token_bytes // STEP * STEP if token_bytes else MOST


def token_bytes(heads: Sequence[int], lengths: tuple[int, int], types: tuple[str, str]) -> int:
    """Bytes that a token's keys and values take, in ``CACHE_TYPES``; a layer with a window keeps less.

    ``heads`` of each layer, ``lengths`` of a head's key and value.
    """
    bits = sum(length * CACHE_TYPES[kind][1] for length, kind in zip(lengths, types, strict=True))
    return int(sum(heads) * bits / 8)


def cache_types(file: GGUFFile) -> list[str]:
    """Those of ``CACHE_TYPES`` that hold keys and values of a file: blocks of 32 must divide its heads."""
    fit = not any(length % 32 for length in _head_lengths(file))
    return [kind for kind, (_, bits) in CACHE_TYPES.items() if fit or bits in (16, 32)]


def _head_lengths(file: GGUFFile) -> tuple[int, int]:
    """Of a head's key and value."""
    heads = _number(file, "attention.head_count")
    size = _number(file, "embedding_length") // heads if heads else 0
    key, value = (_number(file, f"attention.{kind}_length") or size for kind in ("key", "value"))
    return key, value


def kv_bytes(file: GGUFFile, types: tuple[str, str]) -> int:
    """Bytes that a token's keys and values take in a file, being of these ``CACHE_TYPES``."""
    heads, (key, value) = _number(file, "attention.head_count"), _head_lengths(file)
    kept = _value(file, "attention.head_count_kv")
    layers = kept if isinstance(kept, list) else [kept or heads] * _number(file, "block_count")
    return token_bytes(layers, (key, value), types)


def _value(file: GGUFFile, name: str) -> Any:
    return file.get(f"{file.architecture}.{name}")


def _number(file: GGUFFile, name: str) -> int:
    value = _value(file, name)
    if isinstance(value, list):  # one for each layer
        value = max(value, default=0)
    return value if isinstance(value, int) else 0
