# SPDX-License-Identifier: MIT
"""``lutra compare``: the table people publish of a model's files or types: size, quality and speed."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

from gguf_tools.errors import LutraError
from gguf_tools.formats.catalog import RECIPES
from gguf_tools.sources.hub import local_gguf
from lutra.cli.arguments import positive
from lutra.cli.convert import add_options as add_conversion_options
from lutra.cli.convert import options_of, summary
from lutra.cli.eval import add_options as add_measuring_options
from lutra.cli.eval import text_of
from lutra.console import say
from lutra.runtime.threads import default_threads

if TYPE_CHECKING:
    from lutra.conversion.options import ConversionOptions

EPILOG = """\
SRC are GGUF files of one model, or ORG/MODEL:TYPE of the hub. With --types it is what 'lutra convert' takes:
the files are made, through the same code and with the same options, and SRC in F16 is the base. Files that
are there already are taken when they were made from SRC with the same options. Codebooks are calibrated,
other types are not: for a fair table add '--calibration default --imatrix F', F made by llama-imatrix from
the same text.

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
    add_measuring_options(measuring)
    measuring("--no-speed", dest="speed", action="store_false", help="do not measure speed")
    measuring("--threads", type=positive, metavar="N", help="default: the fast physical cores")
    showing = parser.add_argument_group("showing, instead of or beside a Markdown table").add_argument
    showing("--json", action="store_true", help="print the results as JSON")
    showing("--plot", type=Path, metavar="FILE.png", help="draw quality against size; or FILE.svg")
    converting = parser.add_argument_group("converting").add_argument
    converting("--types", type=type_list, metavar="T,...", help="types to convert SRC to, e.g. cb4,cb3,q4_k")
    converting(
        "--out-dir",
        type=Path,
        default=Path(),
        metavar="DIR",
        help="where they go, created if need be (default: .)",
    )
    add_conversion_options(converting)


def type_list(text: str) -> list[str]:
    """An argument of types with commas between them."""
    if types := [word.strip().lower() for word in text.split(",") if word.strip()]:
        return list(dict.fromkeys(types))
    raise argparse.ArgumentTypeError("no type in the list")


def run(args: argparse.Namespace) -> int:
    """Convert what is to be converted, measure every file, and show it all."""
    from lutra.measure import pareto
    from lutra.measure.comparison import Comparison, require_one_model
    from lutra.measure.questions import read_questions
    from lutra.measure.tables import markdown, panels

    text = text_of(args)
    asked = read_questions(args.questions) if args.questions else []
    if args.plot:
        if not text:
            raise LutraError("--plot draws perplexity or KL divergence against size, and needs --text")
        if not args.plot.absolute().parent.is_dir():
            raise LutraError(f"{args.plot.parent}: no such directory; create it or choose another for --plot")
        pareto.new_figure(1)  # better to miss matplotlib now than after hours
    threads = args.threads or default_threads()
    failed: dict[str, str] = {}
    files, base = converted(args, failed) if args.types else given(args)
    require_one_model(files)
    comparison = Comparison(files, base, text, args.questions, asked, args.speed, threads, failed)
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
    add_conversion_options(unused.add_argument)
    for name, default in vars(unused.parse_args([])).items():
        if getattr(args, name) != default:
            raise LutraError(f"--{name.replace('_', '-')} is for converting, and needs --types")
    files: dict[Path, Path] = {}
    base = local_gguf(args.base) if args.base else None
    for path in [*([base] if base else []), *map(local_gguf, args.sources)]:
        if path.is_dir():
            raise LutraError(f"{path}: is a directory; choose with --types what to convert it to")
        if not path.is_file():
            raise LutraError(f"{path}: no such file")
        files.setdefault(path.resolve(), path)
    return list(files.values()), base


def converted(args: argparse.Namespace, failed: dict[str, str]) -> tuple[list[Path], Path]:
    """The files of the types, made where they are not there yet, the base first, and the base."""
    from lutra.conversion.options import source_name
    from lutra.conversion.pipeline import convert
    from lutra.measure.comparison import noting

    if len(args.sources) > 1:
        raise LutraError(f"--types converts one model, not {len(args.sources)}; see --help")
    source, types = args.sources[0], args.types
    name = source_name(source)
    base = local_gguf(args.base) if args.base else (Path(source) if Path(source).is_file() else None)
    if not base:
        base = args.out_dir / f"{name}-f16.gguf"
        types = list(dict.fromkeys(["f16", *types]))
    wanted = {args.out_dir / f"{name}-{kind}.gguf": _options(args, kind) for kind in types}
    args.out_dir.mkdir(parents=True, exist_ok=True)
    missing = [path for path, options in wanted.items() if not is_made(path, source, options)]
    for i, path in enumerate(missing, 1):
        say(f"converting {i} of {len(missing)}: {path}")
        started = time.monotonic()
        with noting(failed, path, fatal=path == base):
            result = convert(source, wanted[path], path)
            say(summary(result, time.monotonic() - started))
            if result.through_f16 and path == base:
                source = str(base)
    files = dict.fromkeys([base, *wanted])
    return [path for path in files if str(path) not in failed], base


def _options(args: argparse.Namespace, kind: str) -> ConversionOptions:
    """What the arguments ask for; what is for codebooks does not concern types without them."""
    if kind not in RECIPES or not RECIPES[kind].base.is_codebook:
        args = argparse.Namespace(**(vars(args) | {"codebook": "learned", "two_planes": None}))
    return options_of(args, kind)


def is_made(path: Path, source: str, options: ConversionOptions) -> bool:
    """Whether the output is there. Raises LutraError when it is, but not as ``convert`` would make it now."""
    from gguf_tools.reader import GGUFFile
    from lutra.conversion.options import OPTIONS_KEY

    origin = Path(source)
    if not path.exists():
        return False
    if origin.exists() and path.samefile(origin):
        return True
    weights = origin.glob("*.safetensors") if origin.is_dir() else [origin]
    inputs = [*weights, options.imatrix, options.calibration_text]
    changed = [p for p in inputs if p and p.exists() and p.stat().st_mtime > path.stat().st_mtime]
    # Without a tensor that can be a codebook nothing was calibrated.
    records = [options.record(calibrated=calibrated) for calibrated in (True, False)]
    with GGUFFile(path) as file:
        record = file.get(OPTIONS_KEY)
    if record not in records:
        reason = f"is there, but was not made with '{records[0]}'"
    elif changed:
        reason = f"is older than {changed[0]}"
    else:
        say(f"already there: {path}")
        return True
    raise LutraError(f"{path}: {reason}; delete it or choose another --out-dir")
