# SPDX-License-Identifier: MIT
"""``lutra ls``: the models in the hub's cache, and the GGUF files of the current directory."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from gguf_tools.errors import LutraError
from lutra.console import mib, table

EPILOG = """\
A name is what 'lutra convert', 'lutra chat' and 'lutra rm' take. The type is the one most weights of a file
have. "unfinished" is a download that was stopped: the command that began it goes on, 'lutra rm' removes it.

--json prints a list of: name, type, bytes.

examples:
  lutra ls
  lutra ls --json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the verb."""
    parser.add_argument("--json", action="store_true", help="print as JSON")


def run(args: argparse.Namespace) -> int:
    """Print a line per model."""
    models = [*_cached(), *_here()]
    if args.json:
        print(json.dumps([dict(zip(("name", "type", "bytes"), model, strict=True)) for model in models]))
    elif models:
        rows = [(name, kind, mib(nbytes)) for name, kind, nbytes in models]
        print(table([("name", "type", "size"), *rows], right=(2,)))
    else:
        print("no models in the cache or here; fetch and convert one: lutra convert ORG/MODEL --type cb4")
    return 0


def _cached() -> Iterator[tuple[str, str, int]]:
    from gguf_tools.sources.hub_cache import kept

    for model in kept():
        kind = _type(model.files[0]) if model.files else "safetensors" if model.whole else "unfinished"
        yield model.name, kind, model.bytes


def _here() -> Iterator[tuple[str, str, int]]:
    for path in sorted(Path().glob("*.gguf")):
        if path.is_file():
            yield str(path), _type(path), path.stat().st_size


def _type(path: Path) -> str:
    """The type of most weights in a GGUF file."""
    from gguf_tools.inspect import read_info
    from gguf_tools.reader import type_name

    weights: Counter[str] = Counter()
    try:
        for tensor in read_info(path).tensors:
            weights[type_name(tensor.type)] += tensor.weights
    except (LutraError, OSError):
        return "damaged"
    return max(weights, key=weights.__getitem__, default="no weights")
