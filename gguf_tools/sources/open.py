# SPDX-License-Identifier: MIT
"""Open a model, wherever it is: a GGUF file, a Hugging Face directory, or a Hugging Face id."""

from __future__ import annotations

import re
from pathlib import Path

from gguf_tools.errors import LutraError
from gguf_tools.sources.gguf import open_gguf
from gguf_tools.sources.hub_cache import snapshot
from gguf_tools.sources.huggingface import open_hf
from gguf_tools.sources.tensors import Source, SourceTensor, keeps_f32

__all__ = ["Source", "SourceTensor", "keeps_f32", "open_source"]


def open_source(source: str | Path) -> Source:
    """The model at ``source``: a GGUF file, a directory in Hugging Face's form or of its cache, or an id.

    Raises ``LutraError`` with the cause and the next step when it cannot be read.
    """
    path = Path(source)
    if path.is_dir():
        return open_hf(snapshot(path))
    if path.exists():
        return open_gguf(path)
    if re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", str(source)) and path.suffix != ".gguf":
        return open_hf(_download(str(source)), str(source).split("/")[1])
    raise LutraError(f"{source}: no such file or directory")


def _download(model_id: str) -> Path:
    """A local copy of a model of the Hugging Face hub, from its cache when it is there."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise LutraError(
            f"{model_id}: no such directory; to fetch a Hugging Face model by its id, "
            "first run: pip install huggingface_hub"
        ) from None
    try:
        files = ["*.json", "*.jinja", "*.safetensors", "tokenizer.model", "merges.txt", "README.md"]
        return Path(snapshot_download(model_id, allow_patterns=files))
    except Exception as error:  # the hub's errors are many: network, gated, no such model
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise LutraError(
            f"{model_id}: neither a local directory nor a model that could be fetched: {reason}"
        ) from None
