# SPDX-License-Identifier: MIT
"""``lutra.convert``: from a source to a file, by ourselves or, for upstream's types, with llama-quantize."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from math import isnan, log10, nan
from pathlib import Path

import numpy as np
from gguf import GGUFValueType
from gguf.gguf_writer import GGUFValue
from numpy.typing import NDArray

from gguf_tools.errors import LutraError
from gguf_tools.formats.catalog import FLOATS, RECIPES
from gguf_tools.formats.family import CB_FORMATS
from gguf_tools.inspect import read_info
from gguf_tools.reader import type_id, type_name
from gguf_tools.sources.gguf import good_types
from gguf_tools.sources.open import Scratch, open_source
from gguf_tools.sources.tensors import Source, SourceTensor
from lutra.console import progress, say, warn
from lutra.conversion import llama_quantize, output_gradients, sensitivity, tune, workdir
from lutra.conversion.boards import BOARDS, HERE, Board
from lutra.conversion.calibrate import calibrate, copy_bytes, dequantized, matmul_order
from lutra.conversion.corpus import Corpus, Pieces, own_share
from lutra.conversion.costs import Costs
from lutra.conversion.divergence import Divergence, divergence
from lutra.conversion.encode import Matrix, bipolar, codebook, encode_exactly
from lutra.conversion.footprint import require_memory
from lutra.conversion.here import measure_here
from lutra.conversion.imports import take_over, taken_over
from lutra.conversion.jobs import Jobs
from lutra.conversion.options import OPTIONS_KEY, TOKENS_KEY, ConversionOptions
from lutra.conversion.output import (
    metadata,
    require_space,
    require_writable,
    temporary,
    write,
    write_floats,
)
from lutra.conversion.output_gradients import OutputGradients
from lutra.conversion.plan import Planned, Rules, describe, give_planes, is_tied, plan
from lutra.conversion.search import Search, possible
from lutra.conversion.tuning_memory import checkpoint_bytes
from lutra.conversion.weighting import Importance, read_importance, warn_uncovered
from lutra.conversion.workdir import WorkDirectory
from lutra.runtime import crash
from lutra.runtime.model import Model

UNCALIBRATED_KEY = (
    "lutra.convert.uncalibrated"  # names of codebook tensors that the calibration did not reach
)


AIMS = "aims.gguf"  # in the work directory of a target: a copy in which calibration keeps what it rounds
SECONDS = "calibration seconds"  # in the work directory: what all of it takes


@dataclass(frozen=True)
class ConvertedTensor:
    """What became of a tensor. ``loss``, if calibrated: the squared error of its outputs relative to them.

    ``exact``: it was taken over, so that it stands for the very same numbers.
    """

    name: str
    type: str
    weights: int
    bytes: int
    loss: float | None
    exact: bool = False


@dataclass(frozen=True)
class Result:
    """A file that was made: its size in bytes, and bits per weight over all tensors.

    ``through_f16``: llama.cpp's converter read the source, so an F16 file of it is as good and saves time.
    """

    path: Path
    bytes: int
    bpw: float
    tensors: tuple[ConvertedTensor, ...]
    through_f16: bool = False

    def report(self) -> dict[str, object]:
        """For JSON: what ``lutra convert --report`` writes."""
        return {"tensors": [asdict(tensor) for tensor in self.tensors]}


def convert(source: str | Path, options: ConversionOptions, output: str | Path) -> Result:
    """Convert a model to a GGUF.

    ``source`` is a Hugging Face directory or id, or a GGUF of F32, F16, BF16 or Q8_0, of other types if that
    is allowed. Nothing is left at
    ``output`` when it fails; finished codebooks are kept beside it, and the same call goes on from there.
    Progress goes to standard error. Raises LutraError with the cause and the next step.
    """
    source = str(source)
    output = require_writable(Path(output), source)
    losses: Mapping[str, float] = {}
    exact: dict[str, float] = {}  # the losses of what was taken over
    with contextlib.ExitStack() as stack:
        opened = _open(source, options, output, stack, options.least_bytes)
        if options.is_own:
            if options.tune:
                tune.require(opened, options.device)
            convert_one = _convert_searched if options.target else _convert_planned
            planned, losses = convert_one(opened, options, output)
            exact = dict.fromkeys((p.name for p in planned if p.is_lossless), 0.0)
            losses = {**losses, **exact}
        else:
            _note_losses(opened, opened.tensors)
            gguf = stack.enter_context(_float_gguf(opened, options, output))
            result = stack.enter_context(temporary(output, "result"))
            words = _llama_words(opened, options)
            kind = str(options.type)
            llama_quantize.quantize(gguf, result, kind, words, options.threads, len(opened.tensors))
            result.replace(output)
    info = read_info(output)
    tensors = tuple(
        ConvertedTensor(
            t.name, type_name(t.type), t.weights, t.nbytes, losses.get(t.name), exact=t.name in exact
        )
        for t in info.tensors
    )
    return Result(output, info.bytes, info.bpw, tensors, opened.gguf is not None and opened.path.is_dir())


def preview(source: str | Path, options: ConversionOptions, output: str | Path) -> str:
    """What ``convert`` would make, as a table; nothing is written but a temporary file beside ``output``."""
    source, output = str(source), Path(output)
    with contextlib.ExitStack() as stack:
        headers = options.is_own and not options.target  # llama-quantize and targets want numbers
        opened = _open(source, options, output, stack, lambda weights: 0, headers)
        if options.is_own:
            calibrated = options.calibration_text is not None
            if not options.target:
                chosen, description = plan(opened.tensors, options.rules), ""
            else:
                beside = output.with_name(f"{output.name}.plan")  # a conversion's own work stays
                work = stack.enter_context(
                    WorkDirectory(beside, fingerprint(opened, [], options), lasting=False)
                )
                found, jobs = _search(work, opened, options, beside), Jobs(options.threads, options.cluster)
                first = found.planned()
                made, _, measured = _round(work, found, first, jobs, beside)
                _learn(work, found, first, made)
                found.judge(first, measured)
                chosen = found.planned()
                description = found.describe(chosen) + "\n"
            is_there = not headers or Path(source).exists()  # on the hub there may be names and shapes only
            planned = _completed(chosen, options) if is_there else give_planes(chosen, options.rules)
            _note_losses(opened, [p.source for p in planned if not p.is_lossless])
            read_importance(planned, options.imatrix)
            return "\n".join(filter(None, (description, describe(planned, options.threads, calibrated))))
        _note_losses(opened, opened.tensors)
        gguf = stack.enter_context(_float_gguf(opened, options, output))
        return llama_quantize.preview(gguf, str(options.type), _llama_words(opened, options))


def _open(
    source: str,
    options: ConversionOptions,
    output: Path,
    stack: contextlib.ExitStack,
    beside: Callable[[int], int],
    headers: bool = False,
) -> Source:
    """The source until ``stack`` is closed; ``beside`` is ``Scratch``'s, ``headers`` ``open_source``'s."""
    path = output.with_name(f".{output.name}.converted.gguf")
    stack.enter_context(crash.removing(path))
    scratch = Scratch(path, beside)
    return stack.enter_context(
        open_source(source, scratch, requantize=options.allow_requantize, headers=headers)
    )


def _note_losses(source: Source, tensors: Sequence[SourceTensor]) -> None:
    """Say that a GGUF of quantized tensors, if it is one, is not as good as the original."""
    kinds = sorted({tensor.dtype for tensor in tensors}.difference(good_types(source.architecture)))
    if kinds and source.path.is_file():
        warn(
            f"{source.path} is quantized already ({', '.join(kinds)}): what it lost stays lost, and the loss "
            "of this conversion comes on top"
        )


# ---- upstream's types ----------------------------------------------------------------------


@contextlib.contextmanager
def _float_gguf(source: Source, options: ConversionOptions, output: Path) -> Iterator[Path]:
    """The source if it is in a GGUF, else a temporary one with no precision lost."""
    stored = {tensor.dtype for tensor in source.tensors if not tensor.keeps_f32}
    has_codebooks = any(type_id(kind) in CB_FORMATS for kind in stored)  # which llama-quantize does not read
    if source.gguf and not has_codebooks:
        yield source.gguf
        return
    kind = "f16" if stored == {"F16"} else "bf16" if stored == {"BF16"} else "f32"
    with temporary(output, "source") as path:
        write_floats(path, source, kind, options.threads, options.record())
        yield path


def _llama_words(source: Source, options: ConversionOptions) -> list[str]:
    requantize = any(type_id(tensor.dtype) not in FLOATS for tensor in source.tensors)
    keys = {OPTIONS_KEY: options.record()}
    return llama_quantize.arguments(options.llama_words(), options.imatrix, keys, requantize)


# ---- our own types -------------------------------------------------------------------------


Made = tuple[Sequence[Planned], Mapping[str, float]]
"""The type of every tensor, and the losses of calibrated ones by name."""


def _completed(planned: list[Planned], options: ConversionOptions) -> list[Planned]:
    """``planned`` with what can be taken over, and the planes that are asked for."""
    has_size = options.target is not None and options.target.bound is None
    taken = take_over(planned, options.rules, options.threads, may_grow=not has_size)
    return give_planes(taken, options.rules)


def _convert_planned(source: Source, options: ConversionOptions, output: Path) -> Made:
    """Write ``output`` with the types of the rules."""
    planned = _completed(plan(source.tensors, options.rules), options)
    _note_origin(source, planned)
    if not any(p.fmt for p in planned):
        _note_nothing_to_tune(options)
        _write_stock(source, planned, options, output)
        return planned, {}
    if options.tune:  # before any work: is there enough memory?
        tune.is_frugal(source, {p.name: p.fmt for p in planned}, tune.device_of(options.device))
    with WorkDirectory(output, fingerprint(source, planned, options)) as work:
        jobs = Jobs(options.threads, options.cluster)
        if options.tune:
            require_space(output, _space_to_tune(source, planned) - work.nbytes())
        path = work.temporary("untuned.gguf") if options.tune else output
        losses = _make(work, source, planned, options, jobs, output, path)
        if options.tune:
            _tune(work, path, source, [p for p in planned if p.fmt], options, output)
    return planned, losses


def _space_to_tune(source: Source, planned: Sequence[Planned]) -> int:
    """Bytes on the disk: finished tensors, the file before and after tuning, the steps' state, and an F16
    copy.
    """
    is_f16 = source.gguf and all(t.dtype == "F16" for t in source.tensors if not t.keeps_f32)
    copy = 0 if is_f16 else 2 * sum(p.weights for p in planned)
    state = sum(checkpoint_bytes(p.weights, p.fmt) for p in planned if p.fmt)
    return 3 * sum(p.nbytes for p in planned) + state + copy


def _note_nothing_to_tune(options: ConversionOptions) -> None:
    if options.tune:
        say("no tensor became a codebook: there is nothing to tune")


def _convert_searched(source: Source, options: ConversionOptions, output: Path) -> Made:
    """Write ``output`` with the types that meet the target. Raises LutraError when it cannot be met."""
    with WorkDirectory(output, fingerprint(source, [], options)) as work:
        found, jobs = _search(work, source, options, output), Jobs(options.threads, options.cluster)
        best = work.path / "best.gguf"  # kept, as what comes after it may be worse
        for before in work.known("rounds", []):
            chosen, measured = found.planned(), Divergence(**before) if before else None
            if not found.rounds:
                _learn(work, found, chosen, best)
            found.judge(chosen, measured)
        while not found.is_met:
            chosen = found.planned()
            made, losses, measured = _round(work, found, chosen, jobs, output)
            if not found.rounds:
                _learn(work, found, chosen, made)
            if found.judge(chosen, measured):
                made.replace(best)
                work.keep("losses", losses)
            if len(found.rounds) == 1:  # what comes now is calibrated behind other types
                work.drop()
            work.keep("rounds", [asdict(measured) if measured else None for measured in found.rounds])
        planned, losses = _completed(list(found.best), options), work.known("losses", {})
        _note_cache(found, best)
        codebooks = [p for p in planned if p.fmt]
        if options.tune and codebooks:
            _tune(work, best, source, codebooks, options, output)
        else:
            _note_nothing_to_tune(options)
            best.replace(output)
    return planned, losses


def _round(
    work: WorkDirectory, found: Search, chosen: list[Planned], jobs: Jobs, output: Path
) -> tuple[Path, Mapping[str, float], Divergence | None]:
    """A file with the types of a plan, the losses of its calibrated tensors, and the file's own, where there
    is text aside.
    """
    options, made = found.options, work.temporary("made.gguf")
    say(f"round {len(found.rounds) + 1}\n\n{found.describe(chosen)}\n")
    planned = _completed(chosen, options)
    if not found.rounds:
        _note_origin(found.source, planned)
        aims = work.beside_tensors(AIMS)
        if not aims.exists():
            require_space(
                output, 2 * found.model.stat().st_size
            )  # this copy and the one that is measured with
            partial = work.temporary("aims.partial")
            shutil.copyfile(found.model, partial)
            partial.replace(aims)
    work.drop_other_types({p.name: p.nbytes for p in planned if p.fmt})
    losses = _make(work, found.source, planned, options, jobs, output, made)
    if not found.aside:
        return made, losses, None
    measured = divergence(found.model, made, found.aside, options.threads)
    predicted = f"predicted {found.costs.total(chosen):.5f}, " if found.rounds else ""
    say(f"{predicted}measured on text kept aside: {measured}")
    return made, losses, measured


def _learn(work: WorkDirectory, found: Search, chosen: Sequence[Planned], made: Path) -> None:
    """Tell the search what rounding costs in its first file; what ``work`` has is not measured again."""
    codebooks = [p for p in _completed(list(chosen), found.options) if p.fmt and not p.exact]

    def rounded(p: Planned) -> Callable[[], NDArray[np.float16]]:
        return lambda: dequantized(p, work.load(p.name)[0])

    def cost() -> sensitivity.Measured:
        scratch = work.temporary("scratch.gguf")
        matrices = {p.name: rounded(p) for p in codebooks}
        costs = sensitivity.measure(
            found.model, made, scratch, work.path / AIMS, matrices, found.pieces, found.options.threads
        )
        scratch.unlink()
        return costs

    if codebooks:
        learned = sensitivity.Measured(*work.cached("search", cost))
        found.how, found.costs = learned.how, Costs.learned(chosen, learned)
    (work.path / AIMS).unlink(missing_ok=True)


def _note_cache(found: Search, path: Path) -> None:
    """Say whether keys and values may be rounded when the file is used: no file says how they are kept."""
    bound = found.target.bound
    if bound is None:
        return
    try:
        lost = divergence(found.model, path, found.aside, found.options.threads, cache="q8_0").loss
    except LutraError:  # heads of other sizes
        return
    what = "may be q8_0 (--ctk q8_0 --ctv q8_0)" if lost <= bound else "should stay f16"
    say(f"keys and values in the cache {what}: with q8_0 the file loses {lost:.5f}, of {bound:.5f}")


def _note_origin(source: Source, planned: Sequence[Planned]) -> None:
    """Say what of the source is quantized already, and what of that loses nothing more."""
    _note_losses(source, [p.source for p in planned if not p.is_lossless])
    if taken := taken_over(planned):
        say(taken)


def _search(work: WorkDirectory, source: Source, options: ConversionOptions, output: Path) -> Search:
    """A search that knows nothing yet."""
    assert options.target
    found = Search(source, options)
    found.refuse_what_cannot_be()
    if options.board == HERE:
        kinds = list({p.type: None for t in source.tensors if not t.keeps_f32 for p in possible(t, found)})
        speed = work.temporary("speed.gguf")
        per_weight, per_byte = work.cached("speed", lambda: measure_here(kinds, options.threads, speed))
        found.board = Board(HERE, per_weight, per_byte)
    elif options.board:
        found.board = BOARDS[options.board]
    found.model = _f16_model(work, source, [], options, output)
    with Model(found.model, threads=1, n_ctx=32, weights=False) as tokenizer:
        corpus = Corpus(work, source, options, tokenizer, lambda: found.model)
        limit = corpus.limit(copy_bytes(found.model, corpus.length))
        found.pieces, found.aside = corpus.to_measure(limit)
    if options.target.bound and not found.aside:
        raise LutraError(
            f"{options.text}: too short to keep a part aside for {options.target.option}; it needs "
            f"two sequences of {corpus.length} tokens"
        )
    return found


def _write_stock(source: Source, planned: Sequence[Planned], options: ConversionOptions, path: Path) -> None:
    """Write ``path``, which has no codebooks."""
    importance = read_importance(planned, options.imatrix)
    file_type = None if options.target else RECIPES[str(options.type)].base.file_type
    values = metadata(source, planned, options.record(calibrated=False), file_type)
    write(path, source, planned, values, options.threads, importance)


def _make(
    work: WorkDirectory,
    source: Source,
    planned: Sequence[Planned],
    options: ConversionOptions,
    jobs: Jobs,
    output: Path,
    path: Path,
) -> Mapping[str, float]:
    """Write ``path``, on the way to ``output``; returns the losses of calibrated tensors by name."""
    codebooks = [p for p in planned if p.fmt]
    if not codebooks:
        _write_stock(source, planned, options, path)
        return {}
    importance = read_importance(planned, options.imatrix)
    file_type = None if options.target else RECIPES[str(options.type)].base.file_type
    _encode_unlearned(work, planned, codebooks, options, output)
    if options.calibration_text:
        _calibrate(work, source, codebooks, options, jobs, output)
    _encode(work, planned, codebooks, importance, options, jobs, output)
    losses = {p.name: work.load(p.name)[1] for p in codebooks}
    uncalibrated = [p for p in codebooks if isnan(losses[p.name])]
    values = metadata(source, planned, options.record(), file_type)
    if work.tokens:
        values[TOKENS_KEY] = GGUFValue(work.tokens, GGUFValueType.UINT32)
    if options.calibration_text and uncalibrated:
        _note_uncalibrated(uncalibrated, values, options)
    warn_uncovered([p for p in planned if isnan(losses.get(p.name, nan))], options.imatrix, importance)
    write(path, source, planned, values, options.threads, importance, work)
    return {name: loss for name, loss in losses.items() if not isnan(loss)}


def _encode_unlearned(
    work: WorkDirectory,
    planned: Sequence[Planned],
    codebooks: Sequence[Planned],
    options: ConversionOptions,
    output: Path,
) -> None:
    """Finish in ``work`` those of ``codebooks`` whose tables are there: grids and odd integers."""
    left = [p for p in codebooks if p.name not in work and (p.exact or options.is_bipolar)]
    if not left:
        return
    require_space(output, sum(p.nbytes for p in (*planned, *left)))
    with progress(sum(p.weights for p in left), "w") as bar:
        for p in left:
            assert p.fmt
            encode = encode_exactly if p.exact else bipolar
            parts = encode(p.name, Matrix.of(p), p.fmt, options.threads)
            work.save(p.name, parts, loss=0.0 if p.exact else nan)
            bar.set_postfix_str(p.name)
            bar.update(p.weights)


def _encode(
    work: WorkDirectory,
    planned: Sequence[Planned],
    codebooks: Sequence[Planned],
    importance: Importance,
    options: ConversionOptions,
    jobs: Jobs,
    output: Path,
) -> None:
    """Finish in ``work`` what calibration has left of ``codebooks``."""
    left = [p for p in codebooks if p.name not in work]
    require_space(output, sum(p.nbytes for p in (*planned, *left)))
    arguments = ((p.name, Matrix.of(p), p.fmt, importance.get(p.name), options.seed) for p in left)
    with progress(sum(p.weights for p in left), "w") as bar:
        for p, parts in zip(left, jobs.run(codebook, arguments), strict=True):
            work.save(p.name, parts, loss=nan)
            bar.set_postfix_str(p.name)
            bar.update(p.weights)


def _calibrate(
    work: WorkDirectory,
    source: Source,
    codebooks: Sequence[Planned],
    options: ConversionOptions,
    jobs: Jobs,
    output: Path,
) -> None:
    """Finish in ``work`` what the model multiplies by. Raises LutraError when it cannot be computed."""
    planned = {p.name: p for p in codebooks}
    if all(name in work for name in planned):
        return
    model = _f16_model(work, source, codebooks, options, output)
    with contextlib.ExitStack() as stack:
        try:
            tokenizer = stack.enter_context(Model(model, threads=1, n_ctx=32, weights=False))
            tokens = tokenizer.tokenize("The graph in short.")
            groups = matmul_order(model, set(planned), tokens, options.threads)
        except LutraError as error:
            raise LutraError(
                f"the model cannot be calibrated: {error}; --no-calibration quantizes it without"
            ) from None
        if not groups:
            names = ", ".join(planned)
            raise LutraError(
                f"nothing to calibrate, the model does not multiply by {names}; add --no-calibration"
            )
        corpus = Corpus(work, source, options, tokenizer, lambda: model)
        needed = copy_bytes(model, corpus.length)
        is_two_sided = _is_two_sided(source, codebooks, options)

        def require(sequences: int) -> None:
            require_memory(
                2 * needed(sequences), [[planned[name] for name in group] for group in groups],
                sequences * corpus.length, _experts_used(source),
                list(filter(output_gradients.READERS.search, planned)) if is_two_sided else (),
            )  # fmt: skip

        types = {name: p.fmt for name, p in planned.items()}
        given, own = corpus.to_calibrate(corpus.limit(needed), types, require)
        say(f"calibrating with {_described(given, own, options)}")
    pieces = given + own
    work.tokens = sum(map(len, pieces))
    left = [name for group in groups for name in group if name not in work]
    aims = sensitivity.Matrices(work.path / AIMS, writable=True) if (work.path / AIMS).exists() else None

    def aim(name: str, weights: NDArray[np.float16]) -> None:
        if aims:
            aims[name][:] = weights.reshape(-1)

    gradients = _gradients(work, source, pieces, options) if is_two_sided else None
    started = time.monotonic()
    with progress(sum(planned[name].weights for group in groups for name in group), "w") as bar:
        for p in calibrate(
            model, groups, planned, pieces, work, jobs, tied=is_tied(source.tensors),
            seed=options.seed, threads=options.threads, aims=aim, gradients=gradients,
        ):  # fmt: skip
            bar.set_postfix_str(f"{p.name} {_decibel(work.load(p.name)[1])}")
            bar.update(p.weights)
    weights, seconds = sum(planned[name].weights for name in left), time.monotonic() - started
    say(
        f"calibrated {weights / 1e6:.1f} M weights in {seconds:.0f} s, "
        f"{weights / 1e6 / seconds:.2f} M weights/s"
    )
    whole = sum(planned[name].weights for group in groups for name in group)
    work.number(SECONDS, lambda: seconds * whole / max(weights, 1))
    if model.parent == work.path and not options.target:
        model.unlink()


def _is_two_sided(source: Source, codebooks: Sequence[Planned], options: ConversionOptions) -> bool:
    """Whether there are gradients to calibrate with: torch is there for ``--tune``, and has room."""
    types = {p.name: p.fmt for p in codebooks}
    return options.tune and not tune.is_frugal(source, types, tune.device_of(options.device))


def _gradients(
    work: WorkDirectory, source: Source, pieces: Sequence[Sequence[int]], options: ConversionOptions
) -> OutputGradients:
    """What errors of outputs do to the predictions."""
    device = tune.device_of(options.device)

    def measured() -> Mapping[str, NDArray[np.float32]]:
        original = tune.load(source, device)
        with tune.reproducible(device):
            return output_gradients.measure(
                source, original, pieces,
                at_once=tune.BATCH[device.type], seed=options.seed, threads=options.threads,
            ).arrays()  # fmt: skip

    return OutputGradients.of(work.arrays_of("gradients", measured))


def _experts_used(source: Source) -> int:
    """How many experts of a mixture each token meets."""
    value = source.metadata.get(f"{source.architecture}.expert_used_count")
    return int(value.value) if value else 1


def _described(given: Pieces, own: Pieces, options: ConversionOptions) -> str:
    """So many tokens, of a text and of the model's own."""
    parts = [f"{sum(map(len, given))} tokens of {options.text}"] if given else []
    parts += [f"{sum(map(len, own))} tokens that the model wrote"] if own else []
    return " and ".join(parts)


def _decibel(loss: float) -> str:
    """A loss relative to the signal as its signal-to-noise ratio."""
    return f"{-10 * log10(loss):.1f} dB" if loss else "exact"


def _f16_model(
    work: WorkDirectory,
    source: Source,
    codebooks: Sequence[Planned],
    options: ConversionOptions,
    output: Path,
) -> Path:
    """The model as a GGUF of F16 matrices: the source itself if it is in one, else a copy in ``work``. For a
    target it is a single file, of which the search makes copies.
    """
    matrices = (t for t in source.tensors if not t.keeps_f32)
    is_split = len({t.path for t in source.tensors}) > 1
    if source.gguf and all(t.dtype == "F16" for t in matrices) and not (options.target and is_split):
        return source.gguf
    model = work.temporary("f16.gguf")
    if not model.exists():
        copies = plan(source.tensors, Rules(RECIPES["f16"]))
        require_space(output, sum(p.nbytes for p in (*copies, *codebooks)))
        write_floats(model, source, "f16", options.threads, options.record())
    return model


def _note_uncalibrated(
    uncalibrated: Sequence[Planned], values: dict[str, GGUFValue], options: ConversionOptions
) -> None:
    """Say, here and in the file, which codebooks the calibration did not reach."""
    names = [p.name for p in uncalibrated]
    instead = f"with {options.imatrix}" if options.imatrix else "without importance"
    warn(
        f"not calibrated, the model does not multiply by them: {', '.join(names)}; "
        f"quantized {instead} instead"
    )
    values[UNCALIBRATED_KEY] = GGUFValue(names, GGUFValueType.ARRAY, GGUFValueType.STRING)


def _tune(
    work: WorkDirectory, untuned: Path, source: Source, codebooks: Sequence[Planned],
    options: ConversionOptions, output: Path,
) -> None:  # fmt: skip
    """Write ``output`` as ``untuned`` with what is continuous in it tuned on the predictions."""
    device = tune.device_of(options.device)
    types = {t.name: CB_FORMATS.get(t.type) for t in read_info(untuned).tensors}
    frugal = tune.is_frugal(source, types, device, aloud=True)
    original = tune.load(source, device, frugal=frugal)

    def affordable(writing: float) -> int:
        # Kept, as a step takes more or less time when the conversion goes on after a crash.
        return int(work.number("tuning tokens", lambda: tune.affordable(
            untuned, source, original, tune.SHARE * work.number(SECONDS, lambda: 0),
            length=corpus.length, writing=writing, threads=options.threads,
        )))  # fmt: skip

    by_time = device.type == "cpu" and not options.tune_tokens
    limit = None if by_time else options.tune_tokens or tune.MOST
    with Model(untuned, threads=1, n_ctx=32, weights=False) as tokenizer:
        f16 = partial(_f16_model, work, source, codebooks, options, output)
        corpus = Corpus(work, source, options, tokenizer, f16)
        pieces, again = corpus.to_tune(limit, original, affordable)
    parts = (again, pieces) if options.tunes_with_own_text else (pieces, [])
    say(f"tuning with {_described(*parts, options)}, on {device.type}")
    tune.tune(
        untuned, source, original, output, pieces, again,
        seed=options.seed, threads=options.threads, checkpoint=work.path / "tuning.pt",
    )  # fmt: skip


def fingerprint(source: Source, planned: Sequence[Planned], options: ConversionOptions) -> dict[str, object]:
    """What the bytes of a codebook tensor depend on; with a target, beside its type."""
    return {
        "source": workdir.source_files(source),
        "options": options.record() if options.target else None,
        "types": [(p.name, p.type_name) for p in planned if p.fmt],
        "codebook": options.codebook,
        "seed": options.seed,
        "calibration text": workdir.file_digest(options.text if options.target else options.calibration_text),
        "share of the model's own text in the calibration": own_share(options),
        "calibration tokens": options.calibration_tokens,
        "torch or GPU": tune.computed_by(tune.device_of(options.device)) if options.tune else None,
        "importance matrix": workdir.file_digest(options.imatrix),
        "version of lutra or numpy": workdir.software(),
        "CPU": workdir.cpu(),
    }
