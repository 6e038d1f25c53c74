# SPDX-License-Identifier: MIT
"""Where the native libraries and the llama.cpp tools are."""

from __future__ import annotations

import os
from pathlib import Path

from gguf_tools.errors import LutraError

_PACKAGE = Path(__file__).parents[1]

# What codebooks are calibrated with unless another text is given: dialogues and prose, free to use.
CALIBRATION_TEXT = _PACKAGE / "calibration.jsonl"


def lib_dir() -> Path:
    """Directory of the shared libraries; ``LUTRA_LIB_DIR`` overrides it (development)."""
    return Path(os.environ.get("LUTRA_LIB_DIR") or _PACKAGE / "lib")


def lib_path(name: str) -> Path:
    """Path of the shared library ``name`` ("ggml-base"). Raises LutraError when it is not built."""
    return _existing(lib_dir() / f"lib{name}.so", "LUTRA_LIB_DIR")


def tool_path(name: str) -> Path:
    """Path of the tool ``name`` ("llama-bench"). Raises LutraError when it is not built."""
    directory = Path(os.environ.get("LUTRA_BIN_DIR") or _PACKAGE / "bin")
    return _existing(directory / name, "LUTRA_BIN_DIR")


def _existing(path: Path, variable: str) -> Path:
    if not path.is_file():
        raise LutraError(f"{path}: not built; run 'pip install .' or set {variable}")
    return path
