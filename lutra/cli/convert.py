# SPDX-License-Identifier: MIT
"""``lutra convert``: any model lutra can read, as a GGUF of any type, in one command."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from gguf_tools.errors import LutraError
from lutra.cli.arguments import parsed, positive
from lutra.console import mib

if TYPE_CHECKING:
    from gguf_tools.inspect import FileInfo
    from lutra.conversion.options import ConversionOptions, Target
    from lutra.conversion.pipeline import Result

EPILOG = """\
SRC is a Hugging Face directory, ORG/MODEL of its hub (fetched into the hub's cache; of GGUF files too, and
ORG/MODEL:TYPE chooses), or a GGUF of floats, Q8_0 or ternary weights.
T is cb2, cb25, cb3, cb4, cb5 or cb6 (codebooks of 2.3, 2.8, 3.3, 4.3, 5.3 and 6.3 bits per weight), f16,
bf16, or any type of llama-quantize in lower case, which then does the work. cb2_m, cb25_m, cb3_m and cb4_m
give a few small matrices more. cb5 and cb6 are cb4 with a second layer of codes.

Targets choose the type of each tensor. A first file is converted, and what the rounding of each matrix costs
in it is measured on a part of the calibration text. --target-bpw and --target-size take the types of least
loss, --max-loss (perplexity) and --max-kld (divergence from the original's predictions) the smallest file
within the loss, with --for the fastest there: pi5, graviton3, graviton4 (modelled), here. The file is then
measured on text that was kept aside: one of a size is never worse there than the best recipe that is no
larger; where a bound is overshot, types change and are converted again. A bound may ask for two planes of
activations (see --two-planes), and says whether the cache may be q8_0. All that takes two to four times as
long as a conversion; --tensor-type and the like stay in force, --dry-run prints the plan only.

The token embeddings and the output matrix get more bits: cb4 with cb2, cb25 and cb3, cb6 with cb4 and cb5;
--pure gives every matrix T. Tensors that cannot be a codebook (rows not a multiple of 64, not a
multiple of 8 rows) become Q8_0, vectors stay F32; --dry-run shows what each tensor would become.

Codebooks are calibrated: the model computes a text while they are made. --calibration replaces the text that
comes with lutra ("default") by what the model writes itself ("self"), by a plain file, or by JSON lines of
{"text": ...} and {"messages": [...]}, the latter going through the model's chat template; at most 16 thousand
tokens are used, twice as many for small models, fewer for those that would take more than 8 GB of memory
(--calibration-tokens). --imatrix alone takes the importance matrix instead; with --calibration it serves what
the calibration cannot reach.

With --tune calibration knows from the gradients of the predictions which tokens and outputs count, and takes
up to 65 thousand tokens. Then codes stay and all that is continuous follows the original model's predictions.
Half of the text to calibrate with and most of the text to tune with are written by the model; --calibration
FILE serves for both alone. That takes many times as long and much of the loss away; a GPU has time for far
more text. It needs torch, and for most of the families that lutra reads itself transformers (pip
install "lutra-llm[hf]" has both); other families cannot be tuned. Where memory is too small, those that need
no transformers are tuned in about 3 bytes per weight, more slowly.

--codebook bipolar takes no text, and seconds: tables are odd integers times scales. For types of few bits
learned ones are much better.

Checkpoints that are saved quantized (FP8, FP4, compressed-tensors, GPTQ, AWQ, BitNet) are dequantized
exactly. Matrices that are ternary, MXFP4 or few integers are taken over with the very same numbers. GGUF
files of other types than floats, Q8_0 and ternary ones are refused: what they lost stays lost.
--allow-requantize takes them.

Families that lutra does not read itself go through llama.cpp's converter (pip install "lutra-llm[hf]"), by
way of an F16 file of the whole model beside OUT.

An interrupted conversion keeps its finished tensors in .OUT.lutra-work; the same command goes on from there.

examples:
  lutra convert models/tiny-chat --type cb4
  lutra convert model-f16.gguf --type cb3 --imatrix model.imatrix --tensor-type ffn_down=cb4 -o out.gguf
  lutra convert models/tiny-chat --target-bpw 3.5 --dry-run
  lutra convert models/tiny-chat --max-loss 1%
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the verb."""
    add = parser.add_argument
    add("source", metavar="SRC", help="Hugging Face directory, ORG/MODEL of the hub, or GGUF file")
    what = parser.add_mutually_exclusive_group(required=True).add_argument
    what("--type", metavar="T", type=str.lower, help="type of the weights, e.g. cb4")
    what("--target-bpw", dest="target", metavar="BPW", type=parsed(_bpw),
        help="bits per weight of the whole: each tensor gets the type that serves it best")  # fmt: skip
    what("--target-size", dest="target", metavar="SIZE", type=parsed(_size),
        help="the same for bytes of the file, e.g. 400M or 1.5G (powers of ten), 400MiB")  # fmt: skip
    what("--max-loss", dest="target", metavar="P%", type=parsed(_loss),
        help="the smallest file whose perplexity rises by at most so much, e.g. 1%%")  # fmt: skip
    what("--max-kld", dest="target", metavar="NATS", type=parsed(_kld),
        help="the same for the KL divergence to the original's predictions, e.g. 0.02")  # fmt: skip
    add("--for", dest="board", metavar="MACHINE",
        help="with a loss, the fastest file there: pi5, graviton3, graviton4, here")  # fmt: skip
    add("-o", "--output", type=Path, metavar="OUT", help="output file (default: ./<name of SRC>-<T>.gguf)")
    add("--threads", type=positive, metavar="N", help="default: the fast physical cores")
    add("--tune", action="store_true", help="tune codebooks on the model's predictions (torch); see below")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto",
        help="what tunes (default: a GPU, if torch finds one)")  # fmt: skip
    add("--tune-tokens", type=positive, metavar="N",
        help="tokens to tune with (default: 4 million, on CPUs as long as the calibration took)")  # fmt: skip
    add("--report", type=Path, metavar="FILE", help="what became of each tensor, as JSON, with its loss")
    add("--dry-run", action="store_true", help="show types and sizes, write nothing")
    add_options(add)


def add_options(add: Callable[..., object]) -> None:
    """Declare, with an ``add_argument``, how weights are converted; ``lutra compare`` has these too."""
    add("--imatrix", type=Path, metavar="F", help="importance matrix made by llama-imatrix")
    add("--tensor-type", action="append", default=[], metavar="REGEX=TYPE",
        help="type for the tensors whose name matches; repeatable, the first match counts")  # fmt: skip
    add("--output-tensor-type", metavar="TYPE", help="type for the output matrix")
    add("--token-embedding-type", metavar="TYPE", help="type for the token embeddings")
    add("--two-planes", metavar="REGEX",
        help="codebooks whose activations get two planes of int8: nearly exact, and slower; "
        "by default attn_v and ffn_down where they are cb5 or cb6")  # fmt: skip
    add("--pure", action="store_true", help="every matrix gets T, embeddings and output too")
    add("--calibration", type=Path, metavar="FILE",
        help="text to calibrate codebooks with, or self; see below")  # fmt: skip
    add("--calibration-tokens", type=positive, metavar="N",
        help="tokens of it, at most 65536 (default: 16384, or all of these with --tune; fewer if memory is "
        "short); more take longer and lose less")  # fmt: skip
    add("--codebook", choices=("learned", "bipolar"), default="learned",
        help="bipolar: tables are odd integers, nothing is learned; see below")  # fmt: skip
    add("--no-calibration", action="store_true", help="no importance of any kind; many times faster")
    add("--allow-requantize", action="store_true",
        help="take a GGUF that is quantized: its loss stays, and that of T comes on top")  # fmt: skip
    add("--cluster", metavar="ADDRESS",
        help="Dask scheduler (tcp://host:8786) whose workers encode the tensors, --threads each")  # fmt: skip
    add("--seed", type=int, default=0, metavar="N", help="seed for learning codebooks (default: 0)")


def run(args: argparse.Namespace) -> int:
    """Convert, or show what would be made."""
    from lutra.conversion.options import source_name
    from lutra.conversion.pipeline import convert, preview

    started = time.monotonic()
    options = options_of(args, args.type, args.target)
    output = args.output or Path(f"{source_name(args.source)}-{args.target or args.type}.gguf")
    if args.dry_run:
        print(preview(args.source, options, output).rstrip("\n"))
        return 0
    if args.report and not args.report.absolute().parent.is_dir():
        raise LutraError(f"{args.report.parent}: no such directory; create it or choose another --report")
    result = convert(args.source, options, output)
    if args.report:
        args.report.write_text(json.dumps(result.report(), indent=1))
    print(summary(result, time.monotonic() - started), file=sys.stderr)
    return 0


def options_of(args: argparse.Namespace, kind: str | None, target: Target | None = None) -> ConversionOptions:
    """What the arguments ask for, for one type or target. Raises LutraError."""
    from lutra.conversion.options import ConversionOptions
    from lutra.runtime.threads import default_threads

    return ConversionOptions(
        type=kind,
        target=target,
        board=getattr(args, "board", None),
        pure=args.pure,
        tensor_types=tuple(args.tensor_type),
        output_type=args.output_tensor_type,
        embedding_type=args.token_embedding_type,
        two_planes=args.two_planes,
        imatrix=args.imatrix,
        calibration=args.calibration,
        calibration_tokens=args.calibration_tokens,
        calibrate=not args.no_calibration,
        codebook=args.codebook,
        tune=getattr(args, "tune", False),
        allow_requantize=args.allow_requantize,
        device=getattr(args, "device", "auto"),
        tune_tokens=getattr(args, "tune_tokens", None),
        seed=args.seed,
        threads=args.threads or default_threads(),
        cluster=args.cluster,
    )


def summary(made: Result | FileInfo, seconds: float) -> str:
    """The line at the end: file, size, bits per weight, time."""
    return f"{made.path}: {mib(made.bytes)}, {made.bpw:.2f} bits per weight, {seconds:.1f} s"


def _bpw(text: str) -> Target:
    from lutra.conversion.options import Target

    return Target.parse_bpw(text)


def _size(text: str) -> Target:
    from lutra.conversion.options import Target

    return Target.parse_size(text)


def _loss(text: str) -> Target:
    from lutra.conversion.options import Target

    return Target.parse_loss(text)


def _kld(text: str) -> Target:
    from lutra.conversion.options import Target

    return Target.parse_kld(text)
