# SPDX-License-Identifier: MIT
"""The families that are read without llama.cpp's converter: a module each, with its ``FAMILY``."""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

from gguf_tools.sources.family import Family

FAMILIES: list[Family] = [
    import_module(f"{__name__}.{module.name}").FAMILY for module in iter_modules(__path__)
]
BY_ARCHITECTURE: dict[str, Family] = {name: family for family in FAMILIES for name in family.architectures}
