# SPDX-License-Identifier: MIT
"""llama.cpp's own converter, for models that are not read here; the extra ``hf`` brings what it needs.

It writes an F16 file of the whole model, which is a source for a while. ``llama_converter_child`` runs it.
"""

from __future__ import annotations

import ast
import contextlib
import fcntl
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from tqdm import tqdm

from gguf_tools import installed
from gguf_tools.children import child
from gguf_tools.errors import LutraError, say
from gguf_tools.sources.safetensors import read_header

SCRIPT = "convert_hf_to_gguf.py"
PACKAGES = ("torch", "transformers", "sentencepiece")
INSTALL = 'pip install "lutra-llm[hf]"'
# What it reads of a directory: forms of names.
READ = ("*.json", "*.safetensors", "*.bin", "*.model", "*.jinja", "*.tiktoken", "merges.txt", "*vocab*.txt")
# Ways to quantize, by ``quant_method``, that nothing else here dequantizes.
ONLY_HERE = ("bitnet", "mxfp4")

# Types of safetensors in which an element is not a weight, with how many weights it may be.
_PACKED = {"U8": 0.5, "I32": 8.0}


@dataclass(frozen=True)
class Scratch:
    """Where the converter's file is while it is a source.

    ``beside`` says how many bytes a model of so many weights will at least take there in the end.
    """

    path: Path
    beside: Callable[[int], int] = lambda weights: 0


def script_path() -> Path:
    """Where the converter is when the build installed it, or in $LUTRA_CONVERTER_DIR."""
    return installed.directory("converter") / SCRIPT


def is_installed() -> bool:
    """Whether it can run here: it is there, and what it imports."""
    return script_path().is_file() and all(map(importlib.util.find_spec, PACKAGES))


def require(directory: Path, architectures: Sequence[str], because: str) -> None:
    """Raise ``LutraError`` when the converter cannot convert a model, whose weights need not be there yet.

    ``architectures`` are the names that config.json has for it, ``because`` says why it is wanted. It may
    know none of them, not be installed, or would run the model's own code.
    """
    known = _known()
    if known and not known.intersection(architectures):
        raise LutraError(f"{because}; llama.cpp's converter does not know {architectures[0]} either")
    if not is_installed():
        raise LutraError(f"{because}; after {INSTALL} the same command converts it")
    if code := _own_code(directory):
        raise LutraError(
            f"{code}: {architectures[0]} comes with Python code (auto_map), which lutra does not run; if you "
            f"trust it, make an F16 GGUF with llama.cpp's {SCRIPT} --outtype f16, then pass that file"
        )


def convert(directory: Path, name: str | None, what: str, scratch: Scratch, resources: ExitStack) -> Path:
    """Convert a Hugging Face directory to an F16 GGUF, which is at ``scratch`` until ``resources`` is closed.

    ``name`` is the model's title, None if it is the directory's. Raises ``LutraError`` when there is no room,
    and with ``what`` and the converter's reason when it fails.
    """
    weights = _weights(directory)
    nbytes = 2 * weights
    out = scratch.path.absolute()
    _require_room(out.parent, nbytes, scratch.beside(weights))
    _lock(out, resources)
    say(f"{directory}: llama.cpp's converter reads it, by way of {scratch.path} ({nbytes / 2**20:.1f} MiB)")
    command = [
        sys.executable,
        "-m",
        f"{__package__}.llama_converter_child",
        str(script_path()),
        str(directory),
    ]
    command += ["--outtype", "f16", "--outfile", str(out), *(["--model-name", name] if name else [])]
    environment = {
        "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path)),  # this process's modules
        "PYTHONSAFEPATH": "1",  # and not those in the current directory
        "HF_HUB_OFFLINE": "1",  # all that is needed is in the directory
    }
    with tempfile.TemporaryFile() as log:
        with (
            child(command, environment, stdout=subprocess.DEVNULL, stderr=log) as process,
            tqdm(
                desc="llama.cpp's converter", total=nbytes, unit="B", unit_scale=True, dynamic_ncols=True,
                leave=False, disable=None, file=sys.stderr,
            ) as bar,
        ):  # fmt: skip
            while process.poll() is None:
                bar.update(out.stat().st_size - bar.n)
                bar.refresh()  # the time runs before there is anything to count
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(0.2)
        log.seek(0)
        said = log.read().decode(errors="replace")
    if process.returncode or not out.stat().st_size:
        raise LutraError(f"{what}llama.cpp's converter failed: {_reason(said, process.returncode)}")
    return out


# ---- before --------------------------------------------------------------------------------


def _known() -> set[str]:
    """The architectures that the converter knows; empty where it does not say so as expected."""
    try:
        tree = ast.parse((script_path().parent / "conversion" / "__init__.py").read_bytes())
    except (OSError, ValueError, SyntaxError):
        return set()
    for node in tree.body:
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "TEXT_MODEL_MAP" and node.value:
            return set(ast.literal_eval(node.value))
    return set()


def _own_code(directory: Path) -> Path | None:
    """The file that makes the converter run code of the model's author, if one does.

    It opens the tokenizer, and lets transformers run what ``auto_map`` names for it; that looks at the
    model's configuration only where the class of the tokenizer is not written down. Code of the network stays
    unused.
    """
    maps = {path: _object(path) for path in sorted(directory.glob("*.json"))}
    has_class = "tokenizer_class" in _object(directory / "tokenizer_config.json")
    for path, value in maps.items():
        auto_map = value.get("auto_map")
        names = auto_map if isinstance(auto_map, dict) else {}
        if "AutoTokenizer" in names or (names and not has_class):
            return path
    return None


def _object(path: Path) -> dict[str, Any]:
    """What a JSON file holds; empty where it is none, or no object."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _weights(directory: Path) -> int:
    """About how many weights a model has, by the headers of its safetensors or the size of its pickles."""
    total = 0.0
    for path in sorted(directory.glob("model*.safetensors")):
        for entry in read_header(path).values():
            with contextlib.suppress(KeyError, TypeError):  # the converter says what is wrong with it
                total += prod(entry["shape"]) * _PACKED.get(entry["dtype"], 1.0)
    return int(total) or sum(path.stat().st_size for path in directory.glob("pytorch_model*.bin")) // 2


def _require_room(directory: Path, nbytes: int, beside: int) -> None:
    if not directory.is_dir():
        raise LutraError(f"{directory}: no such directory; create it or choose another place with -o")
    free = shutil.disk_usage(directory).free
    if free < nbytes + beside:
        raise LutraError(
            f"{directory}: needs {(nbytes + beside) / 1e9:.1f} GB, of which {nbytes / 1e9:.1f} GB for an F16 "
            f"file on the way, and has {free / 1e9:.1f} GB free; choose another place with -o"
        )


def _lock(path: Path, resources: ExitStack) -> None:
    """Make the file ours until ``resources`` is closed, when it is removed. What an earlier run left goes."""
    try:
        file = resources.enter_context(path.open("ab"))
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise LutraError(f"{path}: another conversion to this output is running; wait for it") from None
    except OSError as error:
        raise LutraError(
            f"{path}: cannot be written: {error.strerror}; choose another place with -o"
        ) from None
    resources.callback(path.unlink, missing_ok=True)
    file.truncate(0)


# ---- after ---------------------------------------------------------------------------------


def _reason(log: str, code: int) -> str:
    """The last error of the converter: the exception with its place in the converter, else the last line."""
    if code < 0:
        return f"{signal.Signals(-code).name} ended it, as happens when memory runs out"
    lines = log.strip().splitlines() or ["no message"]
    frames = [
        (i, found) for i, line in enumerate(lines) if (found := re.match(r'  File "(.+)", line (\d+)', line))
    ]
    if not frames:
        return lines[-1].removeprefix("ERROR:hf-to-gguf:")
    what = next((line for line in lines[frames[-1][0] + 1 :] if not line.startswith(" ")), lines[-1])
    what = re.sub(rf"^{LutraError.__module__}\.\w+: ", "", what)  # a line for people
    root = script_path().parent
    own = (frame for frame in reversed(frames) if frame[1][1].startswith(str(root / "conversion")))
    _, place = next(own, frames[-1])
    return f"{what.strip()} ({os.path.relpath(place[1], root)}, line {place[2]})"
