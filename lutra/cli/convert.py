"""``lutra convert``: any model lutra can read, as a GGUF of any type, in one command."""

from __future__ import annotations

import argparse
import json
import re
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from math import isnan, log10, nan
from pathlib import Path
from typing import TYPE_CHECKING

from gguf_tools.errors import LutraError
from lutra import __version__
from lutra.cli.arguments import Target, positive
from lutra.console import mib, progress, warn
from lutra.runtime.paths import CALIBRATION_TEXT
from lutra.runtime.threads import default_threads

if TYPE_CHECKING:
    import numpy as np
    from gguf.gguf_writer import GGUFValue
    from numpy.typing import NDArray

    from gguf_tools.sources.open import Source
    from lutra.conversion.jobs import Jobs
    from lutra.conversion.plan import Planned
    from lutra.conversion.workdir import WorkDirectory

    Importance = Mapping[str, NDArray[np.float32]]  # by tensor name: (k,), or (experts, k)

MIXES = ("cb2_m", "cb3_m", "cb4_m")
OWN_TYPES = ("f32", "f16", "bf16", "cb2", "cb3", "cb4", *MIXES)
FILE_TYPES = {"f32": 0, "f16": 1, "bf16": 32, "q5_k": 17, "q6_k": 18, "q8_0": 7,
              "cb2": 402, "cb3": 403, "cb4": 404}  # general.file_type  # fmt: skip
OPTIONS_KEY = "lutra.convert.options"
DEFAULT = Path("default")  # as an argument of --calibration
QUANTIZATION_VERSION = 2  # of ggml's own block types

EPILOG = """\
SRC is a Hugging Face directory, a Hugging Face id (user/model), or a GGUF of F32, F16, BF16 or Q8_0.
T is cb2, cb3 or cb4 (codebooks of 2.3, 3.3 and 4.3 bits per weight), f16, bf16, or any type of
llama-quantize in lower case, which then does the work. cb2_m, cb3_m and cb4_m give a few small matrices more.

--target-bpw and --target-size choose the type of each tensor: noise in one after the other shows, on a part
of the calibration text, what errors in it cost, and the types that cost least within the target are taken.
That takes a minute, or a few; --tensor-type and the like stay in force, --dry-run prints the plan only.

The token embeddings and the output matrix get more bits: cb4 with cb2 and cb3, q6_k with cb4 if their rows
allow it; --pure gives every matrix T. Tensors that cannot be a codebook (rows not a multiple of 64, not a
multiple of 8 rows) become Q8_0, vectors stay F32; --dry-run shows what each tensor would become.

Codebooks are calibrated: the model computes a text while they are made. --calibration replaces the text that
comes with lutra ("default") by a plain one, or by JSON lines of {"text": ...} and {"messages": [...]}, the
latter going through the model's chat template; at most 16 thousand tokens are used, twice as many for small
models, fewer for those that would take more than 8 GB of memory. --imatrix alone takes the importance matrix
instead; with --calibration it serves what the calibration cannot reach.

With --tune (Llama and Qwen2 families; pip install torch) codes stay as calibrated and all that is
continuous follows the original model's predictions for more of the text; this takes longer than calibrating.

An interrupted conversion keeps its finished tensors in .OUT.lutra-work; the same command goes on from there.

examples:
  lutra convert models/tiny-chat --type cb4
  lutra convert model-f16.gguf --type cb3 --imatrix model.imatrix --tensor-type ffn_down=cb4 -o out.gguf
  lutra convert models/tiny-chat --target-bpw 3.5 --dry-run
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the verb."""
    add = parser.add_argument
    add("source", metavar="SRC", help="Hugging Face directory or id, or GGUF file")
    what = parser.add_mutually_exclusive_group(required=True).add_argument
    what("--type", metavar="T", type=str.lower, help="type of the weights, e.g. cb4")
    what("--target-bpw", dest="target", metavar="BPW", type=Target.parse_bpw,
        help="bits per weight of the whole: each tensor gets the type that serves it best")  # fmt: skip
    what("--target-size", dest="target", metavar="SIZE", type=Target.parse_size,
        help="the same for bytes of the file, e.g. 400M or 1.5G (powers of ten), 400MiB")  # fmt: skip
    add("-o", "--output", type=Path, metavar="OUT", help="output file (default: ./<name of SRC>-<T>.gguf)")
    add("--threads", type=positive, metavar="N", help="default: the fast physical cores")
    add("--tune", action="store_true", help="tune codebooks on the model's predictions (torch); see below")
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
    add("--pure", action="store_true", help="every matrix gets T, embeddings and output too")
    add("--calibration", type=Path, metavar="FILE", help="text to calibrate codebooks with; see below")
    add("--no-calibration", action="store_true", help="no importance of any kind; many times faster")
    add("--cluster", metavar="ADDRESS",
        help="Dask scheduler (tcp://host:8786) whose workers encode the tensors, --threads each")  # fmt: skip
    add("--seed", type=int, default=0, metavar="N", help="seed for learning codebooks (default: 0)")


def run(args: argparse.Namespace) -> int:
    """Convert by ourselves or, for upstream's types, with llama-quantize."""
    from gguf_tools.sources.open import open_source
    from lutra.conversion.llama_quantize import quantize_with_llama

    started = time.monotonic()
    complete(args)
    work = convert if args.target or args.type in OWN_TYPES else quantize_with_llama
    work(open_source(args.source), args)
    if not args.dry_run:
        print(summary(args.output, time.monotonic() - started), file=sys.stderr)
    return 0


def complete(args: argparse.Namespace) -> None:
    """Fill in the options that were not given. Raises LutraError for those that cannot be."""
    if (args.imatrix or args.calibration) and args.no_calibration:
        option = "--imatrix" if args.imatrix else "--calibration"
        raise LutraError(f"{option} and --no-calibration contradict each other; drop one of them")
    several = args.target.option[0] if args.target else f"--type {args.type}" if args.type in MIXES else ""
    if several and args.pure:
        raise LutraError(f"--pure gives every matrix one --type, {several} several; drop one of them")
    args.threads = args.threads or default_threads()
    args.output = args.output or Path(f"{source_name(args.source)}-{args.target or args.type}.gguf")
    if args.output.exists() and Path(args.source).exists() and args.output.samefile(args.source):
        raise LutraError(f"{args.output}: would overwrite the source; choose another output with -o")
    if args.output.is_dir():
        raise LutraError(f"{args.output}: is a directory; name a file with -o")
    types = [args.type, *(text.rpartition("=")[2] for text in args.tensor_type)]
    types += [args.output_tensor_type, args.token_embedding_type]
    is_own = args.target or args.type in OWN_TYPES
    if not is_own or not (args.target or any(str(kind).lower().startswith("cb") for kind in types)):
        args.calibration = None  # it is for codebooks
    elif args.calibration == DEFAULT or not (args.calibration or args.imatrix or args.no_calibration):
        args.calibration = CALIBRATION_TEXT
    if args.tune and not args.calibration:
        raise LutraError(f"--tune needs codebooks and a text: a type of cb2 to cb4, --calibration {DEFAULT}")


def source_name(source: str) -> str:
    """Name of the model in a source: the last part without .gguf and without a float type's suffix."""
    name = Path(source).resolve().name.removesuffix(".gguf")
    return re.sub(r"[-.](f32|f16|bf16)$", "", name, flags=re.IGNORECASE)


def summary(output: Path, seconds: float) -> str:
    """The line at the end: file, size, bits per weight, time."""
    from gguf_tools.inspect import read_info

    info = read_info(output)
    return f"{output}: {mib(info.bytes)}, {info.bpw:.2f} bits per weight, {seconds:.1f} s"


def convert(source: Source, args: argparse.Namespace) -> None:
    """Make a file of one of our own types, or show what it would be."""
    from lutra.conversion.plan import Rules, check_type, describe, parse_tensor_type, plan

    if args.tune:
        from lutra.conversion.tune import require

        require(source)
    rules = Rules(
        base=args.type or "f16",
        pure=args.pure,
        tensor_types=[parse_tensor_type(text) for text in args.tensor_type],
        output_type=args.output_tensor_type and check_type(args.output_tensor_type),
        embedding_type=args.token_embedding_type and check_type(args.token_embedding_type),
    )
    if args.target:
        from lutra.conversion.budget import meet

        rules = meet(source, rules, args)
    planned = plan(source.tensors, rules)
    importance = read_importance(planned, args.imatrix)
    if args.dry_run:
        print(describe(planned, args.threads, calibrated=bool(args.calibration)))
    elif any(p.fmt for p in planned):
        convert_codebooks(source, planned, args, importance)
    else:
        write(args.output, source, planned, args, importance)
        warn_uncovered(planned, args.imatrix, importance)


def convert_codebooks(
    source: Source, planned: Sequence[Planned], args: argparse.Namespace, importance: Importance
) -> None:
    """``convert`` where there are codebooks: their tensors are finished one by one in a work directory."""
    from lutra.conversion.encode import Matrix, codebook
    from lutra.conversion.jobs import Jobs
    from lutra.conversion.workdir import WorkDirectory

    codebooks = [p for p in planned if p.fmt]
    text = args.calibration
    with WorkDirectory(args.output, fingerprint(source, planned, args)) as work:
        jobs = Jobs(args.threads, args.cluster)
        if args.calibration:
            calibrate_codebooks(work, source, codebooks, args, jobs)
        left = [p for p in codebooks if p.source.name not in work]
        require_space(args.output, sum(p.nbytes for p in (*planned, *left)))
        arguments = (
            (p.source.name, Matrix.of(p), p.fmt, importance.get(p.source.name), args.seed) for p in left
        )
        with progress(sum(p.weights for p in left), "w") as bar:
            for p, parts in zip(left, jobs.run(codebook, arguments), strict=True):
                work.save(p.source.name, parts, loss=nan)
                bar.set_postfix_str(p.source.name)
                bar.update(p.weights)
        losses = {p.source.name: work.load(p.source.name)[1] for p in codebooks}
        if args.report:
            write_report(args.report, planned, losses)
        uncalibrated = [p for p in planned if isnan(losses.get(p.source.name, nan))]
        if args.calibration and len(uncalibrated) == len(planned):
            args.calibration = None  # as the file's options will say
        elif args.calibration and (names := [p.source.name for p in uncalibrated if p.fmt]):
            warn(f"not calibrated, the model does not multiply by them: {', '.join(names)}; {instead(args)}")
        warn_uncovered(uncalibrated, args.imatrix, importance)
        if args.tune:
            tune_codebooks(work, source, planned, args, importance, text)
        else:
            write(args.output, source, planned, args, importance, work)


def calibrate_codebooks(
    work: WorkDirectory,
    source: Source,
    codebooks: Sequence[Planned],
    args: argparse.Namespace,
    jobs: Jobs,
) -> None:
    """Finish in ``work`` what can be calibrated of ``codebooks``; warns when the model cannot be."""
    from lutra.conversion.calibrate import calibrate, read_pieces, survey, token_limit
    from lutra.conversion.plan import OUTPUT
    from lutra.runtime.model import Model

    planned = {p.source.name: p for p in codebooks}
    if all(name in work for name in planned):
        return
    model = f16_model(work, source, codebooks, args)
    try:
        tokenizer = Model(model, threads=1, n_ctx=32, weights=False)
        groups = survey(model, set(planned), tokenizer.tokenize("The graph in short."), args.threads)
    except LutraError as error:
        warn(f"the model cannot be calibrated: {error}; {instead(args)}")
        return
    pieces = read_pieces(args.calibration, tokenizer, token_limit(source))
    print(f"lutra: calibrating with {sum(map(len, pieces))} tokens of {args.calibration}", file=sys.stderr)
    left = [name for group in groups for name in group if name not in work]
    started = time.monotonic()
    with progress(sum(planned[name].weights for group in groups for name in group), "w") as bar:
        tied = all(tensor.name != OUTPUT for tensor in source.tensors)
        for p in calibrate(
            model, groups, planned, pieces, work, jobs, tied=tied, seed=args.seed, threads=args.threads
        ):
            bar.set_postfix_str(f"{p.source.name} {decibel(work.load(p.source.name)[1])}")
            bar.update(p.weights)
    weights, seconds = sum(planned[name].weights for name in left), time.monotonic() - started
    print(f"lutra: calibrated {weights / 1e6:.1f} M weights in {seconds:.0f} s, "
          f"{weights / 1e6 / seconds:.2f} M weights/s", file=sys.stderr)  # fmt: skip
    if model.parent == work.path:
        model.unlink()


def tune_codebooks(
    work: WorkDirectory,
    source: Source,
    planned: Sequence[Planned],
    args: argparse.Namespace,
    importance: Importance,
    text: Path,
) -> None:
    """Write the output with what is continuous in it tuned on the predictions for ``text``."""
    from lutra.conversion import tune
    from lutra.conversion.calibrate import read_pieces
    from lutra.runtime.model import Model

    untuned = work.path / "untuned.gguf"
    write(untuned, source, planned, args, importance, work)
    pieces = read_pieces(text, Model(untuned, threads=1, n_ctx=32, weights=False), tune.TOKENS)
    print(f"lutra: tuning with {sum(map(len, pieces))} tokens of {text}", file=sys.stderr)
    tune.tune(untuned, source, args.output, pieces, seed=args.seed, threads=args.threads)


def f16_model(
    work: WorkDirectory, source: Source, codebooks: Sequence[Planned], args: argparse.Namespace
) -> Path:
    """The model as a GGUF of F16 matrices: the source itself if it is one, else a copy in ``work``."""
    from gguf_tools.sources.tensors import keeps_f32
    from lutra.conversion.plan import Rules, plan

    matrices = (t for t in source.tensors if not keeps_f32(t.name, t.shape))
    if Path(args.source).is_file() and all(t.dtype == "F16" for t in matrices):
        return Path(args.source)
    model = work.path / "f16.gguf"
    if not model.exists():
        copies = plan(source.tensors, Rules("f16"))
        require_space(args.output, sum(p.nbytes for p in (*copies, *codebooks)))
        write(model, source, copies, args, {})
    return model


def instead(args: argparse.Namespace) -> str:
    """What is done to tensors that cannot be calibrated."""
    return (
        f"quantized with {args.imatrix} instead" if args.imatrix else "quantized without importance instead"
    )


def decibel(loss: float) -> str:
    """A loss relative to the signal as its signal-to-noise ratio."""
    return f"{-10 * log10(loss):.1f} dB" if loss else "exact"


def write_report(path: Path, planned: Sequence[Planned], losses: Mapping[str, float]) -> None:
    """JSON of what became of each tensor; ``loss`` is the squared error of its outputs relative to them."""
    tensors = [
        {
            "name": p.source.name,
            "type": p.type_name,
            "weights": p.weights,
            "bytes": p.nbytes,
            "loss": None if isnan(loss := losses.get(p.source.name, nan)) else loss,
        }
        for p in planned
    ]
    path.write_text(json.dumps({"tensors": tensors}, indent=1))


def fingerprint(source: Source, planned: Sequence[Planned], args: argparse.Namespace) -> dict[str, object]:
    """What the bytes of a codebook tensor depend on."""
    from lutra.conversion import workdir

    return {
        "source": workdir.source_files(source),
        "types": [(p.source.name, p.type_name) for p in planned if p.fmt],
        "seed": args.seed,
        "calibration text": workdir.file_digest(args.calibration),
        "importance matrix": workdir.file_digest(args.imatrix),
        "version of lutra or numpy": workdir.software(),
        "CPU": workdir.cpu(),
    }


def same_options(args: argparse.Namespace) -> list[str]:
    """The options that llama-quantize has too, under the same names."""
    words = ["--pure"] if args.pure else []
    for option in args.tensor_type:
        words += ["--tensor-type", option]
    if args.output_tensor_type:
        words += ["--output-tensor-type", args.output_tensor_type]
    if args.token_embedding_type:
        words += ["--token-embedding-type", args.token_embedding_type]
    return words


# ---- writing a file ------------------------------------------------------------------------


def write(
    output: Path,
    source: Source,
    planned: Sequence[Planned],
    args: argparse.Namespace,
    importance: Importance,
    work: WorkDirectory | None = None,
) -> None:
    """Write ``output`` tensor by tensor; nothing is left behind when anything goes wrong.

    Codebook tensors are finished in ``work``.
    """
    from gguf_tools.writer import GGUFWriter, TensorSpec
    from lutra.conversion.encode import stock

    require_space(output, sum(p.nbytes for p in planned))
    specs = [TensorSpec(p.source.name, p.type, p.source.shape, p.nbytes) for p in planned]
    values = metadata(source, planned, args)
    with GGUFWriter(output, values, specs) as writer, progress(sum(p.weights for p in planned), "w") as bar:
        for p in planned:
            bar.set_postfix_str(p.source.name)
            if work and p.fmt:
                writer.write(work.load(p.source.name)[0])
            else:
                for data in stock(p, importance.get(p.source.name), args.threads):
                    writer.write(data)
            bar.update(p.weights)


def read_importance(planned: Sequence[Planned], path: Path | None) -> Importance:
    """Importance by tensor name, checked against the tensors that will be quantized."""
    from lutra.runtime import quantize as ggml

    importance: dict[str, NDArray[np.float32]] = {}
    if path:
        from pyquant.importance import read_imatrix

        importance = read_imatrix(path)
    for p in planned:
        tensor = p.source
        if p.type_name in ("F32", "F16", "BF16"):
            importance.pop(tensor.name, None)
        elif tensor.name not in importance:
            if not p.fmt and ggml.requires_importance(p.type):
                raise LutraError(
                    f"tensor {tensor.name!r}: {p.type_name} needs --imatrix data for it, or another type"
                )
        elif importance[tensor.name].shape not in ((tensor.k,), (*tensor.shape[:-2], tensor.k)):
            shape = importance[tensor.name].shape
            raise LutraError(f"{path}: importance of {shape} for tensor {tensor.name!r} of {tensor.shape}: "
                             "made for another model; run llama-imatrix on this one")  # fmt: skip
    return importance


def warn_uncovered(planned: Sequence[Planned], path: Path | None, importance: Importance) -> None:
    """Name the tensors that an importance matrix was given for and is silent about."""
    quantized = (p.source.name for p in planned if p.type_name not in ("F32", "F16", "BF16"))
    names = [name for name in quantized if name not in importance]
    if path and names:
        warn(f"{path} says nothing about {', '.join(names)}: quantized without importance")


def metadata(source: Source, planned: Sequence[Planned], args: argparse.Namespace) -> dict[str, GGUFValue]:
    """The source's key/values with our own: file type, layout version, and how the file was made."""
    from gguf import GGUFValueType
    from gguf.gguf_writer import GGUFValue

    from gguf_tools.formats.family import LAYOUT_VERSION, LAYOUT_VERSION_KEY

    stale = ("lutra.", "quantize.imatrix.")
    values = {key: value for key, value in source.metadata.items() if not key.startswith(stale)}
    values["general.file_type"] = GGUFValue(FILE_TYPES[args.type.removesuffix("_m")], GGUFValueType.UINT32)
    values["general.quantization_version"] = GGUFValue(QUANTIZATION_VERSION, GGUFValueType.UINT32)
    if any(p.fmt for p in planned):
        values[LAYOUT_VERSION_KEY] = GGUFValue(LAYOUT_VERSION, GGUFValueType.UINT32)
    values["lutra.convert.version"] = GGUFValue(__version__, GGUFValueType.STRING)
    values[OPTIONS_KEY] = GGUFValue(shlex.join(options(args)), GGUFValueType.STRING)
    return values


def options(args: argparse.Namespace) -> list[str]:
    """The options that decide what is in the file; paths as bare names, no threads."""
    words = args.target.option if args.target else ["--type", args.type]
    words += ["--seed", str(args.seed)]
    words += ["--imatrix", args.imatrix.name] if args.imatrix else []
    if args.calibration:
        words += [
            "--calibration",
            str(DEFAULT if args.calibration == CALIBRATION_TEXT else args.calibration.name),
        ]
    words += ["--no-calibration"] if args.no_calibration else []
    words += ["--tune"] if args.tune else []
    return words + same_options(args)


def require_space(output: Path, nbytes: int) -> None:
    """Raise LutraError when the disk of ``output`` cannot hold ``nbytes``."""
    directory = output.absolute().parent
    if not directory.is_dir():
        raise LutraError(f"{directory}: no such directory; create it or choose another place with -o")
    free = shutil.disk_usage(directory).free
    if free < nbytes:
        raise LutraError(
            f"{output}: needs {mib(nbytes)}, {directory} has {mib(free)} free; choose another place with -o"
        )
