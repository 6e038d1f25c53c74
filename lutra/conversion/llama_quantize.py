# SPDX-License-Identifier: MIT
"""Upstream's file types: llama-quantize makes them from a GGUF of floats."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from pathlib import Path

from lutra.console import progress
from lutra.runtime.tools import run_tool

LONGEST_TEXT = 127  # bytes of a text that llama-quantize takes for a key


@functools.cache
def llama_file_types() -> tuple[str, ...]:
    """The types that llama-quantize of this build knows, in lower case."""
    text = run_tool("llama-quantize", ["--help"], ok=1)
    names = re.findall(r"^ *\d+ +or +(\w+) +:", text, re.MULTILINE)
    return tuple(name.lower() for name in names)


def arguments(
    words: Sequence[str], imatrix: Path | None, keys: dict[str, str], requantize: bool
) -> list[str]:
    """Options of llama-quantize: ``words`` as given, and keys that the file gets."""
    # llama-quantize copies the key of the source's alignment but always aligns to 32.
    words = [*words, "--override-kv", "general.alignment=int:32"]
    for key, text in keys.items():
        if len(text.encode()) <= LONGEST_TEXT:
            words += ["--override-kv", f"{key}=str:{text}"]
    words += ["--imatrix", str(imatrix)] if imatrix else []
    return words + (["--allow-requantize"] if requantize else [])


def preview(gguf: Path, kind: str, words: Sequence[str]) -> str:
    """What llama-quantize says it would make of ``gguf``."""
    return run_tool("llama-quantize", ["--dry-run", *words, str(gguf), kind])


def quantize(gguf: Path, output: Path, kind: str, words: Sequence[str], threads: int, tensors: int) -> None:
    """Make ``output``, of type ``kind``, from ``gguf`` of ``tensors`` tensors. Raises LutraError."""
    with progress(tensors, "tensor") as bar:
        run_tool(
            "llama-quantize",
            [*words, str(gguf), str(output), kind, str(threads)],
            lambda text: bar.update(len(re.findall(r"^\[ *\d+/ *\d+\]", text, re.MULTILINE))),
        )
