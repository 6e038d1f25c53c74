# SPDX-License-Identifier: MIT
"""``lutra bench``: the speed of models, by llama-bench (unmodified)."""

from __future__ import annotations

import argparse
import itertools

from gguf_tools.errors import LutraError
from gguf_tools.sources.hub import local_gguf
from lutra.runtime.probe import require_loadable
from lutra.runtime.tools import pass_through

EPILOG = """\
Every option after the files goes to llama-bench: -p -n -r -t -d -o csv|json|jsonl|md|sql ...

example:
  lutra bench model-cb4.gguf model-f16.gguf -t 4 -p 512 -n 128 -o json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the verb."""
    parser.usage = "lutra bench FILE... [llama-bench options]"
    parser.add_argument(
        "files", nargs=argparse.REMAINDER, metavar="FILE", help="GGUF files or names, then options"
    )


def run(args: argparse.Namespace) -> int:
    """Run llama-bench with ``-m`` for each leading argument that is not an option."""
    files = list(itertools.takewhile(lambda argument: not argument.startswith("-"), args.files))
    if not files:
        raise LutraError("bench needs a GGUF file; see 'lutra bench --help'")
    paths = [require_loadable(local_gguf(file)) for file in files]
    models = [argument for path in paths for argument in ("-m", str(path))]
    pass_through("llama-bench", models + args.files[len(files) :])
    return 0
