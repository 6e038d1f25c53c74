# SPDX-License-Identifier: MIT
"""``lutra verify``: can this file be right, and does this machine compute it right?"""

from __future__ import annotations

import argparse
from pathlib import Path

from gguf_tools.errors import LutraError
from gguf_tools.sources.hub import local_gguf

EPILOG = """\
Checks the header, the layout version, sizes and ranges; then known dot products with every kernel that
this CPU supports, and strips of each codebook tensor of the file against the reference kernel, bit by bit.

example:
  lutra verify model-cb4.gguf
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the verb."""
    parser.add_argument("file", metavar="FILE", type=Path, help="GGUF file")


def run(args: argparse.Namespace) -> int:
    """Print a line per check. Raises LutraError when one fails."""
    from gguf_tools.reader import GGUFFile
    from lutra.measure.conformance import checks

    failures = 0
    with GGUFFile(local_gguf(args.file)) as file:
        for what, problems in checks(file):
            print(f"{'FAIL' if problems else 'ok  '} {what}", *(f"     {p}" for p in problems), sep="\n")
            failures += bool(problems)
    if failures:
        raise LutraError(f"{args.file}: {failures} checks failed; convert or download the file again")
    return 0
