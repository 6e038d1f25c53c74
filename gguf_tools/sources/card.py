# SPDX-License-Identifier: MIT
"""What a Hugging Face directory says about its model: README.md's head and generation_config.json.

People write both by hand. What makes no sense is left out with a warning; it never stops a conversion.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import gguf
import yaml

from gguf_tools.errors import LutraError, warn
from gguf_tools.sources.safetensors import read_json

logging.getLogger("metadata").setLevel(logging.CRITICAL)  # gguf's; what it says is no line for people

# Fields of gguf.Metadata that generation_config.json sets, by its names, and what they are.
_SAMPLING: dict[str, tuple[str, type]] = {
    "sequence": ("sequence", str),
    "top_k": ("top_k", int),
    "top_p": ("top_p", float),
    "min_p": ("min_p", float),
    "xtc_probability": ("xtc_probability", float),
    "xtc_threshold": ("xtc_threshold", float),
    "temperature": ("temp", float),
    "penalty_last_n": ("penalty_last_n", int),
    "repetition_penalty": ("penalty_repeat", float),  # transformers' name
    "penalty_repeat": ("penalty_repeat", float),
    "mirostat": ("mirostat", int),
    "mirostat_tau": ("mirostat_tau", float),
    "mirostat_eta": ("mirostat_eta", float),
}


class _Loader(yaml.SafeLoader):
    """YAML whose scalars are text, or null: a version of 1.0, the language "no" and the year 2024 stay."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [(tag, form) for tag, form in resolvers if tag == "tag:yaml.org,2002:null"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def describe(directory: Path, name: str, config: Mapping[str, Any], parameters: int) -> gguf.Metadata:
    """The keys ``general.*`` of a model of so many ``parameters``; ``name`` is its directory's."""
    meta = gguf.Metadata.apply_metadata_heuristic(
        gguf.Metadata(),
        _card(directory / "README.md"),
        _texts(config, "_name_or_path"),
        Path(name),
        parameters,
    )
    _drop_what_is_no_text(meta, directory / "README.md")
    path = directory / "generation_config.json"
    given = generation_config(directory)
    for key, (field, kind) in _SAMPLING.items():
        if (value := given.get(key)) is None:
            continue
        try:
            setattr(meta, f"sampling_{field}", _as(kind, value))
        except (TypeError, ValueError, OverflowError):
            warn(f"{path}: {key} is {value!r}; left out")
    return meta


def generation_config(directory: Path) -> dict[str, Any]:
    """generation_config.json; empty, with a warning, where it cannot be read."""
    path = directory / "generation_config.json"
    if not path.is_file():
        return {}
    try:
        return read_json(path)
    except LutraError:
        warn(f"{path}: is no JSON object; left out")
        return {}


def _as(kind: type, value: Any) -> Any:
    """A number that may be written as another kind of number, or as text. Raises ValueError for others."""
    if kind is str:
        if not isinstance(value, str):
            raise ValueError
        return value
    number = float("nan" if isinstance(value, bool) else value)
    if not abs(number) < (1 << 31 if kind is int else 1e38) or (kind is int and not number.is_integer()):
        raise ValueError
    return kind(number)


def _card(path: Path) -> dict[str, Any]:
    """The YAML between two lines of dashes at the start of README.md."""
    try:
        text = (
            path.read_bytes().decode("utf-8-sig", "replace").replace("\r\n", "\n") if path.is_file() else ""
        )
    except OSError:
        return {}
    head = re.match(r"---[ \t]*\n(.*?)^---[ \t]*$", text, re.DOTALL | re.MULTILINE)
    if head is None:
        return {}
    said = head[1].replace("\t", "  ")
    card = _yaml(said)
    if card is not None:
        return card
    card = {}
    for block in re.split(r"\n(?=[^\s#\-\]}])", said):  # a key each, with what belongs to it
        part = _yaml(block)
        if part is None:
            warn(f"{path}: {block.splitlines()[0]!r} is no YAML; left out")
        card |= part or {}
    return card


def _yaml(text: str) -> dict[str, Any] | None:
    """An object in YAML, without what is null; None for anything else."""
    try:
        value = yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError):
        return None
    if value is None:
        return {}
    if not isinstance(value, dict):
        return None
    return {key: _without_null(entry) for key, entry in value.items() if entry is not None}


def _without_null(entry: Any) -> Any:
    return [item for item in entry if item is not None] if isinstance(entry, list) else entry


def _texts(values: Mapping[str, Any], *keys: str) -> dict[str, str]:
    return {key: values[key] for key in keys if isinstance(values.get(key), str)}


def _drop_what_is_no_text(meta: gguf.Metadata, path: Path) -> None:
    """Every field as its annotation has it: text, a list of texts, or a list of objects of texts."""
    for field in fields(meta):
        value = getattr(meta, field.name)
        kept: Any = value
        if isinstance(value, list):
            if "dict" in str(field.type):
                kept = [_texts(entry, *entry) for entry in value if isinstance(entry, dict)]
            elif "list" in str(field.type) or field.name == "license":
                kept = [entry for entry in value if isinstance(entry, str)]
            else:
                kept = None
        elif not isinstance(value, str):
            kept = None
        if kept != value:
            warn(f"{path}: not all of {field.name} is text; that is left out")
        setattr(meta, field.name, kept or None)
