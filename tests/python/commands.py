# SPDX-License-Identifier: MIT
"""Command lines in documents, and whether the programs would understand them."""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib
import io
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from cli_runner import ROOT

from lutra.cli.main import VERBS

SEPARATORS = {"&&", "||", "|", ";"}


def in_blocks(text: str) -> Iterator[list[str]]:
    """The words of each command in a document's code blocks, of those that are ours."""
    fenced = "\n".join(re.findall(r"^```(?:sh)?\n(.*?)^```", text, re.MULTILINE | re.DOTALL))
    indented = "\n".join(re.findall(r"(?:^|\n\n) {4}(\S.*(?:\n {4}.*)*)", text))
    for line in f"{fenced}\n{indented}".replace("\\\n", " ").splitlines():
        if re.match(r"\s*(\$ )?(\w+=\S+ )*(\S*/)?(lutra|scripts/[\w.]+)( |$)", line):
            yield from ours(line.strip().removeprefix("$ "))


def inline(text: str) -> list[list[str]]:
    """The words of each command in the running text, which may be a part of one."""
    return [shlex.split(code) for code in re.findall(r"`((?:lutra|scripts/[\w.]+) [^`]+)`", text)]


def ours(line: str) -> Iterator[list[str]]:
    """The commands of a line of shell that run something of the repository."""
    words = shlex.shlex(line, posix=True, punctuation_chars=True)
    words.whitespace_split = True
    command: list[str] = []
    for word in [*words, ";"]:
        if word not in SEPARATORS:
            command.append(word)
            continue
        while command and "=" in command[0]:
            del command[0]
        if command and (Path(command[0]).name == "lutra" or command[0].startswith("scripts/")):
            yield command[: command.index(">")] if ">" in command else command
        command = []


def problem(words: list[str], whole: bool = True) -> str | None:
    """What is wrong with a command; of one that is not ``whole``, only the options count."""
    program, *rest = words[: words.index("--")] if "--" in words else words  # behind it: of another program
    options = {word.split("=")[0] for word in rest if word.startswith("-") and word != "-"}
    if Path(program).name != "lutra":
        if not (ROOT / program).is_file():
            return f"no file {program}"
        unknown = {option for option in options if option not in script_help(program)} if options else set()
        return f"{program} does not know {', '.join(unknown)}" if unknown else None
    if not rest or rest[0].startswith("-"):
        return None if options <= {"--help", "--version"} else f"lutra does not know {options}"
    if rest[0] not in VERBS:
        return f"no verb {rest[0]}"
    if rest[0] == "bench" or "--help" in rest:  # llama-bench's options
        return None
    parser = verb_parser(rest[0])
    if not whole:
        unknown = options - parser._option_string_actions.keys()
        return f"lutra {rest[0]} does not know {', '.join(unknown)}" if unknown else None
    with contextlib.redirect_stderr(io.StringIO()) as said, contextlib.suppress(SystemExit):
        parser.parse_args(rest[1:])
        return None
    return said.getvalue().splitlines()[-1]


@functools.cache
def verb_parser(verb: str) -> argparse.ArgumentParser:
    """What ``lutra VERB`` parses its arguments with."""
    parser = argparse.ArgumentParser(prog=f"lutra {verb}", allow_abbrev=False)
    importlib.import_module(f"lutra.cli.{verb}").add_arguments(parser)
    return parser


@functools.cache
def script_help(script: str, *subcommand: str) -> str:
    """What ``SCRIPT --help`` prints, with its subcommands' where it has some."""
    command = [sys.executable, str(ROOT / script), *subcommand, "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    return done.stdout
