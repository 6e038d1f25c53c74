# SPDX-License-Identifier: MIT
"""GGUF files as a source of weights: of floats, Q8_0 or ternary tensors, of others only when asked for."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from gguf_tools.errors import LutraError
from gguf_tools.formats.family import CB_FORMATS, LAYOUT_VERSION, LAYOUT_VERSION_KEY
from gguf_tools.reader import GGUFFile, TensorInfo, type_name
from gguf_tools.rows import read_rows
from gguf_tools.sources.tensors import EMBEDDING, OUTPUT, Source, SourceTensor, keeps_f32

# Types that lose next to nothing, those that only ternary models are published in, and by architecture those
# that the model itself is published in.
_GOOD = ("F32", "F16", "BF16", "Q8_0", "TQ1_0", "TQ2_0", "Q2_0")
_PUBLISHED = {"gpt-oss": ("MXFP4",)}


def open_gguf(path: Path, *, quantized: bool = False) -> Source:
    """The model in a GGUF file, or in all the files of a split one when given the first.

    The metadata is the file's own, without what describes the file and not the model (``split.*``,
    ``general.alignment``). Raises ``LutraError`` for a damaged file and, unless they may be ``quantized``,
    for tensors of other types.
    """
    with ExitStack() as resources:
        first = resources.enter_context(GGUFFile(path))
        files = [first, *(resources.enter_context(GGUFFile(part)) for part in other_parts(first))]
        if not first.architecture:
            raise LutraError(f"{path}: has no general.architecture, so it is no language model")
        good = None if quantized else good_types(first.architecture)
        infos = [(file, info) for file in files for info in file.tensors.values()]
        # Where other matrices are smaller, one in float32 is so because the model needs it.
        is_mixed = any(info.type != GGMLQuantizationType.F32 for _, info in infos)
        tensors = [_tensor(file, info, good, is_mixed) for file, info in infos]
        if not tensors:
            raise LutraError(f"{path}: has no tensors, only a vocabulary; convert the whole model")
        names = [t.name for t in tensors]
        if len(set(names)) < len(names):
            raise LutraError(f"{path}: parts of this split model hold the same tensor; download it again")
        _require_known_layout(files)
        _require_different_tokens(first)
        metadata = {
            key: value
            for key, value in first.metadata.items()
            if not key.startswith("split.") and key != "general.alignment"
        }
        return Source(path, first.architecture, metadata, tensors, resources.pop_all(), gguf=path)


def good_types(architecture: str) -> tuple[str, ...]:
    """The types of tensors that are as good as the original of a model."""
    return (*_GOOD, *_PUBLISHED.get(architecture, ()))


def _require_known_layout(files: Sequence[GGUFFile]) -> None:
    """Raise LutraError for codebooks of another layout version; the first file of a model has the key."""
    version = files[0].get(LAYOUT_VERSION_KEY)
    if version != LAYOUT_VERSION and any(t.type in CB_FORMATS for f in files for t in f.tensors.values()):
        raise LutraError(
            f"{files[0].path}: codebooks of layout version {version}, not {LAYOUT_VERSION}; get a newer lutra"
        )


def _require_different_tokens(file: GGUFFile) -> None:
    """Raise LutraError where two tokens have one text: llama.cpp would end the process over it."""
    tokens = file.get("tokenizer.ggml.tokens")
    owners: dict[object, int] = {}
    for i, text in enumerate(tokens if isinstance(tokens, list) else []):
        if text and owners.setdefault(text, i) != i:  # those without text get a name from llama.cpp
            raise LutraError(
                f"{file.path}: its tokens {owners[text]} and {i} are both {text!r}, which llama.cpp refuses; "
                "convert the model from its original"
            )


def other_parts(first: GGUFFile) -> list[Path]:
    """The files of a split model but the first; none when the model is not split."""
    count, path = first.get("split.count", 1), first.path
    if not isinstance(count, int) or count <= 1:
        return []
    name = re.fullmatch(r"(.*)-(\d{5})-of-(\d{5})\.gguf", path.name)
    if name is None or int(name[2]) != 1 or int(name[3]) != count:
        raise LutraError(f"{path}: one of {count} parts; give the first, NAME-00001-of-{count:05}.gguf")
    return [path.with_name(f"{name[1]}-{i + 1:05}-of-{count:05}.gguf") for i in range(1, count)]


def _tensor(file: GGUFFile, info: TensorInfo, good: Sequence[str] | None, is_mixed: bool) -> SourceTensor:
    if good and type_name(info.type) not in good:
        raise LutraError(
            f"{file.path}: tensor {info.name!r} is {type_name(info.type)}, already quantized; start from an "
            "F16, BF16, F32 or Q8_0 file of this model, or let the losses add up with --allow-requantize"
        )

    def load(start: int, stop: int) -> NDArray[np.float32]:
        return read_rows(file, info, start, stop)

    needs_f32 = is_mixed and info.type == GGMLQuantizationType.F32 and info.name not in (EMBEDDING, OUTPUT)
    return SourceTensor(
        info.name,
        info.shape,
        type_name(info.type),
        file.path,
        load,
        keeps_f32=needs_f32 or keeps_f32(info.name, info.shape),
        stored=lambda: file.data(info),
    )
