# SPDX-License-Identifier: MIT
"""Where the native libraries and the llama.cpp tools are."""

from __future__ import annotations

import os
from pathlib import Path

from gguf_tools.errors import LutraError
from gguf_tools.installed import directory, library

# What codebooks are calibrated with unless another text is given: dialogues and prose, free to use.
CALIBRATION_TEXT = Path(__file__).parents[1] / "calibration.jsonl"


def lib_dir() -> Path:
    """Directory of the shared libraries; ``LUTRA_LIB_DIR`` overrides it (development)."""
    return directory("lib")


def lib_path(name: str) -> Path:
    """Path of the shared library ``name`` ("ggml-base"). Raises LutraError when it is not built."""
    return _existing(library(name), "LUTRA_LIB_DIR")


def tool_path(name: str) -> Path:
    """Path of the tool ``name`` ("llama-bench"). Raises LutraError when it is not built."""
    return _existing(directory("bin") / name, "LUTRA_BIN_DIR")


def data_dir() -> Path:
    """Where what the user keeps is: $XDG_DATA_HOME/lutra."""
    return _home("XDG_DATA_HOME", ".local/share")


def state_dir() -> Path:
    """Where what the program remembers is: $XDG_STATE_HOME/lutra."""
    return _home("XDG_STATE_HOME", ".local/state")


def _home(variable: str, usual: str) -> Path:
    given = Path(os.environ.get(variable, ""))
    return (given if given.is_absolute() else Path(os.path.expanduser("~"), usual)) / "lutra"


def _existing(path: Path, variable: str) -> Path:
    if not path.is_file():
        raise LutraError(f"{path}: not built; run 'pip install .' or set {variable}")
    return path
