# SPDX-License-Identifier: MIT
"""``lutra export``: a file with codebooks as one that any llama.cpp loads."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from lutra.cli.arguments import positive
from lutra.cli.convert import summary
from lutra.console import warn

EPILOG = """\
Codebooks become T: f16, q8_0 (half the size; noise far below that of codebooks), bf16, or f32, which holds
them exactly. The weights are those of FILE: the model becomes no better than its codebooks. Tensors of
llama.cpp's own types stay as they are; --pure gives every matrix T. Of a split file give the first part; the
output is one file.

examples:
  lutra export model-cb4.gguf --type q8_0
  lutra export org/model-GGUF:cb3 --type f16 -o model-for-llama-cpp.gguf
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the verb."""
    add = parser.add_argument
    add("file", metavar="FILE", type=Path, help="GGUF file, or ORG/MODEL[:TYPE] of the hub")
    add("--type", metavar="T", type=str.lower, default="f16", help="f16 (default), q8_0, bf16 or f32")
    add("--pure", action="store_true", help="every matrix gets T, those of llama.cpp's types too")
    add("-o", "--output", type=Path, metavar="OUT", help="output file (default: ./<name of FILE>-<T>.gguf)")
    add("--threads", type=positive, metavar="N", help="default: the fast physical cores")


def run(args: argparse.Namespace) -> int:
    """Write the file and say what it is."""
    from lutra.conversion.export import export

    started = time.monotonic()
    info = export(args.file, args.output, type=args.type, pure=args.pure, threads=args.threads)
    print(summary(info, time.monotonic() - started), file=sys.stderr)
    if "bitnet.hidden_activation" in info.metadata:
        warn(f"{info.path}: its activation is not SiLU; a llama.cpp without Lutra computes it wrongly")
    return 0
