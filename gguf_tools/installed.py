# SPDX-License-Identifier: MIT
"""Where the build put what is not Python: the directories ``lib``, ``bin`` and ``converter``."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

_HERE = Path(__file__).parents[1]


def directory(name: str) -> Path:
    """The directory ``name`` of the package; the sources use that of the package installed beside them.

    ``LUTRA_<NAME>_DIR`` overrides it (development).
    """
    if given := os.environ.get(f"LUTRA_{name.upper()}_DIR"):
        return Path(given)
    installed = None if (_HERE / name).is_dir() else find_spec("lutra_llm")
    places = installed and installed.submodule_search_locations
    return Path(places[0] if places else _HERE) / name


def library(name: str) -> Path:
    """Path of the shared library ``name`` ("ggml-base"), which may not be there."""
    return directory("lib") / f"lib{name}.so"
