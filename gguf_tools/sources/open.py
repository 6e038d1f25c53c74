# SPDX-License-Identifier: MIT
"""Open a model, wherever it is: a GGUF file, a Hugging Face directory, or a name on the hub."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

from gguf import GGUFValueType, Keys
from gguf.gguf_writer import GGUFValue

from gguf_tools.errors import LutraError
from gguf_tools.sources.gguf import open_gguf
from gguf_tools.sources.hub import is_name, local_source
from gguf_tools.sources.hub_cache import directory, hub_name, snapshot
from gguf_tools.sources.huggingface import open_hf
from gguf_tools.sources.llama_converter import Scratch
from gguf_tools.sources.tensors import Source, SourceTensor, keeps_f32

__all__ = ["Scratch", "Source", "SourceTensor", "keeps_f32", "open_source"]


HUB = "https://huggingface.co/"


def open_source(
    source: str | Path, scratch: Scratch | None = None, *, requantize: bool = False, headers: bool = False
) -> Source:
    """The model at ``source``: a GGUF file, a directory in Hugging Face's form or of its cache, or ORG/MODEL.

    ``scratch``: where a model that llama.cpp's converter reads has its F16 file while it is open; by default
    in the current directory. ``requantize``: a GGUF may be quantized. ``headers``: of a model that is on the
    hub only, names and shapes suffice, and no tensor is read. The metadata says which model of the hub it is,
    where that is known. Raises ``LutraError`` with the cause and the next step when it cannot be read.
    """
    path = Path(source)
    with ExitStack() as resources:
        if not path.exists():
            if not is_name(source):
                raise LutraError(f"{source}: no such file or directory")
            hollow = None
            if headers:  # as in the cache, whose paths tell the model's name
                top = Path(resources.enter_context(TemporaryDirectory(prefix="lutra-")))
                hollow = top / directory(str(source).partition(":")[0]).name / "snapshots" / "headers"
            path = local_source(str(source), requantize=requantize, hollow=hollow)
        path = snapshot(path)
        is_file = not path.is_dir()
        opened = open_gguf(path, quantized=requantize) if is_file else open_hf(path, scratch=scratch)
        opened.resources.push(resources.pop_all())
    if name := hub_name(path):
        url = GGUFValue(f"{HUB}{name}", GGUFValueType.STRING)
        opened.metadata.setdefault(Keys.General.SOURCE_REPO_URL, url)
    return opened
