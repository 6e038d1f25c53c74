# SPDX-License-Identifier: MIT
"""``lutra bench``: the speed of models, by llama-bench (unmodified)."""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

from gguf_tools.errors import LutraError
from gguf_tools.sources.hub import local_gguf
from lutra.cli.arguments import FORCED, force
from lutra.runtime.probe import require_loadable
from lutra.runtime.tools import pass_through
from lutra.runtime.workers import parse_workers, tool_arguments

EPILOG = """\
Every option after the files goes to llama-bench: -p -n -r -t -d -o csv|json|jsonl|md|sql ...
--rpc HOST[:PORT],... names machines where 'lutra worker' runs. --planes and --layers are those of chat.

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
    options = args.files[len(files) :]
    for name in FORCED:
        options, value = taken(options, f"--{name}")
        force(**{name: value})
    paths = [require_loadable(local_gguf(file)) for file in files]
    models = [argument for path in paths for argument in ("-m", str(path))]
    pass_through("llama-bench", models + shared(paths[0], options))
    return 0


def taken(options: list[str], name: str) -> tuple[list[str], str | None]:
    """``options`` without the one that is ours, and its value."""
    if name not in options[:-1]:
        return options, None
    at = options.index(name)
    return options[:at] + options[at + 2 :], options[at + 1]


def shared(path: Path, options: list[str]) -> list[str]:
    """llama-bench's ``options``; workers among them are asked first, and take their part of the layers."""
    rest, workers = taken(options, "--rpc")
    if workers is None:
        return options
    ours = tool_arguments(path, parse_workers(workers))
    return (ours[:2] if {"-ngl", "--n-gpu-layers"} & set(rest) else ours) + rest
