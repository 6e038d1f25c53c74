# SPDX-License-Identifier: MIT
"""Hugging Face directories as a source of weights, without torch: what is common to all families.

Names, key/values and the order of both are those of llama.cpp's converter (its F16 output), so that
a file made here and one made there differ in nothing. ``families`` has the models that are read; others
go through that converter.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf.gguf_writer import GGUFValue
from numpy.typing import NDArray

from gguf_tools.errors import LutraError, Unfamiliar, warn
from gguf_tools.sources import card, llama_converter, rope
from gguf_tools.sources.config import Config, read_config, read_rope, with_numbers
from gguf_tools.sources.dequantize import restored
from gguf_tools.sources.experts import stacked
from gguf_tools.sources.families import BY_ARCHITECTURE
from gguf_tools.sources.family import Family
from gguf_tools.sources.gguf import open_gguf
from gguf_tools.sources.hub_cache import model_name
from gguf_tools.sources.llama_converter import Scratch
from gguf_tools.sources.safetensors import open_safetensors, read_json
from gguf_tools.sources.tensors import Source, SourceTensor
from gguf_tools.sources.weights import Weights

# What decides about tensors and tokens, where it is there, beside the weights.
_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "added_tokens.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)

# What models hold that is no weight; what sees in those that also write, llama.cpp has in a file of its own.
_IGNORED = (
    r"\.attention\.(masked_)?bias$",
    r"\.rotary_emb\.inv_freq$",
    r"vision_tower\.",
    r"multi_modal_projector\.",
)
# What llama.cpp computes otherwise than transformers, by class: docs/FAMILIES.md.
_DIFFERENT = {
    "PhiMoEForCausalLM": "a token's two experts get weights whose sum is 1, not weights near 1 each",
}
_TIED = r"lm_head\.\w+$"  # where it is the token embeddings

# The families in few words, without the numbers of their generations.
_FAMILIES = ", ".join(
    sorted({re.sub(r"\d.*", "", gguf.MODEL_ARCH_NAMES[family.arch]) for family in BY_ARCHITECTURE.values()})
)


def open_hf(directory: Path, name: str | None = None, scratch: Scratch | None = None) -> Source:
    """The model in ``directory`` (config.json, safetensors, a tokenizer), ``name`` its title if known.

    What no family of ``families`` knows is opened by way of ``scratch``. Raises ``LutraError`` naming the
    file or tensor that is missing, damaged or of a wrong shape, and what would convert an unknown model.
    """
    config_path = directory / "config.json"
    if not config_path.is_file():
        raise LutraError(
            f"{directory}: has no config.json, so it is no Hugging Face model; give one or a GGUF"
        )
    raw = with_numbers(read_json(config_path))
    architecture = architecture_of(raw)
    what = f"{directory}: {architecture}: "
    if _is_direct(raw):
        try:
            return _open(directory, name, raw, architecture)
        except Unfamiliar as error:
            what = f"{error}; "
            require_readable(directory, str(error))
    else:
        require_readable(directory)
    return _open_converted(directory, name or model_name(directory), what, scratch)


def require_readable(directory: Path, unfamiliar: str = "") -> bool:
    """Whether the model that is configured in ``directory`` is read without llama.cpp's converter.

    Its weights need not be there. ``unfamiliar``: why it is not, although its family is. Raises
    ``LutraError`` if nothing here reads it.
    """
    raw = read_json(directory / "config.json")
    architecture = architecture_of(raw)
    if _is_direct(raw) and not unfamiliar:
        return True
    because = unfamiliar or f"{directory}: {architecture} is not read directly, as {_FAMILIES} are"
    names = _architectures(raw)
    if not names:
        raise LutraError(f"{because}; give config.json the architectures of the model's original")
    llama_converter.require(directory, names, because)
    return False


def _is_direct(raw: Mapping[str, Any]) -> bool:
    """Whether a family of ``families`` has this config.json."""
    family = BY_ARCHITECTURE.get(architecture_of(raw))
    return family is not None and family.is_member(raw)


def architecture_of(raw: Mapping[str, Any]) -> str:
    """What config.json calls the model: by its class or, if that is left out, by its type."""
    if names := _architectures(raw):
        return names[0]
    kind = f"{raw.get('model_type')}ForCausalLM".lower().replace("_", "")
    known = (name for name in BY_ARCHITECTURE if name.lower() == kind and not raw.get("architectures"))
    return next(known, "a model without architecture")


def _architectures(raw: Mapping[str, Any]) -> list[str]:
    """The classes that config.json names, of the whole model and of its text."""
    parts = (part.get("architectures") for part in (raw, raw.get("text_config")) if isinstance(part, dict))
    return [str(names[0]) for names in parts if isinstance(names, list) and names]


def _open_converted(directory: Path, name: str, what: str, scratch: Scratch | None) -> Source:
    """By way of the file that llama.cpp's converter makes; ``what`` is the beginning of its errors."""
    with ExitStack() as resources:
        title = None if name == directory.name else name
        made = llama_converter.convert(
            directory, title, what, scratch or Scratch(Path(f".{name}.converted.gguf")), resources
        )
        try:
            source = open_gguf(made, quantized=True)  # as it was published
        except LutraError as error:
            raise LutraError(str(error).replace(str(made), str(directory))) from None
        resources.push(source)
        _require_rope(directory / "config.json", source)
        for name in filter(_DIFFERENT.get, _architectures(read_json(directory / "config.json"))):
            warn(f"{directory}: {name}: not the same model in llama.cpp, {_DIFFERENT[name]}")
        files = [file for form in llama_converter.READ for file in sorted(directory.glob(form))]
        tensors = [replace(tensor, path=directory) for tensor in source.tensors]
        return Source(
            directory, source.architecture, source.metadata, tensors, resources.pop_all(), files, made
        )


def _require_rope(path: Path, source: Source) -> None:
    """Raise LutraError where llama.cpp's converter left out what rope needs: it says nothing about it.

    ``path`` is config.json, ``source`` what the converter made of the model.
    """
    raw = with_numbers(read_json(path))
    text = raw.get("text_config")
    kind = read_rope(path, {**raw, **(text if isinstance(text, dict) else {})}).get("rope_type")
    keys = dict.fromkeys(("linear", "yarn"), f"{source.architecture}.rope.scaling.type")
    factors = {"llama3": "rope_freqs.weight", **dict.fromkeys(rope.LONG, "rope_factors_long.weight")}
    needed = {**keys, **factors}.get(str(kind))
    if needed and needed not in source.metadata and all(t.name != needed for t in source.tensors):
        raise LutraError(
            f"{path}: rope type {kind!r} is none that llama.cpp's converter writes for a "
            f"{source.architecture}: the model's answers would be noise"
        )


def configured(
    directory: Path, raw: dict[str, Any], architecture: str
) -> tuple[dict[str, Any], Config, Family]:
    """config.json's content with the text's part at the top, the same as a ``Config``, and the family."""
    family = BY_ARCHITECTURE[architecture]
    if isinstance(raw.get("text_config"), dict):  # it sees or hears, too
        raw = {**raw, **raw["text_config"]}
    defaults = family.architectures[architecture]
    return raw, read_config(directory / "config.json", raw, architecture, defaults), family


def _open(directory: Path, name: str | None, raw: dict[str, Any], architecture: str) -> Source:
    raw, config, family = configured(directory, raw, architecture)
    if config.activation not in family.activations:
        raise LutraError(
            f"{config.path}: its activation is {config.activation!r}, but llama.cpp computes "
            f"{family.activations[0]!r} in a {architecture}: its answers would be noise"
        )
    with ExitStack() as resources:
        tensors = list(_tensors(directory, config, family, resources))
        metadata = _metadata(directory, name or model_name(directory), config, raw, family, tensors)
        files = [directory / file for file in _FILES]
        return Source(
            directory, gguf.MODEL_ARCH_NAMES[family.arch], metadata, tensors, resources.pop_all(), files
        )


# ---- key/values ------------------------------------------------------------------------------


def _metadata(
    directory: Path,
    name: str,
    config: Config,
    raw: Mapping[str, Any],
    family: Family,
    tensors: list[SourceTensor],
) -> dict[str, GGUFValue]:
    writer = gguf.GGUFWriter(None, gguf.MODEL_ARCH_NAMES[family.arch])  # only collects key/values
    try:
        for t in tensors:
            writer.add_tensor_info(t.name, t.shape, np.dtype(np.float16), 0)
        counts = writer.get_total_parameter_count()
        meta = card.describe(directory, name, raw, counts[0])
        meta.name = meta.name or name
        meta.size_label = meta.size_label or gguf.size_label(*counts)
        writer.add_type(gguf.GGUFType.MODEL)
        meta.set_gguf_meta_model(writer)
        family.add_keys(writer, config)
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        family.add_vocabulary(writer, directory, config)
    except LutraError:
        raise
    except Exception as error:  # gguf on damaged files: there is no end to what it raises
        reason = (str(error).splitlines() or [""])[0][:200]
        raise LutraError(
            f"{directory}: its json files are damaged ({type(error).__name__}: {reason})"
        ) from None
    return writer.kv_data[0]


# ---- tensors ---------------------------------------------------------------------------------


def _tensors(directory: Path, config: Config, family: Family, resources: ExitStack) -> Iterator[SourceTensor]:
    stored = open_safetensors(directory, resources)
    if config.layers > len(stored):
        raise LutraError(f"{config.path}: {config.layers} layers, but only {len(stored)} tensors are there")
    for made, factors in rope.factors(config).items():
        yield _made(made, factors, config.path)
    names = gguf.get_tensor_name_map(family.arch, config.layers)
    shapes = _shapes(config, family)
    seen: dict[str, str] = {}
    ignored = re.compile("|".join((*_IGNORED, _TIED) if config.tied else _IGNORED))
    used = [tensor for name, tensor in stored.items() if not ignored.search(name)]
    whole = restored(used, config.path, config.values.get("quantization_config"))
    weights = [part for tensor in whole for part in family.parts(tensor)]
    for tensor in stacked(weights, config.experts):
        what = f"{tensor.path}: tensor {tensor.name!r}"
        name = names.get_name(tensor.name.replace("language_model.", ""), (".weight", ".bias"))
        if name not in shapes:
            raise LutraError(f"{what} is no part of a {config.architecture} of {config.layers} layers")
        if name in seen:
            raise LutraError(f"{what} and {seen[name]!r} are the same tensor {name}")
        if tensor.shape != shapes[name]:
            have, want = list(tensor.shape), list(shapes[name])
            raise LutraError(f"{what} has the shape {have}, but config.json makes it {want}")
        seen[name] = tensor.name
        yield made_of(name, tensor, config, family)
    missing = next((n for n in shapes if n not in seen and not n.endswith(".bias")), None)
    if missing == "output.weight" and config.tied is not False:
        missing = None
    if missing:
        raise LutraError(f"{directory}: no tensor for {missing}; the model is incomplete, download it again")


def _shapes(config: Config, family: Family) -> dict[str, tuple[int, ...]]:
    """GGUF name -> shape of every tensor that the model can have; output last."""
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (config.vocab, config.hidden)}
    for i in range(config.layers):
        for name, length in family.vectors(config).items():
            shapes[f"blk.{i}.{name}.weight"] = (length,)
        for shared in family.matrices(config):
            for name, rows in shared.rows.items():
                if name.endswith("_exps"):
                    shapes[f"blk.{i}.{name}.weight"] = (config.experts, rows, shared.length)
                else:
                    shapes[f"blk.{i}.{name}.weight"] = (rows, shared.length)
                    shapes[f"blk.{i}.{name}.bias"] = (rows,)
    shapes["output_norm.weight"] = (config.hidden,)
    shapes["output.weight"] = (config.vocab, config.hidden)
    return shapes


def _made(name: str, vector: NDArray[np.float32], path: Path) -> SourceTensor:
    """A vector that is in no file; ``path`` is where it follows from."""
    return SourceTensor(
        name, vector.shape, "F32", path, lambda start, stop: vector[None, :][start:stop], keeps_f32=True
    )


def made_of(name: str, tensor: Weights, config: Config, family: Family) -> SourceTensor:
    """GGUF tensor ``name`` from what is stored."""
    keeps_f32 = family.keeps_f32(name, tensor.shape)
    offset = np.float32(norm_offset(name, family))
    part = name.split(".")[-2]  # blk.0.attn_q.weight
    order = family.row_order(part, config) if name.startswith("blk.") else None

    def load(start: int, stop: int) -> NDArray[np.float32]:
        numbers = np.arange(start, stop)
        if order is None:
            rows = tensor.load(numbers)
            return rows + offset if offset else rows
        if len(tensor.shape) == 1:  # a bias: its weights are reordered
            return tensor.load(numbers)[:, order]
        return tensor.load(order[numbers])

    return SourceTensor(name, tensor.shape, tensor.dtype, tensor.path, load, keeps_f32=keeps_f32)


def norm_offset(name: str, family: Family) -> float:
    """What GGUF tensor ``name`` has more than the stored one."""
    return family.norm_offset if name.endswith("_norm.weight") else 0.0
