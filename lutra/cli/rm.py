# SPDX-License-Identifier: MIT
"""``lutra rm``: remove a model from the hub's cache, or a GGUF file."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from gguf_tools.errors import LutraError
from lutra.console import mib

EPILOG = """\
NAME is one that 'lutra ls' shows, or a path of a GGUF file. On a terminal it asks first.

examples:
  lutra rm org/model
  lutra rm org/model-GGUF:q4_k_m --yes
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the verb."""
    parser.add_argument("name", metavar="NAME", help="ORG/MODEL[:TYPE] in the cache, or a GGUF file")
    parser.add_argument("-y", "--yes", action="store_true", help="do not ask")


def run(args: argparse.Namespace) -> int:
    """Remove it. Raises LutraError when it is not there, and without a terminal or ``--yes``."""
    from gguf_tools.sources.hub_cache import kept, remove

    path = Path(args.name)
    if path.is_file():
        if path.suffix != ".gguf":
            raise LutraError(f"{path}: is no GGUF file; lutra rm removes only these")
        if _agreed(args, path.stat().st_size):
            path.unlink()
        return 0
    models = [m for m in kept() if f"{m.name}:".startswith(f"{_lower_type(args.name)}:")]
    if not models:
        raise LutraError(f"{path}: neither a GGUF file nor a model in the hub's cache; 'lutra ls' lists them")
    if _agreed(args, sum(model.bytes for model in models)):
        for model in models:
            remove(model)
    return 0


def _lower_type(name: str) -> str:
    model, colon, kind = name.partition(":")
    return model + colon + kind.lower()


def _agreed(args: argparse.Namespace, nbytes: int) -> bool:
    if args.yes:
        return True
    if not sys.stdin.isatty():
        raise LutraError(f"{args.name}: {mib(nbytes)}; add --yes to remove it without being asked")
    try:
        return input(f"remove {args.name}, {mib(nbytes)}? [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False
