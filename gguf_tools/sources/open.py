# SPDX-License-Identifier: MIT
"""Open a model, wherever it is: a GGUF file, a Hugging Face directory, or a name on the hub."""

from __future__ import annotations

from pathlib import Path

from gguf_tools.errors import LutraError
from gguf_tools.sources.gguf import open_gguf
from gguf_tools.sources.hub import is_name, local_source
from gguf_tools.sources.hub_cache import model_name, snapshot
from gguf_tools.sources.huggingface import open_hf
from gguf_tools.sources.llama_converter import Scratch
from gguf_tools.sources.tensors import Source, SourceTensor, keeps_f32

__all__ = ["Scratch", "Source", "SourceTensor", "keeps_f32", "open_source"]


def open_source(source: str | Path, scratch: Scratch | None = None) -> Source:
    """The model at ``source``: a GGUF file, a directory in Hugging Face's form or of its cache, or ORG/MODEL.

    ``scratch``: where a model that llama.cpp's converter reads has its F16 file while it is open; by default
    in the current directory. Raises ``LutraError`` with the cause and the next step when it cannot be read.
    """
    path = Path(source)
    if path.is_dir():
        return open_hf(snapshot(path), scratch=scratch)
    if path.exists():
        return open_gguf(path)
    if is_name(source):
        path = local_source(str(source))
        return open_hf(path, model_name(path), scratch) if path.is_dir() else open_gguf(path)
    raise LutraError(f"{source}: no such file or directory")
