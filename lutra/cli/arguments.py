# SPDX-License-Identifier: MIT
"""Argument types that several verbs share."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable
from typing import TypeVar

from gguf_tools.errors import LutraError
from lutra.runtime.context import CACHE_TYPES
from lutra.runtime.workers import parse_workers

T = TypeVar("T")


def positive(text: str) -> int:
    """An argument that must be a positive whole number."""
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"'{text}' is not a positive number")
    return int(text)


def repository(text: str) -> str:
    """An argument that is ORG/MODEL of a hub."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", text):
        raise argparse.ArgumentTypeError(f"'{text}' is no ORG/MODEL")
    return text


def parsed(parse: Callable[[str], T]) -> Callable[[str], T]:
    """An argument type from a function that raises LutraError."""

    def argument(text: str) -> T:
        try:
            return parse(text)
        except LutraError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return argument


def add_cache_types(add: Callable[..., object]) -> None:
    """Declare, with an ``add_argument``, the types of what a context keeps: --ctk and --ctv."""
    for option, what in (("--ctk", "keys"), ("--ctv", "values")):
        add(option, choices=CACHE_TYPES, default="f16", metavar="T", help=f"type of the context's {what}: "
            + (", ".join(CACHE_TYPES) if option == "--ctk" else "as --ctk") + " (default: f16)")  # fmt: skip


# How a model is loaded, whatever its file says: options, and in capitals what they put into the environment.
FORCED = {
    "planes": "of int8 for activations: 2 rounds 250 times less and is slower (default: as the file says)",
    "layers": "of codes: 1 leaves out the second one of cb5 and cb6 (default: both)",
}


def add_forced(add: Callable[..., object]) -> None:
    """Declare, with an ``add_argument``, the options of ``FORCED``."""
    for name, what in FORCED.items():
        add(f"--{name}", choices=("1", "2"), help=f"{name} {what}")


def force(**values: str | None) -> None:
    """Let models that are loaded from now on, here and by child processes, have these, where any are given.

    Raises LutraError for another number than 1 and 2.
    """
    for name, value in values.items():
        if value not in (None, "1", "2"):
            raise LutraError(f"--{name} {value}: there are 1 or 2")
        if value:
            os.environ[f"LUTRA_{name.upper()}"] = value


def add_rpc(add: Callable[..., object]) -> None:
    """Declare, with an ``add_argument``, the other machines that a model runs on."""
    what = "machines where 'lutra worker' runs, which compute a part of the layers"
    add("--rpc", type=parsed(parse_workers), default=[], metavar="HOST[:PORT],...", help=what)
