# SPDX-License-Identifier: MIT
"""Several files of one model, measured one after another: size, quality and speed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gguf_tools.errors import LutraError
from lutra import __version__
from lutra.console import say
from lutra.conversion.options import OPTIONS_KEY
from lutra.measure.doctor import cpu
from lutra.measure.doctor.system import System
from lutra.measure.model_file import ModelFile
from lutra.measure.perplexity import Text, divergence, perplexity, predictions, vocabulary
from lutra.measure.questions import ask
from lutra.measure.speed import GENERATED, PROMPT, RUNS
from lutra.measure.speed import speed as measure_speed
from lutra.measure.tables import names
from lutra.runtime import kernels


def require_one_model(files: Sequence[Path]) -> None:
    """Raise LutraError when two files have different vocabularies; an unreadable one fails in its turn."""
    vocabularies = {}
    for path in files:
        with contextlib.suppress(LutraError):
            vocabularies[path] = vocabulary(path)
    for path, tokens in vocabularies.items():
        first = next(iter(vocabularies))
        if tokens != vocabularies[first]:
            raise LutraError(f"{path} and {first} have different vocabularies; compare files of one model")


@dataclass
class Comparison:
    """Files, the base first if there is one, what to measure of each, and the results so far."""

    files: Sequence[Path]
    base: Path | None
    text: Text | None
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
                        row |= ask(path, self.asked, self.threads)
                    if self.text:
                        row |= self._predict(path, self.text, stack)
                    if self.speed:
                        row |= measure_speed(path, self.threads)
                    self.rows.append(row)

    def _predict(self, path: Path, text: Text, stack: contextlib.ExitStack) -> dict[str, Any]:
        if not self.base:
            return perplexity(path, text, self.threads)
        if path == self.base:  # computed once, kept on disk for all others
            self._logits, results = stack.enter_context(predictions(path, text, self.threads))
            return results
        return divergence(path, text, self._logits, self.threads)

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
            results["speed"] = {"prompt": PROMPT, "generated": GENERATED, "runs": RUNS}
        files = [{"label": label} | row for label, row in zip(labels, rows, strict=True)]
        return results | {"files": files, "failed": self.failed}


def describe(path: Path) -> dict[str, Any]:
    """What a file's header says; ``options``: of the ``lutra convert`` that made it."""
    file = ModelFile.read(path)
    return {
        "file": str(path),
        "options": file.values.get(OPTIONS_KEY),
        "codebook": file.has_codebooks,
        "bytes": file.bytes,
        "bpw": file.bpw,
    }


def machine() -> dict[str, str]:
    """The CPU, and the kernels of ours that it runs."""
    chosen = ", ".join(kernels.sets()["chosen"])
    return {"cpu": cpu.name(System()), "kernels": chosen, "version": __version__}


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
