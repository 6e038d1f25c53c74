# SPDX-License-Identifier: MIT
"""Conversations on disk, with what the model has computed of them: going on takes no reading again.

A session is NAME.json with what was said, and NAME.state with llama.cpp's state, which is of use only to the
same model file and cache types. Both are replaced as a whole; a state that is not the one that its json
describes is left alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import zlib
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from gguf_tools.errors import LutraError
from lutra import __version__
from lutra.runtime.conversation import ROOM, Conversation, Script
from lutra.runtime.paths import data_dir

_NAME = re.compile(r"\w[\w.-]*")
_PART = re.compile(r"(.*-)\d{5}(-of-(\d{5})\.gguf)")
_BLOCK = 1 << 20
_SAMPLES = 64  # of a file of weights


class Sessions:
    """The sessions in ``directory``, by default the user's own."""

    def __init__(self, directory: Path | None = None) -> None:
        self.directory = directory or data_dir() / "sessions"

    def names(self) -> list[str]:
        """Those that there are, the last saved first."""
        if not self.directory.is_dir():
            return []
        return [path.stem for path in sorted(self.directory.glob("*.json"), key=_age)]

    def __contains__(self, name: str) -> bool:
        return self._path(name, "json").is_file()

    def save(self, name: str, conversation: Conversation) -> str:
        """Save under ``name``, in place of what was there.

        Returns why the state could not be saved; "" if it was. Raises LutraError or OSError where not even
        what was said could be.
        """
        script, model = conversation.script, conversation.model
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        content: dict[str, Any] = {
            "version": 1,
            "system": script.system,
            "turns": script.turns,
            "started": script.started.isoformat(),
            "state": None,
        }
        state, problem = self._path(name, "state"), ""
        try:
            free = shutil.disk_usage(self.directory).free
            if model.state_size + _BLOCK > free:
                raise LutraError(
                    f"{self.directory} has {free >> 20} MiB free, its state takes {model.state_size >> 20}"
                )
            _replace(state, model.save_state)
            content |= {"rendered": script.rendered, "tokens": script.tokens, "state": _check(state)}
            content |= {"for": _user(conversation)}
        except LutraError as error:
            problem = str(error)
            state.unlink(missing_ok=True)
        text = json.dumps(content)
        _replace(self._path(name, "json"), lambda path: path.write_text(text))
        return problem

    def load(self, name: str, conversation: Conversation) -> str:
        """Go on with the conversation saved as ``name``.

        Returns why the model has to read it again; "" if not. Raises LutraError where there is none.
        """
        path, state = self._path(name, "json"), self._path(name, "state")
        try:
            content = json.loads(path.read_bytes())
            turns = [{"role": turn["role"], "content": turn["content"]} for turn in content["turns"]]
            script = Script(content["system"], turns, datetime.fromisoformat(content["started"]))
            if not all(isinstance(text, str) for turn in turns for text in turn.values()):
                raise TypeError
            known = content.get("rendered") or "", list(map(int, content.get("tokens") or ()))
        except FileNotFoundError:
            there = ", ".join(self.names()) or "none yet"
            raise LutraError(f"no session '{name}' in {self.directory}; there are {there}") from None
        except (ValueError, KeyError, TypeError, AttributeError):
            raise LutraError(f"{path}: damaged; remove it") from None
        conversation.script = script
        model = conversation.model
        try:
            if content["state"] is None:
                raise LutraError("its state was not saved")
            _require_same(content["for"], _user(conversation))
            if len(known[1]) + ROOM > model.n_ctx:
                raise LutraError(f"its {len(known[1])} tokens are too many for a context of {model.n_ctx}")
            if not state.is_file() or _check(state) != content["state"]:
                raise LutraError(f"{state} is missing or damaged")
            model.load_state(state)
        except LutraError as error:
            return str(error)
        except (KeyError, TypeError):
            return "what it says of its state is damaged"
        script.rendered, script.tokens = known
        return ""

    def _path(self, name: str, suffix: str) -> Path:
        if not _NAME.fullmatch(name):
            raise LutraError(f"no session can be called '{name}'; take letters, digits, '-', '_' and '.'")
        return self.directory / f"{name}.{suffix}"


def _user(conversation: Conversation) -> dict[str, str]:
    """Whom a state is for."""
    model = conversation.model
    return {
        "lutra": __version__,
        "cache": "/".join(model.cache_types),
        "file": model.path.name,
        "fingerprint": fingerprint(model.path),
    }


def _require_same(saved: dict[str, str], now: dict[str, str]) -> None:
    """Raise LutraError where a state is for another."""
    if saved["fingerprint"] != now["fingerprint"]:
        raise LutraError(f"it was saved with another model file, {saved['file']}")
    if saved["cache"] != now["cache"]:
        raise LutraError(f"it was saved with the cache types {saved['cache']}")
    if saved["lutra"] != now["lutra"]:
        raise LutraError(f"it was saved by lutra {saved['lutra']}")


def fingerprint(path: Path) -> str:
    """Letters that tell one model's files from another's: from sizes, headers and samples of weights."""
    digest = hashlib.blake2b(digest_size=6)
    for part in _parts(path):
        with open(part, "rb", buffering=0) as file:
            size = file.seek(0, os.SEEK_END)
            digest.update(f"{size}\n".encode())
            for start in (0, *(size * i // _SAMPLES for i in range(1, _SAMPLES)), max(0, size - _BLOCK)):
                file.seek(start)
                digest.update(file.read(4096 if 0 < start < size - _BLOCK else _BLOCK))
    return digest.hexdigest()


def _parts(path: Path) -> list[Path]:
    split = _PART.fullmatch(path.name)
    if not split:
        return [path]
    return [path.with_name(f"{split[1]}{i + 1:05}{split[2]}") for i in range(int(split[3]))]


def _check(path: Path) -> dict[str, int]:
    """Size and checksum of a file."""
    size = checksum = 0
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            size, checksum = size + len(block), zlib.crc32(block, checksum)
    return {"bytes": size, "crc32": checksum}


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    """Have ``write`` make a file that only its owner can read, and put it in the place of ``path``."""
    made = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        made.touch(0o600)
        write(made)
        with open(made, "rb") as file:
            os.fsync(file)
        made.replace(path)
    finally:
        made.unlink(missing_ok=True)


def _age(path: Path) -> float:
    return -path.stat().st_mtime
