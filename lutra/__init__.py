# SPDX-License-Identifier: MIT
"""Lutra: large language models on Arm CPUs from codebook GGUF files.

    import lutra

    lutra.convert("path/to/hf-model", lutra.ConversionOptions(type="cb4"), "model-cb4.gguf")
    with lutra.Model("model-cb4.gguf") as model:
        print(model.chat("What is the capital of France?"))

What goes wrong raises ``LutraError``, one line with the cause and the next step.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from gguf_tools.errors import LutraError

if TYPE_CHECKING:
    from lutra.conversion.export import export
    from lutra.conversion.options import ConversionOptions, Target
    from lutra.conversion.pipeline import Result, convert
    from lutra.conversion.slice import slice_file
    from lutra.runtime.model import Model

__version__ = "0.1.0"

__all__ = ["ConversionOptions", "LutraError", "Model", "Result", "Target", "convert", "export", "slice_file"]

# Loaded when first asked for: `lutra --help` needs none of what they import. Type checkers do not see this:
# they would take any name for one of ours.
if not TYPE_CHECKING:
    _PLACES = {
        "ConversionOptions": ".conversion.options",
        "Model": ".runtime.model",
        "Target": ".conversion.options",
        "Result": ".conversion.pipeline",
        "convert": ".conversion.pipeline",
        "export": ".conversion.export",
        "slice_file": ".conversion.slice",
    }

    def __getattr__(name):
        if name not in _PLACES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(_PLACES[name], __name__), name)

    def __dir__():
        return [*globals(), *_PLACES]
