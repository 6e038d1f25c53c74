"""``lutra convert``: any model lutra can read, as a GGUF of any type, in one command."""

from __future__ import annotations

import argparse
import contextlib
import re
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gguf_tools.errors import LutraError
from lutra import __version__
from lutra.arguments import positive
from lutra.text import mib, progress, table, warn
from lutra.threads import default_threads
from lutra.tools import run_tool

if TYPE_CHECKING:
    import numpy as np
    from gguf.gguf_writer import GGUFValue
    from numpy.typing import NDArray

    from gguf_tools.source import Source, SourceTensor
    from lutra.plan import Planned

OWN_TYPES = ("cb2", "cb3", "cb4", "f16", "bf16")
FILE_TYPES = {"f16": 1, "bf16": 32, "cb2": 402, "cb3": 403, "cb4": 404}  # general.file_type
QUANTIZATION_VERSION = 2  # of ggml's own block types
BLOCK_WEIGHTS = 1 << 23  # weights in memory at a time, as float32
# For --dry-run's estimate only: weights per second and thread (one Zen 4 core), bytes.
SPEED, PEAK_MEMORY = 2.5e6, 500 << 20

EPILOG = """\
SRC is a Hugging Face directory, a Hugging Face id (user/model), or a GGUF of F32, F16, BF16 or Q8_0.
T is cb2, cb3 or cb4 (codebooks of 2.3, 3.3 and 4.3 bits per weight), f16, bf16, or any type of
llama-quantize in lower case, which then does the work.

With cb2 and cb3 the token embeddings and the output matrix become cb4 unless --pure is given. Tensors
that cannot be a codebook (rows not a multiple of 64, not a multiple of 8 rows) become Q8_0, vectors stay
F32; --dry-run shows what each tensor would become.

examples:
  lutra convert models/tiny-chat --type cb4
  lutra convert model-f16.gguf --type cb3 --imatrix model.imatrix --tensor-type ffn_down=cb4 -o out.gguf
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the verb."""
    add = parser.add_argument
    add("source", metavar="SRC", help="Hugging Face directory or id, or GGUF file")
    add("--type", required=True, metavar="T", type=str.lower, help="type of the weights, e.g. cb4")
    add("-o", "--output", type=Path, metavar="OUT", help="output file (default: ./<name of SRC>-<T>.gguf)")
    add("--imatrix", type=Path, metavar="F", help="importance matrix made by llama-imatrix")
    add("--tensor-type", action="append", default=[], metavar="REGEX=TYPE",
        help="type for the tensors whose name matches; repeatable, the first match counts")  # fmt: skip
    add("--output-tensor-type", metavar="TYPE", help="type for the output matrix")
    add("--token-embedding-type", metavar="TYPE", help="type for the token embeddings")
    add("--pure", action="store_true", help="every matrix gets T, embeddings and output too")
    add("--no-calibration", action="store_true", help="no importance of any kind")
    add("--threads", type=positive, metavar="N", help="default: the fast physical cores")
    add("--seed", type=int, default=0, metavar="N", help="seed for learning codebooks (default: 0)")
    add("--dry-run", action="store_true", help="show types and sizes, write nothing")


def run(args: argparse.Namespace) -> int:
    """Convert by ourselves or, for upstream's types, with llama-quantize."""
    started = time.monotonic()
    if args.imatrix and args.no_calibration:
        raise LutraError("--imatrix and --no-calibration contradict each other; drop one of them")
    args.threads = args.threads or default_threads()
    args.output = args.output or Path(f"{source_name(args.source)}-{args.type}.gguf")
    if args.output.exists() and Path(args.source).exists() and args.output.samefile(args.source):
        raise LutraError(f"{args.output}: would overwrite the source; choose another output with -o")
    if args.output.is_dir():
        raise LutraError(f"{args.output}: is a directory; name a file with -o")
    if args.type in OWN_TYPES:
        convert(args)
    else:
        delegate(args)
    if not args.dry_run:
        print(summary(args.output, time.monotonic() - started), file=sys.stderr)
    return 0


def source_name(source: str) -> str:
    """Name of the model in a source: the last part without .gguf and without a float type's suffix."""
    name = Path(source).resolve().name.removesuffix(".gguf")
    return re.sub(r"[-.](f32|f16|bf16)$", "", name, flags=re.IGNORECASE)


# ---- our own types -------------------------------------------------------------------------


def convert(args: argparse.Namespace) -> None:
    """Write ``args.output`` tensor by tensor; nothing is left behind when anything goes wrong."""
    from gguf_tools.source import open_source
    from gguf_tools.writer import GGUFWriter, TensorSpec
    from lutra.plan import Rules, check_type, plan

    rules = Rules(
        base=args.type,
        pure=args.pure,
        tensor_types=[tensor_type(text) for text in args.tensor_type],
        output_type=args.output_tensor_type and check_type(args.output_tensor_type),
        embedding_type=args.token_embedding_type and check_type(args.token_embedding_type),
    )
    source = open_source(args.source)
    planned = plan(source.tensors, rules)
    importance = read_importance(planned, args.imatrix)
    if args.dry_run:
        print(dry_run(planned, args.threads))
        return
    require_space(args.output, sum(p.nbytes for p in planned))
    specs = [TensorSpec(p.source.name, p.type, p.source.shape, p.nbytes) for p in planned]
    # A codebook tensor is read twice: to learn its library, and to encode.
    work = sum(p.weights * (2 if p.fmt else 1) for p in planned)
    with (
        GGUFWriter(args.output, metadata(source, planned, args), specs) as writer,
        progress(work, "w") as bar,
    ):
        for p in planned:
            bar.set_postfix_str(p.source.name)
            for data in encode(p, importance.get(p.source.name), args, bar.update):
                writer.write(data)


@dataclass(frozen=True)
class Matrix:
    """A tensor as one matrix (rows, k), as pyquant reads it."""

    tensor: SourceTensor

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, k), all leading dimensions multiplied into rows."""
        return self.tensor.rows, self.tensor.k

    def read(self, start: int, stop: int) -> NDArray[np.float32]:
        """Rows start..stop-1 as float32."""
        return self.tensor.read(start, stop)


def encode(
    p: Planned,
    importance: NDArray[np.float32] | None,
    args: argparse.Namespace,
    advance: Callable[[int], object],
) -> Iterator[NDArray]:
    """The bytes of one tensor in pieces of whole strips; a codebook tensor ends with its library.

    ``importance`` float32 is (k,) or, for a stack of experts, (experts, k). ``advance`` is told how many
    weights were worked on.
    """
    from lutra import ggml
    from pyquant import encode as encode_strips
    from pyquant import learn

    try:
        library = None
        if p.fmt:
            library = learn(
                Matrix(p.source),
                p.fmt,
                importance=importance,
                seed=args.seed,
                threads=args.threads,
                progress=advance,
            )
        for start, stop, weights in blocks(p.source, importance):
            rows = p.source.read(start, stop)
            if library is not None:
                yield encode_strips(rows, library, p.fmt, importance=weights, threads=args.threads)
            else:
                yield ggml.quantize(rows, p.type, weights, args.threads)
            advance(rows.size)
        if library is not None:
            yield library
    except ValueError as error:
        raise LutraError(f"{args.source}: tensor {p.source.name!r}: {error}") from None


def blocks(
    tensor: SourceTensor, importance: NDArray[np.float32] | None
) -> Iterator[tuple[int, int, NDArray[np.float32] | None]]:
    """Cut a tensor into (start row, end row, importance): whole strips, never across two experts."""
    matrix_rows = tensor.shape[-2] if len(tensor.shape) > 1 else 1
    step = max(8, BLOCK_WEIGHTS // tensor.k // 8 * 8)
    for first in range(0, tensor.rows, matrix_rows):
        weights = importance
        if importance is not None and importance.ndim == 2:
            weights = importance[first // matrix_rows]
        for start in range(first, first + matrix_rows, step):
            yield start, min(start + step, first + matrix_rows), weights


def tensor_type(text: str) -> tuple[str, str]:
    """Parse REGEX=TYPE. Raises LutraError."""
    from lutra.plan import check_type

    pattern, equals, name = text.rpartition("=")
    if not equals or not pattern:
        raise LutraError(f"--tensor-type {text}: write REGEX=TYPE, e.g. ffn_down=cb4")
    try:
        re.compile(pattern)
    except re.error as error:
        raise LutraError(f"--tensor-type {text}: '{pattern}' is no regular expression: {error}") from None
    return pattern, check_type(name)


def read_importance(planned: Sequence[Planned], path: Path | None) -> dict[str, NDArray[np.float32]]:
    """Importance by tensor name, checked against the tensors that will be quantized."""
    from lutra import ggml

    importance: dict[str, NDArray[np.float32]] = {}
    if path:
        from pyquant.importance import read_imatrix

        importance = read_imatrix(path)
    uncovered = []
    for p in planned:
        tensor = p.source
        if p.type_name in ("F32", "F16", "BF16"):
            importance.pop(tensor.name, None)
        elif tensor.name not in importance:
            uncovered.append(tensor.name)
            if not p.fmt and ggml.requires_importance(p.type):
                raise LutraError(
                    f"tensor {tensor.name!r}: {p.type_name} needs --imatrix data for it, or another type"
                )
        elif importance[tensor.name].shape not in ((tensor.k,), (*tensor.shape[:-2], tensor.k)):
            shape = importance[tensor.name].shape
            raise LutraError(f"{path}: importance of {shape} for tensor {tensor.name!r} of {tensor.shape}: "
                             "made for another model; run llama-imatrix on this one")  # fmt: skip
    if path and uncovered:
        warn(f"{path} says nothing about {', '.join(uncovered)}: quantized without importance")
    return importance


def metadata(source: Source, planned: Sequence[Planned], args: argparse.Namespace) -> dict[str, GGUFValue]:
    """The source's key/values with our own: file type, layout version, and how the file was made."""
    from gguf import GGUFValueType
    from gguf.gguf_writer import GGUFValue

    from gguf_tools.types import LAYOUT_VERSION, LAYOUT_VERSION_KEY

    stale = ("lutra.", "quantize.imatrix.")
    values = {key: value for key, value in source.metadata.items() if not key.startswith(stale)}
    values["general.file_type"] = GGUFValue(FILE_TYPES[args.type], GGUFValueType.UINT32)
    values["general.quantization_version"] = GGUFValue(QUANTIZATION_VERSION, GGUFValueType.UINT32)
    if any(p.fmt for p in planned):
        values[LAYOUT_VERSION_KEY] = GGUFValue(LAYOUT_VERSION, GGUFValueType.UINT32)
    values["lutra.convert.version"] = GGUFValue(__version__, GGUFValueType.STRING)
    values["lutra.convert.options"] = GGUFValue(shlex.join(options(args)), GGUFValueType.STRING)
    return values


def options(args: argparse.Namespace) -> list[str]:
    """The options that decide what is in the file; paths as bare names, no threads."""
    words = ["--type", args.type, "--seed", str(args.seed)]
    words += ["--imatrix", args.imatrix.name] if args.imatrix else []
    return words + common_options(args)


def common_options(args: argparse.Namespace) -> list[str]:
    """The options that llama-quantize has too, under the same names."""
    words = ["--pure"] if args.pure else []
    for option in args.tensor_type:
        words += ["--tensor-type", option]
    if args.output_tensor_type:
        words += ["--output-tensor-type", args.output_tensor_type]
    if args.token_embedding_type:
        words += ["--token-embedding-type", args.token_embedding_type]
    return words


def dry_run(planned: Sequence[Planned], threads: int) -> str:
    """The table that --dry-run prints."""
    rows = [("tensor", "shape", "type", "bytes", "")]
    for p in planned:
        shape = " x ".join(map(str, p.source.shape))
        note = f"cannot be {p.instead_of}" if p.instead_of else ""
        rows.append((p.source.name, shape, p.type_name, str(p.nbytes), note))
    weights, nbytes = sum(p.weights for p in planned), sum(p.nbytes for p in planned)
    learned = sum(p.weights for p in planned if p.fmt)
    seconds = learned / SPEED / threads
    bpw = 8 * nbytes / weights
    totals = [
        f"{len(planned)} tensors, {weights / 1e6:.1f} M weights: {mib(nbytes)}, {bpw:.2f} bits per weight"
    ]
    if learned:
        totals.append(f"{learned / weights:.1%} of the weights in codebooks")
        totals.append(
            f"expected: {seconds:.0f} s with {threads} threads, {mib(PEAK_MEMORY)} of memory (estimates)"
        )
    return "\n".join([table(rows, right=(3,)), "", *totals])


# ---- upstream's types ----------------------------------------------------------------------


def delegate(args: argparse.Namespace) -> None:
    """Let llama-quantize make the file, from a temporary GGUF in the source's precision if need be."""
    from gguf_tools.source import open_source

    types = stock_file_types()
    if args.type not in types:
        raise LutraError(f"'{args.type}' is no type; choose one of {', '.join((*OWN_TYPES, *types))}")
    source = open_source(args.source)
    with contextlib.ExitStack() as stack:
        gguf = Path(args.source)
        if not gguf.is_file():
            float_type = "bf16" if any(tensor.dtype == "BF16" for tensor in source.tensors) else "f16"
            gguf = stack.enter_context(temporary(args.output, f"source-{float_type}"))
            own = argparse.Namespace(**vars(args) | {"type": float_type, "output": gguf, "dry_run": False})
            own.tensor_type, own.output_tensor_type, own.token_embedding_type, own.imatrix = (
                [],
                None,
                None,
                None,
            )
            convert(own)
        words = common_options(args)
        words += ["--imatrix", str(args.imatrix)] if args.imatrix else []
        words += ["--dry-run"] if args.dry_run else []
        words += ["--allow-requantize"] if any(tensor.dtype == "Q8_0" for tensor in source.tensors) else []
        if args.dry_run:
            print(run_tool("llama-quantize", [*words, str(gguf), args.type, str(args.threads)]), end="")
            return
        result = stack.enter_context(temporary(args.output, "result"))
        with progress(len(source.tensors), "tensor") as bar:
            run_tool(
                "llama-quantize",
                [*words, str(gguf), str(result), args.type, str(args.threads)],
                on_output=lambda text: bar.update(len(re.findall(r"^\[ *\d+/ *\d+\]", text, re.MULTILINE))),
            )
        result.replace(args.output)


def stock_file_types() -> list[str]:
    """The types that llama-quantize of this build knows, in lower case."""
    text = run_tool("llama-quantize", ["--help"], ok=1)
    names = re.findall(r"^ *\d+ +or +(\w+) +:", text, re.MULTILINE)
    return [name.lower() for name in names]


@contextlib.contextmanager
def temporary(output: Path, role: str) -> Iterator[Path]:
    """A name beside ``output`` for a file that is gone afterwards, whatever happens."""
    path = output.with_name(f".{output.name}.{role}.gguf")
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


# ---- shared by both ------------------------------------------------------------------------


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


def summary(output: Path, seconds: float) -> str:
    """The line at the end: file, size, bits per weight, time."""
    from gguf_tools.inspect import read_info

    info = read_info(output)
    return f"{output}: {mib(info.bytes)}, {info.bpw:.2f} bits per weight, {seconds:.1f} s"
