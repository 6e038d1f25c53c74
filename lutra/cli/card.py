# SPDX-License-Identifier: MIT
"""``lutra card``: the README.md that GGUF files need on a hub of models."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from gguf_tools.errors import LutraError
from gguf_tools.sources.hub import local_gguf
from lutra.cli.arguments import repository
from lutra.console import warn

EPILOG = """\
The card says what the files are, how they were made and how they are used, and tells the hub the licence,
the languages and the model they come from, as far as the files know it. --compare adds what was measured:
give it the output of 'lutra compare --json'.

examples:
  lutra card model-cb4.gguf model-cb3.gguf --repo me/model-GGUF -o README.md
  lutra card model-cb4.gguf --base-model org/model --compare results.json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the verb."""
    add = parser.add_argument
    add("files", nargs="+", metavar="FILE", help="GGUF files of one model, or names of the hub")
    add("--base-model", type=repository, metavar="ORG/MODEL", help="what they were made from")
    add("--repo", type=repository, metavar="ORG/MODEL", help="where they will be, for the commands")
    add("--compare", type=Path, metavar="JSON", help="results of 'lutra compare --json'")
    add("-o", "--output", type=Path, metavar="README.md", help="a new file (default: standard output)")


def run(args: argparse.Namespace) -> int:
    """Print the card or write it."""
    from lutra.measure.model_card import model_card

    compared = _results(args.compare) if args.compare else None
    if args.output and args.output.exists():
        raise LutraError(f"{args.output}: is there already; remove it or choose another name with -o")
    files = [local_gguf(file) for file in args.files]
    card = model_card(files, base_model=args.base_model, repository=args.repo, compared=compared)
    if "base_model:" not in card:
        warn("the files do not say which model of the hub they come from; --base-model ORG/MODEL does")
    if "license:" not in card:
        warn("the files do not say under which licence they are; add it to the card")
    if args.output:
        args.output.write_text(card)
    else:
        print(card, end="")
    return 0


def _results(path: Path) -> dict[str, Any]:
    try:
        results = json.loads(path.read_bytes())
    except OSError as error:
        raise LutraError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        results = None
    if not isinstance(results, dict):
        raise LutraError(f"{path}: is not what 'lutra compare --json' prints; make it again")
    return results
