"""``lutra convert``: any model lutra can read, as a GGUF of any type, in one command."""

from __future__ import annotations

import argparse
import re
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gguf_tools.errors import LutraError
from lutra import __version__
from lutra.arguments import positive
from lutra.paths import CALIBRATION_TEXT
from lutra.text import mib, progress, warn
from lutra.threads import default_threads

if TYPE_CHECKING:
    import numpy as np
    from gguf.gguf_writer import GGUFValue
    from numpy.typing import NDArray

    from gguf_tools.source import Source, SourceTensor
    from gguf_tools.types import CBFormat
    from lutra.plan import Planned

    Importance = Mapping[str, NDArray[np.float32]]  # by tensor name: (k,), or (experts, k)

FILE_TYPES = {"f32": 0, "f16": 1, "bf16": 32, "cb2": 402, "cb3": 403, "cb4": 404}  # general.file_type
OWN_TYPES = tuple(FILE_TYPES)
OPTIONS_KEY = "lutra.convert.options"
QUANTIZATION_VERSION = 2  # of ggml's own block types
BLOCK_WEIGHTS = 1 << 23  # weights in memory at a time, as float32

EPILOG = """\
SRC is a Hugging Face directory, a Hugging Face id (user/model), or a GGUF of F32, F16, BF16 or Q8_0.
T is cb2, cb3 or cb4 (codebooks of 2.3, 3.3 and 4.3 bits per weight), f16, bf16, or any type of
llama-quantize in lower case, which then does the work.

The token embeddings and the output matrix get more bits: cb4 with cb2 and cb3, q6_k with cb4 if their rows
allow it; --pure gives every matrix T. Tensors that cannot be a codebook (rows not a multiple of 64, not a
multiple of 8 rows) become Q8_0, vectors stay F32; --dry-run shows what each tensor would become.

--calibration takes a plain text, or JSON lines of {"text": ...} and {"messages": [...]}, the latter
going through the model's chat template; 16 thousand tokens are used, twice as many for small models.
"default" is the text that comes with lutra.

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
    add("--threads", type=positive, metavar="N", help="default: the fast physical cores")
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
    add("--no-calibration", action="store_true", help="no importance of any kind")
    add("--seed", type=int, default=0, metavar="N", help="seed for learning codebooks (default: 0)")


def run(args: argparse.Namespace) -> int:
    """Convert by ourselves or, for upstream's types, with llama-quantize."""
    from gguf_tools.source import open_source
    from lutra.delegate import quantize_with_llama

    started = time.monotonic()
    complete(args)
    work = convert if args.type in OWN_TYPES else quantize_with_llama
    work(open_source(args.source), args)
    if not args.dry_run:
        print(summary(args.output, time.monotonic() - started), file=sys.stderr)
    return 0


def complete(args: argparse.Namespace) -> None:
    """Fill in the options that were not given. Raises LutraError for those that cannot be."""
    if (args.imatrix or args.calibration) and args.no_calibration:
        option = "--imatrix" if args.imatrix else "--calibration"
        raise LutraError(f"{option} and --no-calibration contradict each other; drop one of them")
    args.threads = args.threads or default_threads()
    args.output = args.output or Path(f"{source_name(args.source)}-{args.type}.gguf")
    if args.output.exists() and Path(args.source).exists() and args.output.samefile(args.source):
        raise LutraError(f"{args.output}: would overwrite the source; choose another output with -o")
    if args.output.is_dir():
        raise LutraError(f"{args.output}: is a directory; name a file with -o")
    if args.calibration == Path("default"):
        args.calibration = CALIBRATION_TEXT


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
    from lutra.plan import Rules, check_type, describe, parse_tensor_type, plan

    rules = Rules(
        base=args.type,
        pure=args.pure,
        tensor_types=[parse_tensor_type(text) for text in args.tensor_type],
        output_type=args.output_tensor_type and check_type(args.output_tensor_type),
        embedding_type=args.token_embedding_type and check_type(args.token_embedding_type),
    )
    planned = plan(source.tensors, rules)
    importance = read_importance(planned, args.imatrix)
    if args.dry_run:
        print(describe(planned, args.threads))
        return
    if not args.calibration:
        write(args.output, source, planned, args, importance)
        return
    with tempfile.TemporaryDirectory(prefix=".lutra-", dir=args.output.absolute().parent) as directory:
        calibrated = calibrate_codebooks(Path(directory), source, planned, args)
        write(args.output, source, planned, args, importance, calibrated)


def calibrate_codebooks(
    directory: Path, source: Source, planned: Sequence[Planned], args: argparse.Namespace
) -> Mapping[str, Path]:
    """The bytes of calibrated tensors by name, in files of ``directory``. Warns about those it cannot do."""
    from lutra.calibrate import calibrate, read_pieces
    from lutra.plan import Rules, plan

    model = directory / "f16.gguf"
    write(model, source, plan(source.tensors, Rules("f16")), args, {})
    pieces = read_pieces(args.calibration, model, sum(t.rows * t.k for t in source.tensors))
    paths: dict[str, Path] = {}
    work = sum(p.weights for p in planned if p.fmt)
    with progress(work, "w") as bar:
        for p, encoded in calibrate(model, planned, pieces, args.seed, args.threads):
            paths[p.source.name] = directory / f"{len(paths)}.tensor"
            with paths[p.source.name].open("wb") as file:
                encoded.strips(args.threads).tofile(file)
                encoded.library.tofile(file)
            bar.set_postfix_str(p.source.name)
            bar.update(p.weights)
    if missing := [p.source.name for p in planned if p.fmt and p.source.name not in paths]:
        warn(f"not calibrated, the model does not multiply by them one by one: {', '.join(missing)}")
    return paths


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
    calibrated: Mapping[str, Path] | None = None,
) -> None:
    """Write ``output`` tensor by tensor; nothing is left behind when anything goes wrong.

    ``calibrated``: tensors whose bytes are there already.
    """
    from gguf_tools.writer import GGUFWriter, TensorSpec

    require_space(output, sum(p.nbytes for p in planned))
    specs = [TensorSpec(p.source.name, p.type, p.source.shape, p.nbytes) for p in planned]
    values = metadata(source, planned, args)
    # A codebook tensor is read twice: to learn its library, and to encode.
    work = sum(p.weights * (2 if p.fmt else 1) for p in planned)
    with GGUFWriter(output, values, specs) as writer, progress(work, "w") as bar:
        for p in planned:
            bar.set_postfix_str(p.source.name)
            if calibrated and p.source.name in calibrated:
                writer.write(calibrated[p.source.name].read_bytes())
                continue
            for data in encode(p, importance.get(p.source.name), args.seed, args.threads, bar.update):
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
    seed: int,
    threads: int,
    advance: Callable[[int], object],
) -> Iterator[NDArray]:
    """The bytes of one tensor in pieces of whole strips; a codebook tensor ends with its library.

    ``importance`` float32 is (k,) or, for a stack of experts, (experts, k). ``advance`` is told how many
    weights were worked on.
    """
    from lutra import ggml

    try:
        if p.fmt:
            yield from encode_codebook(p.source, p.fmt, importance, seed, threads, advance)
        else:
            for rows, weights in blocks(p.source, importance):
                yield ggml.quantize(rows, p.type, weights, threads)
                advance(rows.size)
    except ValueError as error:
        raise LutraError(f"{p.source.path}: tensor {p.source.name!r}: {error}") from None


def encode_codebook(
    tensor: SourceTensor,
    fmt: CBFormat,
    importance: NDArray[np.float32] | None,
    seed: int,
    threads: int,
    advance: Callable[[int], object],
) -> Iterator[NDArray]:
    """``encode`` for a codebook type: learn the library from the whole tensor, then use it."""
    from pyquant import encode as encode_strips
    from pyquant import learn

    library = learn(Matrix(tensor), fmt, importance=importance, seed=seed, threads=threads, progress=advance)
    for rows, weights in blocks(tensor, importance):
        yield encode_strips(rows, library, fmt, importance=weights, threads=threads)
        advance(rows.size)
    yield library


def blocks(
    tensor: SourceTensor, importance: NDArray[np.float32] | None
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.float32] | None]]:
    """The tensor as (rows, their importance) in pieces: whole strips, never across two experts."""
    matrix_rows = tensor.shape[-2] if len(tensor.shape) > 1 else 1
    step = max(8, BLOCK_WEIGHTS // tensor.k // 8 * 8)
    for first in range(0, tensor.rows, matrix_rows):
        weights = importance
        if importance is not None and importance.ndim == 2:
            weights = importance[first // matrix_rows]
        for start in range(first, first + matrix_rows, step):
            yield tensor.read(start, min(start + step, first + matrix_rows)), weights


def read_importance(planned: Sequence[Planned], path: Path | None) -> Importance:
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
    values[OPTIONS_KEY] = GGUFValue(shlex.join(options(args)), GGUFValueType.STRING)
    return values


def options(args: argparse.Namespace) -> list[str]:
    """The options that decide what is in the file; paths as bare names, no threads."""
    words = ["--type", args.type, "--seed", str(args.seed)]
    words += ["--imatrix", args.imatrix.name] if args.imatrix else []
    words += ["--calibration", args.calibration.name] if args.calibration else []
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
