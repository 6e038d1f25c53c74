# SPDX-License-Identifier: MIT
"""llama.cpp's own converter, for the architectures that are not read here. It needs torch."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from gguf_tools import installed
from gguf_tools.errors import LutraError
from gguf_tools.sources.families import BY_ARCHITECTURE

SCRIPT = "convert_hf_to_gguf.py"
# What it reads of a directory: forms of names.
READ = ("*.json", "*.safetensors", "*.bin", "*.model", "*.jinja", "*.tiktoken", "merges.txt", "vocab.txt")


def script_path() -> Path:
    """Where the converter is when the build installed it, or in $LUTRA_CONVERTER_DIR."""
    return installed.directory("converter") / SCRIPT


def is_installed() -> bool:
    """Whether it can run here: it is there, and torch."""
    return importlib.util.find_spec("torch") is not None and script_path().is_file()


def convert(directory: Path, architecture: str, resources: ExitStack) -> Path:
    """Convert a Hugging Face directory to an F16 GGUF, which is there until ``resources`` is closed.

    Raises ``LutraError`` as ``require`` does, and with the converter's last line when it fails.
    """
    require(directory, architecture)
    script = script_path()
    out = Path(resources.enter_context(TemporaryDirectory(prefix="lutra-convert-"))) / "model-f16.gguf"
    command = [sys.executable, str(script), str(directory), "--outtype", "f16", "--outfile", str(out)]
    run = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
    if run.returncode != 0 or not out.is_file():
        reason = (run.stderr.strip().splitlines() or ["no message"])[-1]
        raise LutraError(f"{directory}: {architecture}: llama.cpp's converter failed: {reason}")
    return out


def require(directory: Path, architecture: str) -> None:
    """Raise ``LutraError`` when the converter cannot convert a model, whose weights need not be there yet.

    It names the architecture when the converter or torch is not installed, and the file that would make the
    converter run the model's own code.
    """
    if not is_installed():
        direct = ", ".join(name.removesuffix("ForCausalLM") for name in BY_ARCHITECTURE)
        raise LutraError(
            f"{directory}: {architecture} is not read directly ({direct} are); make an "
            f"F16 GGUF with llama.cpp's {SCRIPT} --outtype f16, then pass that file"
        )
    if code := _own_code(directory):
        raise LutraError(
            f"{code}: {architecture} comes with Python code (auto_map), which lutra does not run; if you "
            f"trust it, make an F16 GGUF with llama.cpp's {SCRIPT} --outtype f16, then pass that file"
        )


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
