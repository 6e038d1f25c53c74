# SPDX-License-Identifier: MIT
"""Models by their names on the Hugging Face hub: ``ORG/MODEL``, and of GGUF files ``ORG/MODEL:TYPE``.

What is needed of a model, and nothing else, is fetched into the hub's cache. Without a network, what the
cache has is taken. huggingface_hub does the talking: HF_TOKEN, HF_HOME, HF_ENDPOINT, HF_HUB_OFFLINE count.
"""

from __future__ import annotations

import errno
import fcntl
import json
import re
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

from gguf_tools.errors import LutraError
from gguf_tools.sources import hub_cache
from gguf_tools.sources.hub_cache import gguf_types

_NAME = re.compile(r"([\w-][\w.-]*/[\w-][\w.-]*)(?::([\w.-]+))?")
_INDEX, _SINGLE = "model.safetensors.index.json", "model.safetensors"
# Beside the weights, of the files at the top: configuration, tokenizer, chat template, card.
_BESIDE = re.compile(
    r"(?!.*\.index\.json$).*\.(json|jinja|tiktoken|model)|(merges|.*vocab.*)\.txt|README\.md"
)
_QUANTIZED = re.compile(r"(?!q2_0$)(ud-)?(i?q[1-6]|cb|[\d.]+bpw)")  # types that no model is published in
_TO_CONVERT = ("f16", "bf16", "f32", "q8_0")  # types of GGUF files, the first that is there
_TO_RUN = ("cb4", "q4_k_m")
_LARGE = 8_000_000  # bytes from which a file is worth going on with in its middle


def is_name(source: str | Path) -> bool:
    """Whether ``source`` can be a name on the hub: it has the form of one, and nothing here is called so."""
    text = str(source)
    return bool(_NAME.fullmatch(text)) and not text.endswith(".gguf") and not Path(source).exists()


def local_gguf(file: str | Path) -> Path:
    """``file`` itself, or the GGUF file of this name, fetched; of a split one the first part.

    What the cache has is taken as it is, and the hub is not asked. Raises ``LutraError``, with the types that
    are there when there is none of that type.
    """
    if not is_name(file):
        return Path(file)
    return _cached_gguf(str(file)) or _fetch_gguf(_Repository.find(str(file)), _TO_RUN)


def local_source(name: str, *, requantize: bool = False, hollow: Path | None = None) -> Path:
    """The directory, or the GGUF file, of the weights of the model called ``name``, fetched.

    ``requantize``: the file may be quantized. ``hollow``: a directory for files that have the headers of the
    weights and not their numbers, where these are not in the cache and nothing but Lutra has to read them.
    Raises ``LutraError`` with the cause and the next step.
    """
    repository = replace(_Repository.find(name), hollow=hollow)
    files = repository.files
    if repository.type or ("config.json" not in files and gguf_types(files)):
        return _fetch_gguf(repository, _TO_CONVERT, quantized=requantize)
    beside = [file for file in files if _BESIDE.fullmatch(file)]
    is_direct = _require_known(repository, beside)
    _require_dequantized(repository.fetch(beside) / "config.json", repository.dtypes)
    if not is_direct:
        repository = replace(repository, hollow=None)
    if _INDEX in files:
        directory = repository.fetch([*beside, _INDEX])
        try:
            weights = sorted(set(json.loads((directory / _INDEX).read_bytes())["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise LutraError(f"{directory / _INDEX}: has no weight_map; tell the model's author") from None
        return repository.fetch([*beside, _INDEX, *(file for file in weights if file in files)])
    if _SINGLE in files:
        return repository.fetch([*beside, _SINGLE])
    pickled = [file for file in files if re.fullmatch(r"pytorch_model.*\.bin(\.index\.json)?", file)]
    if pickled:
        if is_direct:
            _require_readable(repository.fetch(beside), f"{repository.name}: has no {_SINGLE} but pickles")
        return repository.fetch([*beside, *pickled])
    raise LutraError(
        f"{repository.name}: has no {_SINGLE}; choose a model of the hub that is saved as safetensors, or "
        f"convert a GGUF of it"
    )


def _require_known(repository: _Repository, beside: Sequence[str]) -> bool:
    """Whether a model is read directly. Raises LutraError, before weights are fetched, if it cannot be."""
    if "config.json" not in beside:
        raise LutraError(
            f"{repository.name}: has no config.json {repository.where}, so it is no language model"
        )
    return _require_readable(repository.fetch(beside))


def _require_readable(directory: Path, *but: str) -> bool:
    from gguf_tools.sources.huggingface import require_readable  # with numpy, which a chat does without

    return require_readable(directory, *but)


def _require_dequantized(config: Path, dtypes: Collection[str]) -> None:
    from gguf_tools.sources.dequantize import method_of, require_known  # with numpy, too
    from gguf_tools.sources.llama_converter import ONLY_HERE
    from gguf_tools.sources.safetensors import read_json

    settings = read_json(config).get("quantization_config")
    if method_of(settings) not in ONLY_HERE:
        require_known(config, settings, dtypes)


def _cached_gguf(name: str) -> Path | None:
    match = _NAME.fullmatch(name)
    assert match
    cached = hub_cache.directory(match[1])
    if not (cached / "snapshots").is_dir():
        return None
    root = hub_cache.snapshot(cached)
    types = gguf_types(str(path.relative_to(root)) for path in root.rglob("*.gguf"))
    wanted = match[2].lower() if match[2] else next((t for t in _TO_RUN if t in types), "")
    parts = types.get(wanted, [])
    return root / parts[0] if parts and len(parts) == _count(parts) else None


def _count(parts: Sequence[str]) -> int:
    """How many parts there are of a file, of which these are some."""
    count = re.search(r"-of-(\d{5})\.gguf$", parts[0])
    return int(count[1]) if count else len(parts)


def _fetch_gguf(repository: _Repository, preferred: Sequence[str], *, quantized: bool = True) -> Path:
    types = gguf_types(repository.files)
    name = repository.name
    if not types:
        raise LutraError(f"{name}: has no GGUF file; make one: lutra convert {name} --type cb4")
    wanted = repository.type.lower() or next((t for t in preferred if t in types), "")
    if not wanted and len(types) == 1:
        wanted = next(iter(types))
    if wanted not in types:
        there = ", ".join(f"{name}:{kind}" for kind in types)
        which = f"no {wanted} file" if wanted else "several files"
        raise LutraError(f"{name}: {which} {repository.where}; choose one of {there}")
    if not quantized and _QUANTIZED.match(wanted):
        raise LutraError(
            f"{name}: {wanted} is already quantized; start from an F16, BF16, F32 or Q8_0 file of this "
            "model, or let the losses add up with --allow-requantize"
        )
    parts = types[wanted]
    if len(parts) != _count(parts):
        raise LutraError(f"{name}: {len(parts)} of {_count(parts)} parts of {wanted} are {repository.where}")
    return repository.fetch(parts) / parts[0]


@dataclass(frozen=True)
class _Repository:
    """A model of the hub, or ``cached`` of its cache: bytes of its files by their names."""

    name: str
    type: str  # that was asked for; empty if none was
    files: Mapping[str, int]
    cached: Path | None
    dtypes: Collection[str] = ()  # of its tensors, where the hub says so
    hollow: Path | None = None  # where headers suffice

    @staticmethod
    def find(text: str) -> _Repository:
        """The model called ``text``. Raises LutraError where neither the hub nor the cache has it."""
        from huggingface_hub import HfApi, constants
        from huggingface_hub.utils import logging

        logging.set_verbosity_error()
        match = _NAME.fullmatch(text)
        assert match
        name, kind = match[1], match[2] or ""
        try:
            if constants.HF_HUB_OFFLINE:
                raise ConnectionError
            found = HfApi().model_info(name, files_metadata=True, timeout=10)
            sizes = {sibling.rfilename: sibling.size or 0 for sibling in found.siblings or ()}
            return _Repository(name, kind, sizes, None, getattr(found.safetensors, "parameters", None) or ())
        except Exception as error:  # the hub's errors are many, and not of one class
            cached = hub_cache.directory(name)
            if _status(error) is None and (cached / "snapshots").is_dir():
                root = hub_cache.snapshot(cached)
                files = {str(p.relative_to(root)): p.stat().st_size for p in root.rglob("*") if p.is_file()}
                return _Repository(name, kind, files, root)
            _fail(name, error)

    @property
    def where(self) -> str:
        """Where its files are."""
        return "in the cache, and the hub cannot be reached" if self.cached else "on the hub"

    def fetch(self, files: Iterable[str]) -> Path:
        """The directory that has ``files``; those that are missing are fetched. Raises LutraError."""
        if self.cached:
            return self.cached
        from huggingface_hub import try_to_load_from_cache

        files = list(files)
        missing = [file for file in files if not isinstance(try_to_load_from_cache(self.name, file), str)]
        if self.hollow:
            return self._fetch_headers(self.hollow, files, missing)
        hub_cache.require_room(self.name, sum(self.files[file] for file in missing))
        path = Path()
        try:
            for file in files:
                path = self._fetch(file)
        except Exception as error:
            _fail(self.name, error)
        return path.parents[files[-1].count("/")]

    def _fetch_headers(self, hollow: Path, files: Iterable[str], missing: Sequence[str]) -> Path:
        """``hollow`` with what leads to ``files``, and with headers of weights that are ``missing``."""
        from gguf_tools.sources.hub_headers import fetch_header  # with numpy, which a chat does without

        try:
            for file in files:
                path = hollow / file
                path.parent.mkdir(parents=True, exist_ok=True)
                if path.exists():
                    continue
                if file in missing and file.endswith((".safetensors", ".gguf")):
                    fetch_header(self.name, file, self.files[file], path)
                else:
                    path.symlink_to(self._fetch(file))
        except Exception as error:
            _fail(self.name, error)
        return hollow

    def _fetch(self, file: str) -> Path:
        """A file in the cache; a large one goes on where an earlier command was stopped."""
        from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url
        from huggingface_hub.file_download import http_get
        from huggingface_hub.utils import build_hf_headers, disable_progress_bars, enable_progress_bars

        is_large = self.files[file] > _LARGE
        (enable_progress_bars if is_large and sys.stderr.isatty() else disable_progress_bars)()
        # huggingface_hub begins again in every process, so this fills in the blob that it then finds.
        if is_large and self.files[file] < getattr(constants, "MAX_HTTP_DOWNLOAD_SIZE", 50_000_000_000):
            url = hf_hub_url(self.name, file)
            known = get_hf_file_metadata(url)
            blob = hub_cache.directory(self.name) / "blobs" / str(known.etag)
            headers = build_hf_headers()
            if (
                known.location.split("/")[2] != url.split("/")[2]
            ):  # a storage server, which has signed the URL
                headers.pop("authorization", None)
            blob.parent.mkdir(parents=True, exist_ok=True)
            if not blob.exists():
                partial = blob.with_name(f"{blob.name}.incomplete")
                with open(partial, "ab") as out:
                    try:
                        fcntl.flock(out, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    except BlockingIOError:
                        raise LutraError(f"{self.name}: another program is fetching {file}; wait") from None
                    http_get(
                        known.location, out, resume_size=out.tell(), headers=headers,
                        expected_size=known.size, displayed_filename=file,
                    )  # fmt: skip
                    partial.replace(blob)
        return Path(hf_hub_download(self.name, file))


def _status(error: Exception) -> int | None:
    """What the hub answered; None where there was no answer."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None


def _fail(name: str, error: Exception) -> NoReturn:
    """Raise ``LutraError`` with the cause in words and the next step."""
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    hub, status = constants.ENDPOINT, _status(error)
    if isinstance(error, LutraError):
        raise error
    if isinstance(error, GatedRepoError):
        reason = f"is gated; accept its licence at {hub}/{name}, then set HF_TOKEN to a token of your account"
    elif isinstance(error, RepositoryNotFoundError) or status == 404:
        reason = (
            f"neither a file here nor a model at {hub}; check the name, and set HF_TOKEN for a private one"
        )
    elif status in (401, 403):
        reason = f"{hub} refuses access ({status}); set HF_TOKEN to a token that may read it"
    elif status:
        reason = f"{hub} answers {status}; try again later, the same command goes on"
    elif isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        reason = f"the disk of {hub_cache.root()} is full; 'lutra ls' shows what can go, HF_HOME moves it"
    elif isinstance(error, PermissionError):
        reason = f"{error.filename}: {error.strerror}; set HF_HOME to a directory that can be written"
    elif constants.HF_HUB_OFFLINE:
        reason = "neither here nor in the hub's cache, and HF_HUB_OFFLINE is set; unset it to fetch the model"
    else:
        cause = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        reason = (
            f"no such file here, and no model could be fetched from {hub} ({cause}); check the network, "
            "the same command goes on"
        )
    raise LutraError(f"{name}: {reason}") from None
