# SPDX-License-Identifier: MIT
"""The Hugging Face hub's cache: models--ORG--NAME/{refs/main,snapshots/HASH,blobs}, whose files are links."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from gguf_tools.errors import LutraError

_MODEL = re.compile(r"models--(?:.+?--)?(.+)")
_PART = re.compile(r"-\d{5}-of-\d{5}$")
_TYPE = re.compile(
    r"(?:^|[-._])((?:UD-)?(?:I?Q\d\w*|TQ\d_\d|CB\d+(?:_M)?|B?F16|F32|MXFP4\w*)|[\d.]+bpw)$", re.IGNORECASE
)


def root() -> Path:
    """Where the cache is."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def directory(name: str) -> Path:
    """Where the cache has, or would have, the model called ORG/MODEL."""
    return root() / f"models--{name.replace('/', '--')}"


def require_room(name: str, nbytes: int) -> None:
    """Raise LutraError where the disk of the cache has no room for so many bytes more."""
    disk = root().absolute()
    while not disk.exists():
        disk = disk.parent
    free = shutil.disk_usage(disk).free
    if nbytes > free:
        raise LutraError(
            f"{name}: needs {nbytes / 1e9:.1f} GB in {root()}, whose disk has {free / 1e9:.1f} GB free; "
            "'lutra ls' shows what can go, HF_HOME moves the cache"
        )


def snapshot(path: Path) -> Path:
    """Where a model's files are: ``path``, or of a models--ORG--NAME the main snapshot, else the newest.

    Raises ``LutraError`` when the cache has none.
    """
    snapshots = path / "snapshots"
    if not _MODEL.fullmatch(path.resolve().name) or not snapshots.is_dir():
        return path
    with contextlib.suppress(OSError, UnicodeDecodeError):
        main = snapshots / (path / "refs" / "main").read_text().strip()
        if main.parent == snapshots and main.is_dir():
            return main
    there = [entry for entry in snapshots.iterdir() if entry.is_dir()]
    if not there:
        raise LutraError(f"{path}: no snapshot in this cache of the hub; download the model again")
    return max(there, key=lambda entry: entry.stat().st_mtime_ns)


def model_name(path: Path) -> str:
    """What a model at ``path`` is called: the last part, but in the hub's cache the model's own name.

    A file's is its own, too, where it is a link to a blob.
    """
    path = path.resolve() if path.is_dir() else Path(os.path.abspath(path))
    if path.parent.name == "snapshots" and path.is_dir():
        path = path.parent.parent
    found = _MODEL.fullmatch(path.name)
    return found[1] if found and path.is_dir() else path.name


def hub_name(path: Path) -> str | None:
    """ORG/MODEL of what lies in a cache of the hub; None of anything else."""
    path = path.resolve() if path.is_dir() else Path(os.path.abspath(path))
    models = [part for part in path.parts if part.startswith("models--")]
    return models[-1].removeprefix("models--").replace("--", "/", 1) if models else None


def gguf_types(names: Iterable[str]) -> dict[str, list[str]]:
    """The models in GGUF files by type in lower case (else by name), each with its file or parts in order.

    Files of projectors and importance matrices are no models.
    """
    models: dict[str, list[str]] = {}
    for name in sorted(names):
        path = Path(name)
        if path.suffix == ".gguf" and not re.search("mmproj|imatrix", path.name, re.IGNORECASE):
            models.setdefault(_PART.sub("", str(path.with_suffix(""))), []).append(name)
    types = {model: _TYPE.search(Path(model).name) for model in models}
    labels = {
        model: found[1].lower() if found else Path(model).name.lower() for model, found in types.items()
    }
    several = [label for label in labels.values() if list(labels.values()).count(label) > 1]
    return {
        Path(model).name.lower() if labels[model] in several else labels[model]: files
        for model, files in models.items()
    }


# ---- what is there -------------------------------------------------------------------------


@dataclass(frozen=True)
class Kept:
    """A model in the cache: its name, the bytes it takes, and its GGUF files if it is of these."""

    name: str
    bytes: int
    files: tuple[Path, ...] = ()
    whole: bool = True


def kept() -> Iterator[Kept]:
    """The models in the cache by name: GGUF files, and what else a model has, as one each."""
    for model in sorted(root().glob("models--*")):
        name = "/".join(model.name.split("--", 2)[1:])
        blobs = [path for path in (model / "blobs").glob("*") if path.is_file()]
        left = sum(path.stat().st_size for path in blobs)
        try:
            files = snapshot(model)
        except LutraError:
            files = model / "snapshots"
        there = [str(path.relative_to(files)) for path in files.rglob("*") if path.is_file()]
        for kind, parts in gguf_types(there).items():
            paths = tuple(files / part for part in parts)
            nbytes = sum(path.stat().st_size for path in paths)
            left -= nbytes
            yield Kept(f"{name}:{kind}", nbytes, paths)
        has_weights = any(path.endswith((".safetensors", ".bin")) for path in there)
        has_weights &= _parts(files / "model.safetensors.index.json") <= set(there)
        unfinished = any(path.suffix == ".incomplete" for path in blobs)
        if has_weights or unfinished or not gguf_types(there):
            yield Kept(name, left, whole=has_weights and not unfinished)


def _parts(index: Path) -> set[str]:
    """The files that an index of weights names; none without a sound index."""
    try:
        return set(json.loads(index.read_bytes())["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return set()


def remove(model: Kept) -> None:
    """Take a model out of the cache: its GGUF files, or all that is there of it."""
    name = model.name.partition(":")[0]
    if model.files and sum(other.name.partition(":")[0] == name for other in kept()) > 1:
        blobs = [file.parent / os.readlink(file) for file in model.files if file.is_symlink()]
        for path in (*model.files, *blobs):
            _unlink(path)
        return
    for path in (directory(name) / "blobs").glob("*"):
        _unlink(path)
    shutil.rmtree(directory(name), ignore_errors=True)


def _unlink(path: Path) -> None:
    """Remove a file, and what it alone leads to in the store of all models' blobs."""
    stored = path.resolve()
    path.unlink(missing_ok=True)
    store = root().resolve() / "blobs"
    if store in stored.parents and all(
        other.resolve() != stored for other in root().glob("*--*/blobs/*") if other.is_symlink()
    ):
        stored.unlink(missing_ok=True)
        stored.with_name(f"{stored.name}.refs").unlink(missing_ok=True)
