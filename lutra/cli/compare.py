"""``lutra compare``: the table people publish of a model's files or types: size, quality and speed."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import math
import platform
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gguf_tools.errors import LutraError
from lutra import __version__
from lutra.cli import bench, convert
from lutra.cli import eval as quality
from lutra.cli.arguments import positive
from lutra.measure import pareto
from lutra.runtime import kernels
from lutra.runtime.threads import default_threads

EPILOG = """\
SRC are GGUF files of one model. With --types it is what 'lutra convert' takes: the files are made, through
the same code and with the same options, and SRC in F16 is the base. Files that are there already are taken
when they were made from SRC with the same options. Codebooks are calibrated, other types are not: for a fair
table add '--calibration default --imatrix F', F made by llama-imatrix from the same text.

Only what is asked for is measured. --text gives perplexity and, with a base, the KL divergence to its
predictions and how often both prefer the same token; --questions counts exact answers; speed is
llama-bench's. A file that fails is named on standard error, the others are compared.

--json prints: model, base, machine, text, questions, speed, files (what 'lutra eval --json' prints of
each, with label, file, bytes, bpw and speeds), failed.

examples:
  lutra compare model-cb4.gguf model-q4_k.gguf --base model-f16.gguf --text wiki.test.raw --plot model.png
  lutra compare models/tiny-chat --types cb4,cb3,q4_k,q3_k --out-dir files --questions questions.jsonl
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the verb."""
    parser.add_argument("sources", nargs="+", metavar="SRC", help="GGUF files, or one model to convert")
    measuring = parser.add_argument_group("measuring").add_argument
    quality.add_options(measuring)
    measuring("--no-speed", dest="speed", action="store_false", help="do not measure speed")
    measuring("--threads", type=positive, metavar="N", help="default: the fast physical cores")
    showing = parser.add_argument_group("showing, instead of or beside a Markdown table").add_argument
    showing("--json", action="store_true", help="print the results as JSON")
    showing("--plot", type=Path, metavar="FILE.png", help="draw quality against size")
    converting = parser.add_argument_group("converting").add_argument
    converting("--types", type=type_list, metavar="T,...", help="types to convert SRC to, e.g. cb4,cb3,q4_k")
    converting("--out-dir", type=Path, default=Path(), metavar="DIR", help="where they go (default: .)")
    convert.add_options(converting)


def type_list(text: str) -> list[str]:
    """An argument of types with commas between them."""
    if types := [word.strip().lower() for word in text.split(",") if word.strip()]:
        return list(dict.fromkeys(types))
    raise argparse.ArgumentTypeError("no type in the list")


def run(args: argparse.Namespace) -> int:
    """Convert what is to be converted, measure every file, and show it all."""
    text = quality.read_text(args)
    asked = quality.read_questions(args.questions) if args.questions else []
    if args.plot:
        if not text:
            raise LutraError("--plot draws perplexity or KL divergence against size, and needs --text")
        if not args.plot.absolute().parent.is_dir():
            raise LutraError(f"{args.plot.parent}: no such directory; create it or choose another for --plot")
        pareto.new_figure(1)  # better to miss matplotlib now than after hours
    args.threads = args.threads or default_threads()
    failed: dict[str, str] = {}
    files, base = converted(args, failed) if args.types else given(args)
    require_one_model(files)
    comparison = Comparison(files, base, text, args.questions, asked, args.speed, args.threads, failed)
    try:
        comparison.measure()
    finally:  # what is done is shown even after Ctrl-C
        if comparison.rows:
            results = comparison.results()
            print(json.dumps(results) if args.json else markdown(results))
            if args.plot and panels(results):
                pareto.plot(args.plot, results["model"], panels(results))
    if failed:
        raise LutraError(f"failed, see above: {', '.join(failed)}")
    return 0


# ---- files ---------------------------------------------------------------------------------


def given(args: argparse.Namespace) -> tuple[list[Path], Path | None]:
    """The files named on the command line, the base first, and the base."""
    unused = argparse.ArgumentParser()
    convert.add_options(unused.add_argument)
    for name, default in vars(unused.parse_args([])).items():
        if getattr(args, name) != default:
            raise LutraError(f"--{name.replace('_', '-')} is for converting, and needs --types")
    files = {}
    for path in map(Path, (*([args.base] if args.base else []), *args.sources)):
        if path.is_dir():
            raise LutraError(f"{path}: is a directory; choose with --types what to convert it to")
        if not path.is_file():
            raise LutraError(f"{path}: no such file")
        files.setdefault(path.resolve(), path)
    return list(files.values()), args.base


def converted(args: argparse.Namespace, failed: dict[str, str]) -> tuple[list[Path], Path]:
    """The files of the types, made where they are not there yet, the base first, and the base."""
    if len(args.sources) > 1:
        raise LutraError(f"--types converts one model, not {len(args.sources)}; see --help")
    if not args.out_dir.is_dir():
        raise LutraError(f"{args.out_dir}: no such directory; create it or choose another --out-dir")
    source = args.sources[0]
    base = args.base or (Path(source) if Path(source).is_file() else None)
    if not base:
        base = args.out_dir / f"{convert.source_name(source)}-f16.gguf"
        args.types = list(dict.fromkeys(["f16", *args.types]))
    conversions = [conversion(args, source, kind) for kind in args.types]
    missing = [c for c in conversions if not is_made(c)]
    for i, job in enumerate(missing, 1):
        say(f"converting {i} of {len(missing)}: {job.output}")
        with noting(failed, job.output, fatal=job.output == base):
            convert.run(job)
    files = dict.fromkeys([base, *(c.output for c in conversions)])
    return [path for path in files if str(path) not in failed], base


def conversion(args: argparse.Namespace, source: str, kind: str) -> argparse.Namespace:
    """The arguments of ``lutra convert`` for one type."""
    parser = argparse.ArgumentParser()
    convert.add_arguments(parser)
    output = args.out_dir / f"{convert.source_name(source)}-{kind}.gguf"
    own = vars(parser.parse_args([source, "--type", kind, "-o", str(output)]))
    return argparse.Namespace(**own | {name: value for name, value in vars(args).items() if name in own})


def is_made(job: argparse.Namespace) -> bool:
    """Whether the output is there. LutraError when it is, but not as ``lutra convert`` would make it now."""
    from gguf_tools.reader import GGUFFile

    path, source = job.output, Path(job.source)
    if not path.exists():
        return False
    if source.exists() and path.samefile(source):
        return True
    wanted = argparse.Namespace(**vars(job))
    convert.complete(wanted)
    weights = source.glob("*.safetensors") if source.is_dir() else [source]
    inputs = [*weights, wanted.imatrix, wanted.calibration]
    changed = [p for p in inputs if p and p.exists() and p.stat().st_mtime > path.stat().st_mtime]
    options = shlex.join(convert.options(wanted))
    if GGUFFile(path).get(convert.OPTIONS_KEY) != options:
        reason = f"is there, but was not made with '{options}'"
    elif changed:
        reason = f"is older than {changed[0]}"
    else:
        say(f"already there: {path}")
        return True
    raise LutraError(f"{path}: {reason}; delete it or choose another --out-dir")


def require_one_model(files: Sequence[Path]) -> None:
    """Raise LutraError when two files have different vocabularies; an unreadable one fails in its turn."""
    vocabularies = {}
    for path in files:
        with contextlib.suppress(LutraError):
            vocabularies[path] = quality.vocabulary(path)
    for path, tokens in vocabularies.items():
        first = next(iter(vocabularies))
        if tokens != vocabularies[first]:
            raise LutraError(f"{path} and {first} have different vocabularies; compare files of one model")


# ---- measuring -----------------------------------------------------------------------------


@dataclass
class Comparison:
    """Files, the base first if there is one, what to measure of each, and the results so far."""

    files: Sequence[Path]
    base: Path | None
    text: quality.Text | None
    questions: Path | None
    asked: Sequence[tuple[str, str]]  # what is in ``questions``
    speed: bool
    threads: int
    failed: dict[str, str]  # reason by file
    rows: list[dict[str, Any]] = field(default_factory=list)

    def measure(self) -> None:
        """Measure every file. One that fails is noted; without the base there is nothing to compare with."""
        with contextlib.ExitStack() as stack:
            for i, path in enumerate(self.files, 1):
                say(f"measuring {i} of {len(self.files)}: {path}")
                with noting(self.failed, path, fatal=path == self.base):
                    row = describe(path)
                    if self.asked:
                        row |= quality.ask(path, self.asked, self.threads)
                    if self.text:
                        row |= self._predict(path, self.text, stack)
                    if self.speed:
                        row |= bench.speed(path, self.threads)
                    self.rows.append(row)

    def _predict(self, path: Path, text: quality.Text, stack: contextlib.ExitStack) -> dict[str, Any]:
        if not self.base:
            return quality.perplexity(path, text, self.threads)
        if path == self.base:  # computed once, kept on disk for all others
            self._logits, results = stack.enter_context(quality.predictions(path, text, self.threads))
            return results
        return quality.divergence(path, text, self._logits, self.threads)

    def results(self) -> dict[str, Any]:
        """All that is known, as ``--json`` prints it; the files by size, the base last."""
        rows = sorted(self.rows, key=lambda row: (row["file"] == str(self.base), row["bytes"]))
        model, labels = names([row["file"] for row in rows])
        results: dict[str, Any] = {
            "model": model,
            "base": self.base and str(self.base),
            "machine": machine() | {"threads": self.threads},
        }
        if self.text:
            chunks = rows[0]["tokens"] // self.text.predicted
            results["text"] = {"file": str(self.text.path), "ctx": self.text.ctx, "chunks": chunks}
        if self.questions:
            results["questions"] = {"file": str(self.questions), "total": len(self.asked)}
        if self.speed:
            results["speed"] = {"prompt": bench.PROMPT, "generated": bench.GENERATED, "runs": bench.RUNS}
        files = [{"label": label} | row for label, row in zip(labels, rows, strict=True)]
        return results | {"files": files, "failed": self.failed}


def describe(path: Path) -> dict[str, Any]:
    """What a file's header says; ``options``: of the ``lutra convert`` that made it."""
    from gguf_tools.formats.family import CB_FORMATS
    from gguf_tools.inspect import read_info

    info = read_info(path)
    options = info.metadata.get(convert.OPTIONS_KEY)
    return {
        "file": str(path),
        "options": options and options.value,
        "codebook": any(tensor.type in CB_FORMATS for tensor in info.tensors),
        "bytes": info.bytes,
        "bpw": info.bpw,
    }


def machine() -> dict[str, str]:
    """The CPU, and the kernels of ours that it runs."""
    chosen = dict.fromkeys(kernel.set for kernel in kernels.kernels() if kernel.chosen)
    return {"cpu": cpu(), "kernels": ", ".join(chosen), "version": __version__}


def cpu() -> str:
    """Name of this machine's processor or board, as far as Linux knows one."""
    with contextlib.suppress(OSError):
        return Path("/proc/device-tree/model").read_text().strip("\0\n ")
    found = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return f"{found[1]} ({platform.machine()})" if found else platform.machine()


@contextlib.contextmanager
def noting(failed: dict[str, str], path: Path, *, fatal: bool) -> Iterator[None]:
    """Go on after an error with a file, unless it is ``fatal``, and note it."""
    try:
        yield
    except (LutraError, OSError) as error:
        if fatal:
            raise
        failed[str(path)] = " ".join(str(error).split())
        say(f"{path} failed: {failed[str(path)]}")


def say(message: str) -> None:
    """One line of progress on standard error."""
    print(f"lutra: {message}", file=sys.stderr)


# ---- showing -------------------------------------------------------------------------------


def names(files: Sequence[str]) -> tuple[str, list[str]]:
    """The model's name and a short label for each file: model-cb4.gguf and model-f16.gguf are cb4 and f16."""
    stems = [Path(file).name.removesuffix(".gguf") for file in files]
    if len(stems) == 1:
        return stems[0], stems
    if len(set(stems)) < len(stems):
        return "Comparison", list(files)
    parts = [re.split(r"(?<=[-.])", stem)[:-1] for stem in stems]
    same = itertools.takewhile(lambda part: len(set(part)) == 1, zip(*parts, strict=False))
    model = "".join(part[0] for part in same)
    return model[:-1] or stems[-1], [stem.removeprefix(model) for stem in stems]


def markdown(results: dict[str, Any]) -> str:
    """The results with everything one needs to know to repeat them; columns only for what was measured."""
    return f"## {results['model']}\n\n{conditions(results)}\n\n{table(results)}"


def conditions(results: dict[str, Any]) -> str:
    """How it was measured, a list."""
    lines = []
    if text := results.get("text"):
        predicted = f"{results['files'][0]['tokens']} predicted tokens"
        line = f"text: {Path(text['file']).name}, {text['chunks']} chunks of {text['ctx']}, {predicted}"
        if results["base"]:
            line += f"; KL divergence and same top token against {Path(results['base']).name}"
        lines.append(f"{line}; ± standard error")
    if questions := results.get("questions"):
        lines.append(f"answers: {Path(questions['file']).name}, greedy, exactly equal")
    if speed := results.get("speed"):
        lines.append(
            f"speed: llama-bench, a prompt of {speed['prompt']} tokens, {speed['generated']} generated; "
            f"± standard deviation of {speed['runs']} runs"
        )
    made: dict[str, list[str]] = {}
    for row in results["files"]:
        if row["options"]:
            made.setdefault(re.sub(r"--type \S+ ?", "", row["options"]), []).append(row["label"])
    lines += [f"{', '.join(labels)}: lutra convert {options}" for options, labels in made.items()]
    on = results["machine"]
    threads = f"{on['threads']} thread" + "s" * (on["threads"] > 1)
    lines.append(f"machine: {on['cpu']}, {threads}, lutra {on['version']}, kernels {on['kernels']}")
    return "\n".join(f"- {line}" for line in lines)


def table(results: dict[str, Any]) -> str:
    """A Markdown table of the files, padded so that it reads well as text too."""
    columns: dict[str, Callable[[dict[str, Any]], str]] = {
        "model": lambda r: r["label"],
        "size, MiB": lambda r: f"{r['bytes'] / 2**20:.1f}",
        "bits per weight": lambda r: f"{r['bpw']:.2f}",
        # More digits than the error has: on the same text, models err together.
        "perplexity": lambda r: f"{r['ppl']:.2f} ± {r['ppl_error']:.2f}",
        "KL divergence": lambda r: plus_minus(r["kld_mean"], r["kld_error"]),
        "same top token": lambda r: f"{r['same_top']:.1f} %",
        "exact answers": lambda r: f"{r['exact']} of {r['total']}",
        "prompt, tokens/s": lambda r: plus_minus(r["prompt_tps"], r["prompt_sd"]),
        "generation, tokens/s": lambda r: plus_minus(r["generation_tps"], r["generation_sd"]),
    }

    def cell(show: Callable[[dict[str, Any]], str], row: dict[str, Any]) -> str:
        try:
            return show(row)
        except KeyError:  # not measured
            return ""

    grid = [[name, *(cell(show, row) for row in results["files"])] for name, show in columns.items()]
    grid = [column for column in grid if any(column[1:])]
    widths = [max(map(len, column)) for column in grid]
    lines = []
    for cells in zip(*grid, strict=True):
        padded = [cells[0].ljust(widths[0])]
        padded += [cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True)]
        lines.append(f"| {' | '.join(padded)} |")
    rule = ["-" * (widths[0] + 2), *("-" * (width + 1) + ":" for width in widths[1:])]
    return "\n".join([lines[0], f"|{'|'.join(rule)}|", *lines[1:]])


def plus_minus(value: float, error: float) -> str:
    """Both to two digits of the error, as "12.34 ± 0.56"; whole numbers at least, six decimals at most."""
    decimals = 1 - math.floor(math.log10(error)) if error > 0 else 2
    decimals = min(max(decimals, 0), 6)
    return f"{value:.{decimals}f} ± {error:.{decimals}f}"


def panels(results: dict[str, Any]) -> list[pareto.Panel]:
    """What ``--plot`` draws: KL divergence, with a base, and perplexity."""
    base = next((row for row in results["files"] if row["file"] == results["base"]), {})
    rows = [row for row in results["files"] if row is not base]

    def points(key: str, error: str | None = None) -> list[pareto.Point]:
        return [
            pareto.Point(
                row["label"], row["bytes"] / 2**20, row[key], row[error] if error else 0, row["codebook"]
            )
            for row in rows
            if row.get(key, 0) > 0
        ]

    # The error of a perplexity is that of the text, and the same for every file.
    found = [
        pareto.Panel("KL divergence", points("kld_mean", "kld_error")),
        pareto.Panel("perplexity", points("ppl"), base.get("ppl")),
    ]
    return [panel for panel in found if panel.points]
