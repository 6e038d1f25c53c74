# SPDX-License-Identifier: MIT
"""``lutra completion``: a script for the shell that completes verbs, options and files."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path

EPILOG = """\
Your shell reads the script when it starts:

  bash   lutra completion bash > ~/.local/share/bash-completion/completions/lutra
  zsh    lutra completion zsh > "${fpath[1]}/_lutra"
  fish   lutra completion fish > ~/.config/fish/completions/lutra.fish

example:
  lutra completion bash
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the verb."""
    parser.add_argument("shell", choices=("bash", "zsh", "fish"), help="the shell to write it for")


def run(args: argparse.Namespace) -> int:
    """Print the script."""
    import shtab

    print(shtab.complete(_parser(), args.shell))
    return 0


def _parser() -> argparse.ArgumentParser:
    """All verbs as one parser; arguments that are paths complete to files."""
    import shtab

    from lutra.cli.main import VERBS

    whole = argparse.ArgumentParser(prog="lutra")
    whole.add_argument("--version", action="store_true", help="show the version")
    verbs = whole.add_subparsers()
    for verb, text in VERBS.items():
        parser = verbs.add_parser(verb, help=text, description=text)
        importlib.import_module(f".{verb}", __package__).add_arguments(parser)
        for action in parser._actions:
            if action.type is Path or action.metavar in ("SRC", "FILE", "NAME"):
                action.complete = shtab.FILE  # type: ignore[attr-defined]
    return whole
