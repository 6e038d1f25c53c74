# SPDX-License-Identifier: MIT
"""``lutra eval``: the quality of a model, by llama-perplexity (unmodified) and by exact answers."""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gguf import GGMLQuantizationType

from gguf_tools.errors import LutraError
from gguf_tools.inspect import read_info
from gguf_tools.sources.hub import local_gguf
from lutra.cli.arguments import add_forced, force, positive
from lutra.console import figure
from lutra.runtime.threads import default_threads

if TYPE_CHECKING:
    from lutra.measure.perplexity import Text

EPILOG = """\
With --base, the KL divergence to that model's predictions and how often both prefer the same token;
the base's predictions go to a temporary file ($TMPDIR), vocabulary x 1 byte per token of text.
Q.jsonl has one {"question": ..., "answer": ...} per line; an answer counts when it is exactly equal.

--activations prints what it costs, as KL divergence, to hold the inputs of matrices (of qkv, o, gate-up,
down, the output, and of all together) in formats of fewer bits, and keys and values in other types. The base
is the model with its weights as float32, a temporary file ($TMPDIR) of 4 bytes per weight. By default of 4
chunks: the model is computed about 200 times.

--json prints: ppl, ppl_error; kld_mean, kld_error, same_top (%); tokens (evaluated); exact, total.
With --activations: ppl, tokens; activations and cache, lists of format, bits, kld, kld_error, ppl.

examples:
  lutra eval model-cb4.gguf --text wikitext-2.test.raw --base model-f16.gguf
  lutra eval tiny-chat-cb4.gguf --questions questions.jsonl --json
  lutra eval model-cb4.gguf --text wikitext-2.test.raw --activations
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the verb."""
    add = parser.add_argument
    add("file", metavar="FILE", type=Path, help="GGUF file to measure, or ORG/MODEL[:TYPE] of the hub")
    add_options(add)
    what = "what rounding the activations and the cache costs, with --text"
    add("--activations", action="store_true", help=what)
    add_forced(add)
    add("--threads", type=positive, metavar="N", help="default: the fast physical cores")
    add("--json", action="store_true", help="print the results as JSON")


def add_options(add: Callable[..., object]) -> None:
    """Declare, with an ``add_argument``, what to measure a model with; ``lutra compare`` has these too."""
    add("--text", type=Path, metavar="T", help="text file to predict")
    add("--base", type=Path, metavar="F16.gguf", help="model whose predictions are the truth, with --text")
    add("--ctx", type=positive, default=512, metavar="N", help="tokens per chunk (default: 512)")
    add("--chunks", type=positive, metavar="N", help="chunks of the text at most (default: all)")
    add("--questions", type=Path, metavar="Q.jsonl", help="questions with exact answers")


def run(args: argparse.Namespace) -> int:
    """Measure what was asked for and print it."""
    from lutra.measure.perplexity import measure_text
    from lutra.measure.questions import ask, read_questions

    force(planes=args.planes, layers=args.layers)
    if args.activations:
        return _activations(args)
    if not args.text and not args.questions:
        raise LutraError("eval needs --text or --questions; see 'lutra eval --help'")
    text = text_of(args)
    file = local_gguf(args.file)
    threads = args.threads or default_threads()
    results: dict[str, Any] = {}
    if text:
        results |= measure_text(file, text, args.base and local_gguf(args.base), threads)
    if args.questions:
        results |= ask(file, read_questions(args.questions), threads)
    print(json.dumps(results) if args.json else describe(results))
    return 0


def _activations(args: argparse.Namespace) -> int:
    """Print what rounding costs the model with its weights as float32, which are in a file meanwhile."""
    from lutra.conversion.export import export
    from lutra.measure.activations import describe, measure_activations

    if args.base or args.questions or args.planes or args.layers:
        other = "--base, --questions, --planes and --layers"
        raise LutraError(f"--activations compares the model with itself; leave {other} out")
    if not (text := text_of(args)):
        raise LutraError("--activations needs --text, a text to predict")
    threads = args.threads or default_threads()
    with tempfile.TemporaryDirectory(prefix="lutra-eval-") as directory:
        model = local_gguf(args.file)
        if any(t.type != GGMLQuantizationType.F32 for t in read_info(model).tensors):
            model = Path(directory) / "f32.gguf"
            export(args.file, model, type="f32", pure=True, threads=threads)
        results = measure_activations(model, text, threads, Path(directory))
    print(json.dumps(results) if args.json else describe(results))
    return 0


def text_of(args: argparse.Namespace) -> Text | None:
    """The text that was asked for. Raises LutraError when there is nothing to predict."""
    from lutra.measure.perplexity import Text

    if args.text:
        return Text(args.text, args.ctx, args.chunks)
    if args.base:
        raise LutraError("--base needs --text, the text on which the two models are compared")
    return None


def describe(results: dict[str, Any]) -> str:
    """The results for people."""
    lines = []
    if "ppl" in results:
        ppl, error = figure(results["ppl"], 4), figure(results["ppl_error"], 4)
        lines.append(f"perplexity      {ppl} ± {error} over {{tokens}} tokens")
    if "kld_mean" in results:
        lines.append("KL divergence   {kld_mean:.6f} ± {kld_error:.6f}")
        lines.append("same top token  {same_top:.2f} %")
    if "exact" in results:
        lines.append(f"exact answers   {{exact}} of {{total}} ({results['exact'] / results['total']:.1%})")
    return "\n".join(lines).format(**results)
