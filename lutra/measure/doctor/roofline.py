# SPDX-License-Identifier: MIT
"""How fast memory lets a model generate: its bandwidth over the bytes that a token needs."""

from __future__ import annotations

import re
from typing import Any

from gguf_tools.inspect import FileInfo

_EMBEDDING, _OUTPUT = "token_embd.weight", "output.weight"


def bytes_per_token(info: FileInfo) -> int:
    """Bytes of weights that one token reads: of the embedding one row, of the experts those that are used.

    The KV cache is left out: it is small beside the weights in short conversations.
    """
    tensors = {tensor.name: tensor for tensor in info.tensors}
    share = _used_experts(info)
    total = 0.0
    for name, tensor in tensors.items():
        if name == _EMBEDDING and _OUTPUT in tensors:
            total += tensor.nbytes / tensor.shape[0]
        elif re.search(r"_exps\.", name):
            total += tensor.nbytes * share
        else:
            total += tensor.nbytes
    return round(total)


def _used_experts(info: FileInfo) -> float:
    def value(key: str) -> Any:
        return info.metadata[key].value if key in info.metadata else None

    architecture = value("general.architecture")
    used, count = value(f"{architecture}.expert_used_count"), value(f"{architecture}.expert_count")
    return used / count if used and count else 1.0
