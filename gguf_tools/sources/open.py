# SPDX-License-Identifier: MIT
"""Open a model, wherever it is: a GGUF file, a Hugging Face directory, or a name on the hub."""

from __future__ import annotations

from pathlib import Path

from gguf_tools.errors import LutraError
from gguf_tools.sources.gguf import open_gguf
from gguf_tools.sources.hub import is_name, local_source
from gguf_tools.sources.hub_cache import model_name, snapshot
from gguf_tools.sources.huggingface import open_hf
from gguf_tools.sources.tensors import Source, SourceTensor, keeps_f32

__all__ = ["Source", "SourceTensor", "keeps_f32", "open_source"]


def open_source(source: str | Path) -> Source:
    """The model at ``source``: a GGUF file, a directory in Hugging Face's form or of its cache, or ORG/MODEL.

    Raises ``LutraError`` with the cause and the next step when it cannot be read.
    """
    path = Path(source)
    if path.is_dir():
        return open_hf(snapshot(path))
    if path.exists():
        return open_gguf(path)
    if is_name(source):
        path = local_source(str(source))
        return open_hf(path, model_name(path)) if path.is_dir() else open_gguf(path)
    raise LutraError(f"{source}: no such file or directory")
