# SPDX-License-Identifier: MIT
"""Argument types that several verbs share."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from typing import TypeVar

from gguf_tools.errors import LutraError
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


def add_rpc(add: Callable[..., object]) -> None:
    """Declare, with an ``add_argument``, the other machines that a model runs on."""
    what = "machines where 'lutra worker' runs, which compute a part of the layers"
    add("--rpc", type=parsed(parse_workers), default=[], metavar="HOST[:PORT],...", help=what)
