"""Argument types that several verbs share."""

from __future__ import annotations

import argparse
import math
import re
from dataclasses import dataclass

_UNITS = {"K": 10**3, "M": 10**6, "G": 10**9, "KI": 2**10, "MI": 2**20, "GI": 2**30}


def positive(text: str) -> int:
    """An argument that must be a positive whole number."""
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"'{text}' is not a positive number")
    return int(text)


@dataclass(frozen=True)
class Target:
    """A size to meet, ``text`` as it was given: bits per weight of all tensors, or bytes of the file."""

    text: str
    bpw: float | None = None
    nbytes: int | None = None

    @classmethod
    def parse_bpw(cls, text: str) -> Target:
        """An argument such as 3.0."""
        try:
            bpw = float(text)
        except ValueError:
            bpw = 0.0
        if not 0.0 < bpw < math.inf:
            raise argparse.ArgumentTypeError(f"'{text}' is no number of bits per weight, e.g. 3.0")
        return cls(text, bpw=bpw)

    @classmethod
    def parse_size(cls, text: str) -> Target:
        """An argument such as 400M or 1.5G, powers of ten, or 400MiB, powers of two."""
        found = re.fullmatch(r"(\d+\.?\d*|\.\d+)([KMG]I?)B?", text.upper())
        if not found or not (nbytes := int(float(found[1]) * _UNITS[found[2]])):
            raise argparse.ArgumentTypeError(f"'{text}' is no size, e.g. 400M, 1.5G or 400MiB")
        return cls(text, nbytes=nbytes)

    @property
    def option(self) -> list[str]:
        """The words on the command line."""
        return ["--target-bpw" if self.bpw else "--target-size", self.text]

    def __str__(self) -> str:
        """For the name of a file."""
        return f"{self.text}bpw" if self.bpw else self.text
