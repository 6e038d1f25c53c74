"""Upstream's file types: llama-quantize makes them, lutra feeds it and keeps the directory clean."""

from __future__ import annotations

import argparse
import contextlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from gguf_tools.errors import LutraError
from lutra.cli.convert import OPTIONS_KEY, OWN_TYPES, options, same_options, write
from lutra.console import progress
from lutra.runtime.tools import run_tool

if TYPE_CHECKING:
    from gguf_tools.sources.open import Source

LONGEST_TEXT = 127  # bytes of a text that llama-quantize takes for a key


def quantize_with_llama(source: Source, args: argparse.Namespace) -> None:
    """Run llama-quantize on a GGUF source, or on a temporary GGUF in the source's own precision."""
    types = llama_file_types()
    if args.type not in types:
        choice = dict.fromkeys((*OWN_TYPES, *types))
        raise LutraError(f"'{args.type}' is no type; choose one of {', '.join(choice)}")
    # llama-quantize copies the key of the source's alignment but always aligns to 32.
    words = [*same_options(args), "--override-kv", "general.alignment=int:32"]
    record = shlex.join(options(args))
    if len(record.encode()) <= LONGEST_TEXT:
        words += ["--override-kv", f"{OPTIONS_KEY}=str:{record}"]
    words += ["--imatrix", str(args.imatrix)] if args.imatrix else []
    words += ["--allow-requantize"] if any(tensor.dtype == "Q8_0" for tensor in source.tensors) else []
    with contextlib.ExitStack() as stack:
        gguf = Path(args.source)
        if not gguf.is_file():
            gguf = stack.enter_context(temporary(args.output, "source"))
            write_source(source, gguf, args)
        if args.dry_run:
            print(run_tool("llama-quantize", ["--dry-run", *words, str(gguf), args.type]), end="")
            return
        result = stack.enter_context(temporary(args.output, "result"))
        bar = stack.enter_context(progress(len(source.tensors), "tensor"))
        run_tool(
            "llama-quantize",
            [*words, str(gguf), str(result), args.type, str(args.threads)],
            lambda text: bar.update(len(re.findall(r"^\[ *\d+/ *\d+\]", text, re.MULTILINE))),
        )
        result.replace(args.output)


def llama_file_types() -> list[str]:
    """The types that llama-quantize of this build knows, in lower case."""
    text = run_tool("llama-quantize", ["--help"], ok=1)
    names = re.findall(r"^ *\d+ +or +(\w+) +:", text, re.MULTILINE)
    return [name.lower() for name in names]


def write_source(source: Source, output: Path, args: argparse.Namespace) -> None:
    """A GGUF of the source with no precision lost."""
    from gguf_tools.sources.tensors import keeps_f32
    from lutra.conversion.plan import Rules, plan

    stored = {tensor.dtype for tensor in source.tensors if not keeps_f32(tensor.name, tensor.shape)}
    base = "f32" if "F32" in stored else "bf16" if "BF16" in stored else "f16"
    own = argparse.Namespace(**vars(args) | {"type": base, "imatrix": None})
    write(output, source, plan(source.tensors, Rules(base)), own, {})


@contextlib.contextmanager
def temporary(output: Path, role: str) -> Iterator[Path]:
    """A name beside ``output`` for a file that is gone afterwards, whatever happens."""
    path = output.with_name(f".{output.name}.{role}.gguf")
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)
