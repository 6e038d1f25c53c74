# SPDX-License-Identifier: MIT
"""``lutra slice``: a file of two layers cut down to its first one."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from lutra.cli.convert import summary

EPILOG = """\
cb5 and cb6 are cb4 and a second layer of codes, which is left out here: no original, no calibration, at the
speed of the disk. Tensors that get more bits in a file of type T (the embeddings and the output) keep both
layers; --pure cuts them too. Without making a file, 'lutra chat FILE --layers 1' reads first layers only.
Of a split file give the first part; the output is one file.

examples:
  lutra slice model-cb5.gguf --type cb4
  lutra slice org/model-GGUF:cb6 --type cb4 --pure -o model-cb4.gguf
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the verb."""
    add = parser.add_argument
    add("file", metavar="FILE", type=Path, help="GGUF file, or ORG/MODEL[:TYPE] of the hub")
    add("--type", metavar="T", type=str.lower, default="cb4", help="what is left: cb4 (default)")
    add("--pure", action="store_true", help="no tensor keeps two layers")
    add("-o", "--output", type=Path, metavar="OUT", help="output file (default: ./<name of FILE>-<T>.gguf)")


def run(args: argparse.Namespace) -> int:
    """Write the file and say what it is."""
    from lutra.conversion.slice import slice_file

    started = time.monotonic()
    info = slice_file(args.file, args.output, type=args.type, pure=args.pure)
    print(summary(info, time.monotonic() - started), file=sys.stderr)
    return 0
