# SPDX-License-Identifier: MIT
"""The command ``lutra``: finds the verb, turns errors into one line."""

from __future__ import annotations

import argparse
import errno
import importlib
import sys
from typing import NoReturn, Protocol

from gguf_tools.errors import LutraError
from gguf_tools.interrupts import ignore_signals, raise_signals
from lutra import __version__
from lutra.cli import streams
from lutra.runtime import crash


class Verb(Protocol):
    """What a module of this package has that is a verb."""

    EPILOG: str  # of its help: what the options cannot say, and an example

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the arguments."""

    def run(self, args: argparse.Namespace) -> int:
        """Do it; returns the exit code."""


# Only the module of the verb that runs is imported.
VERBS = {
    "convert": "make a GGUF of a type from a Hugging Face directory or a GGUF",
    "chat": "talk to a model",
    "serve": "let a browser and other programs talk to a model",
    "bench": "measure speed (llama-bench)",
    "eval": "measure quality: perplexity, KL divergence, questions",
    "compare": "the table of a model's files or types: size, quality, speed",
    "worker": "lend this machine to a model that runs on several",
    "info": "show the kernels of this machine, or what is in a file",
    "doctor": "find what makes this machine slow, or a file on it",
    "verify": "check a file and this machine's kernels",
    "export": "make a GGUF for unmodified llama.cpp from one with codebooks",
    "slice": "cut a file of two layers down to its first one",
    "card": "write the model card of GGUF files for a hub of models",
    "ls": "list the models in the hub's cache and the files here",
    "rm": "remove one of these",
    "completion": "complete verbs and options in your shell",
}

_OVERVIEW = f"""usage: lutra VERB ...

Large language models on Arm CPUs from codebook GGUF files.

{chr(10).join(f"  {verb:<12}{text}" for verb, text in VERBS.items())}

'lutra VERB --help' shows the options and an example; 'lutra --version' the version.
"""


_START = """\
Large language models on Arm CPUs from codebook GGUF files. To start:

  lutra convert ORG/MODEL --type cb4    fetch a model of the hub and convert it, here to MODEL-cb4.gguf
  lutra chat MODEL-cb4.gguf             talk to it
  lutra serve MODEL-cb4.gguf            talk to it in a browser, or from other programs
  lutra chat ORG/MODEL-GGUF             talk to one that is a GGUF already

For example (0.3 GB):  lutra convert HuggingFaceTB/SmolLM2-135M-Instruct --type cb4
From a clone:          lutra convert models/tiny-chat --type cb4

'lutra --help' shows all verbs, 'lutra ls' the models that are here.
"""


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, as all of lutra does."""

    def error(self, message: str) -> NoReturn:
        raise SystemExit(_error(f"{message}; see --help", 2))


def main(argv: list[str] | None = None) -> int:
    """Run ``lutra`` with ``argv`` and return its exit code: 0, 1 for an error, 2 for wrong usage, 130."""
    streams.prepare()
    try:
        raise_signals()  # `kill` must clean up as Ctrl-C does
        try:
            return _run(sys.argv[1:] if argv is None else argv)
        finally:
            sys.stdout.flush()
    except KeyboardInterrupt:
        ignore_signals()
        return _error("interrupted", 130)
    except LutraError as error:
        return _error(str(error), 1)
    except BrokenPipeError:  # the reader (head, less) went away
        streams.drop()
        return 1
    except OSError as error:
        streams.drop()
        name = error.filename or ("cannot write" if error.errno == errno.ENOSPC else "")
        return _error(f"{name}: {error.strerror}" if name else error.strerror or str(error), 1)
    except MemoryError:
        return _error("out of memory; close other programs or use a smaller model", 1)


def _run(argv: list[str]) -> int:
    if not argv:
        print(_START, end="")
        return 0
    if argv[0] in ("-h", "--help", "help"):
        print(_OVERVIEW, end="")
        return 0
    if argv[0] in ("-V", "--version"):
        print(f"lutra {__version__}")
        return 0
    verb = argv[0]
    if verb not in VERBS:
        return _error(f"no verb '{verb}'; choose one of {', '.join(VERBS)}", 2)
    module: Verb = importlib.import_module(f".{verb}", __package__)
    parser = _Parser(
        prog=f"lutra {verb}",
        description=VERBS[verb][0].upper() + VERBS[verb][1:] + ".",
        epilog=module.EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    module.add_arguments(parser)
    crash.arm()
    own, passed_on = _parted(argv[1:]) if hasattr(module, "PASSES_ON") else (argv[1:], [])
    return module.run(parser.parse_args(own, argparse.Namespace(passed_on=passed_on)))


def _parted(arguments: list[str]) -> tuple[list[str], list[str]]:
    """What is before and after ``--``; argparse loses the latter behind an option."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    return arguments[:end], arguments[end + 1 :]


def _error(message: str, code: int) -> int:
    try:
        print(f"lutra: error: {' '.join(message.split())}", file=sys.stderr)
    except OSError:
        streams.drop()
    return code
