"""Argument types that several verbs share."""

from __future__ import annotations

import argparse


def positive(text: str) -> int:
    """An argument that must be a positive whole number."""
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"'{text}' is not a positive number")
    return int(text)
