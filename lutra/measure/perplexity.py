# SPDX-License-Identifier: MIT
"""Perplexity, and the divergence from another model's predictions, by llama-perplexity (unmodified)."""

from __future__ import annotations

import contextlib
import math
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from gguf_tools.errors import LutraError
from gguf_tools.reader import GGUFFile
from lutra.console import mib, progress
from lutra.runtime.probe import require_loadable
from lutra.runtime.tools import failure, run_tool

if TYPE_CHECKING:
    from tqdm import tqdm

_NUMBER = r"([-\d.a-z]+)"
_RESULTS = {
    ("ppl", "ppl_error"): (
        rf"(?:Final estimate: PPL = {_NUMBER} \+/- {_NUMBER}|Mean PPL\(Q\) *: *{_NUMBER} ± *{_NUMBER})"
    ),
    ("kld_mean", "kld_error"): rf"Mean +KLD: *{_NUMBER} ± *{_NUMBER}",
    ("same_top",): rf"Same top p: *{_NUMBER}",
}
_CHUNKS = r"over (\d+) chunks"
_FEWEST_TOKENS = 100  # llama-perplexity compares no fewer


@dataclass(frozen=True)
class Text:
    """A text for models to predict in chunks of ``ctx`` tokens, ``chunks`` of them at most.

    Raises LutraError when there is nothing to predict.
    """

    path: Path
    ctx: int = 512
    chunks: int | None = None

    def __post_init__(self) -> None:
        if self.ctx < 8:
            raise LutraError(f"--ctx {self.ctx}: chunks need at least 8 tokens")
        if not self.path.is_file() or self.path.stat().st_size == 0:
            raise LutraError(f"{self.path}: no such file, or it is empty; --text needs a text file")

    @property
    def predicted(self) -> int:
        """Tokens of a chunk that count: llama-perplexity leaves out the first half and the next token."""
        return self.ctx - 1 - self.ctx // 2


def measure_text(model: Path, text: Text, base: Path | None, threads: int) -> dict[str, Any]:
    """Perplexity, and with a base the divergence from it."""
    if not base:
        return perplexity(model, text, threads)
    require_same_vocabulary(model, base)
    with predictions(base, text, threads) as (logits, _):
        return divergence(model, text, logits, threads)


def perplexity(model: Path, text: Text, threads: int) -> dict[str, Any]:
    """``ppl`` and ``ppl_error`` over ``tokens``."""
    return _perplexity(model, text, threads, "perplexity")


@contextlib.contextmanager
def predictions(base: Path, text: Text, threads: int) -> Iterator[tuple[Path, dict[str, Any]]]:
    """What ``base`` predicts for ``text``, as a temporary file, and its perplexity."""
    with tempfile.TemporaryDirectory(prefix="lutra-eval-") as directory:
        path = Path(directory) / "base.logits"
        yield path, _perplexity(base, text, threads, "base", "--kl-divergence-base", str(path), fills=path)


def divergence(model: Path, text: Text, logits: Path, threads: int) -> dict[str, Any]:
    """As ``perplexity``, with ``kld_mean``, ``kld_error`` and ``same_top`` (%) against ``predictions``."""
    options = ("--kl-divergence-base", str(logits), "--kl-divergence")
    results = _perplexity(model, text, threads, "comparison", *options)
    if not {"kld_mean", "same_top"} <= results.keys():
        raise LutraError(f"{model} on {text.path}: llama-perplexity ended without the KL divergence")
    return results


def _perplexity(
    model: Path, text: Text, threads: int, title: str, *options: str, fills: Path | None = None
) -> dict[str, Any]:
    """Run llama-perplexity once and read its results. ``fills``: the file of predictions it makes, if any."""
    command = ["-m", str(require_loadable(model)), "-f", str(text.path), "-c", str(text.ctx)]
    command += ["-t", str(threads), *options]
    command += [
        "--override-kv",
        "tokenizer.ggml.add_eos_token=bool:false",
    ]  # with EOS at its end it does nothing
    command += ["--chunks", str(text.chunks)] if text.chunks else []
    with progress(0, "chunk", title) as bar:
        watch = Watch(bar, model, text, fills)
        output = run_tool("llama-perplexity", command, watch.on_output, subject=f"{model} on {text.path}")
    results: dict[str, Any] = {}
    for keys, pattern in _RESULTS.items():
        if found := re.search(pattern, output):
            values = [float(text) for text in found.groups() if text is not None]
            results |= dict(zip(keys, values, strict=True))
    # llama-perplexity ends with code 0 after most errors.
    if "ppl" not in results or not watch.chunks:
        raise LutraError(f"{model} on {text.path}: {failure(output, 0)}")
    if not all(map(math.isfinite, results.values())):
        raise LutraError(f"{model}: the predictions are not numbers; 'lutra verify {model}' checks the file")
    if fills and fills.stat().st_size < watch.bytes_needed:
        raise LutraError(f"{fills}: the disk is full; set TMPDIR to a larger one or use --chunks")
    return results | {"tokens": watch.chunks * text.predicted}


class Watch:
    """Follows llama-perplexity: the bar, and early on whether there is enough text and room to compare."""

    def __init__(self, bar: tqdm[NoReturn], model: Path, text: Text, fills: Path | None) -> None:
        self._bar = bar
        self._model = model
        self._text = text
        self._fills = fills
        self._output = ""
        self.chunks = 0
        self.bytes_needed = 0

    def on_output(self, output: str) -> None:
        """Take the next piece of output."""
        self._output += output
        if not self.chunks and (found := re.search(_CHUNKS, self._output)):
            self.chunks = int(found[1])
            self._bar.reset(self.chunks)
            if self._fills:
                self._require_tokens()
                self._require_space(self._fills.parent)
        # "[3]12.3456," while measuring perplexity, "   3   12.34 ± ..." while comparing
        done = re.findall(r"\[(\d+)\][\d.]+,|^ *(\d+) +[\d.]+ ±", self._output, re.MULTILINE)
        if done:
            self._bar.update(int(done[-1][0] or done[-1][1]) - self._bar.n)

    def _require_tokens(self) -> None:
        if (tokens := self.chunks * self._text.predicted) < _FEWEST_TOKENS:
            raise LutraError(
                f"{self._text.path}: {tokens} predicted tokens are too few to compare models, it takes "
                f"{_FEWEST_TOKENS}; use a longer text or more --chunks"
            )

    def _require_space(self, directory: Path) -> None:
        values = 2 * ((len(vocabulary(self._model)) + 1) // 2) + 4  # 16 bits each, per token
        self.bytes_needed = self.chunks * (4 * self._text.ctx + self._text.predicted * 2 * values)
        free = shutil.disk_usage(directory).free
        if free < self.bytes_needed:
            raise LutraError(
                f"{directory}: the base's predictions need {mib(self.bytes_needed)}, {mib(free)} are free; "
                "set TMPDIR to a larger disk or use --chunks"
            )


def vocabulary(model: Path) -> list[str]:
    """The tokens of a file. Raises LutraError when it has none."""
    with GGUFFile(model) as file:
        tokens = file.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list) or not tokens:
        raise LutraError(f"{model}: no tokenizer in the file; convert the model with its tokenizer")
    return tokens


def require_same_vocabulary(model: Path, base: Path) -> None:
    """Raise LutraError unless both files predict the same tokens."""
    if vocabulary(model) != vocabulary(base):
        raise LutraError(
            f"{model} and {base} have different vocabularies; --base needs the same model in F16"
        )
