"""``lutra eval``: the quality of a model, by llama-perplexity (unmodified) and by exact answers."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from gguf_tools.errors import LutraError
from lutra.cli.arguments import positive
from lutra.console import mib, progress
from lutra.runtime.probe import require_loadable
from lutra.runtime.threads import default_threads
from lutra.runtime.tools import failure, run_tool

if TYPE_CHECKING:
    from tqdm import tqdm

EPILOG = """\
With --base, the KL divergence to that model's predictions and how often both prefer the same token;
the base's predictions go to a temporary file ($TMPDIR), vocabulary x 1 byte per token of text.
Q.jsonl has one {"question": ..., "answer": ...} per line; an answer counts when it is exactly equal.

--json prints: ppl, ppl_error; kld_mean, kld_error, same_top (%); tokens (evaluated); exact, total.

examples:
  lutra eval model-cb4.gguf --text wikitext-2.test.raw --base model-f16.gguf
  lutra eval tiny-chat-cb4.gguf --questions questions.jsonl --json
"""

QUESTION_CTX = 1024  # tokens of a question and its answer

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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the verb."""
    add = parser.add_argument
    add("file", metavar="FILE", type=Path, help="GGUF file to measure")
    add_options(add)
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
    if not args.text and not args.questions:
        raise LutraError("eval needs --text or --questions; see 'lutra eval --help'")
    text = read_text(args)
    threads = args.threads or default_threads()
    results: dict[str, Any] = {}
    if text:
        results |= measure_text(args.file, text, args.base, threads)
    if args.questions:
        results |= ask(args.file, read_questions(args.questions), threads)
    print(json.dumps(results) if args.json else describe(results))
    return 0


def describe(results: dict[str, Any]) -> str:
    """The results for people."""
    lines = []
    if "ppl" in results:
        lines.append("perplexity      {ppl:.4f} ± {ppl_error:.4f} over {tokens} tokens")
    if "kld_mean" in results:
        lines.append("KL divergence   {kld_mean:.6f} ± {kld_error:.6f}")
        lines.append("same top token  {same_top:.2f} %")
    if "exact" in results:
        lines.append(f"exact answers   {{exact}} of {{total}} ({results['exact'] / results['total']:.1%})")
    return "\n".join(lines).format(**results)


# ---- text ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Text:
    """A text for models to predict in chunks of ``ctx`` tokens, ``chunks`` of them at most."""

    path: Path
    ctx: int
    chunks: int | None

    @property
    def predicted(self) -> int:
        """Tokens of a chunk that count: llama-perplexity leaves out the first half and the next token."""
        return self.ctx - 1 - self.ctx // 2


def read_text(args: argparse.Namespace) -> Text | None:
    """The text that was asked for, checked: LutraError when there is nothing to predict."""
    if not args.text:
        if args.base:
            raise LutraError("--base needs --text, the text on which the two models are compared")
        return None
    if args.ctx < 8:
        raise LutraError(f"--ctx {args.ctx}: chunks need at least 8 tokens")
    if not args.text.is_file() or args.text.stat().st_size == 0:
        raise LutraError(f"{args.text}: no such file, or it is empty; --text needs a text file")
    return Text(args.text, args.ctx, args.chunks)


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
    command += ["--chunks", str(text.chunks)] if text.chunks else []
    with progress(0, "chunk", title) as bar:
        watch = Watch(bar, model, text, fills)
        output = run_tool("llama-perplexity", command, watch.on_output)
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

    def __init__(self, bar: tqdm, model: Path, text: Text, fills: Path | None) -> None:
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
    from gguf_tools.reader import GGUFFile

    tokens = GGUFFile(model).get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list) or not tokens:
        raise LutraError(f"{model}: no tokenizer in the file; convert the model with its tokenizer")
    return tokens


def require_same_vocabulary(model: Path, base: Path) -> None:
    """Raise LutraError unless both files predict the same tokens."""
    if vocabulary(model) != vocabulary(base):
        raise LutraError(
            f"{model} and {base} have different vocabularies; --base needs the same model in F16"
        )


# ---- questions -----------------------------------------------------------------------------


def read_questions(path: Path) -> list[tuple[str, str]]:
    """(question, answer) of each line. Raises LutraError naming the line that is wrong."""
    questions = []
    try:
        lines = path.read_text("utf-8").splitlines()
    except UnicodeDecodeError:
        raise LutraError(f"{path}: not a UTF-8 text; --questions needs JSON lines") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            questions.append((str(entry["question"]), str(entry["answer"])))
        except (ValueError, KeyError, TypeError):
            raise LutraError(f'{path}:{number}: needs {{"question": ..., "answer": ...}}') from None
    if not questions:
        raise LutraError(f"{path}: no questions in the file")
    return questions


def ask(file: Path, questions: Sequence[tuple[str, str]], threads: int) -> dict[str, int]:
    """Greedy answers to ``questions``; how many are exactly right.

    Each thread has a context of its own and answers alone: small models spend most of a token's time
    waiting for each other's threads otherwise.
    """
    from lutra.runtime.model import Model, Sampler
    from lutra.runtime.template import ChatTemplate

    require_loadable(file)
    models = [Model(file, threads=1, n_ctx=QUESTION_CTX) for _ in range(min(threads, len(questions)))]
    template = ChatTemplate.of(models[0])
    free: SimpleQueue[Model] = SimpleQueue()
    for model in models:
        free.put(model)

    def is_exact(question: str, answer: str) -> bool:
        model = free.get()
        try:
            prompt = model.tokenize(template.render([{"role": "user", "content": question}]))
            said = ""
            for text in model.text(model.generate(prompt, Sampler(0))):
                said += text
                # It can only become right while it is the beginning of what is right.
                if not answer.strip().startswith(said.strip()):
                    break
            return said.strip() == answer.strip()
        finally:
            free.put(model)

    exact = 0
    with ThreadPoolExecutor(len(models)) as pool, progress(len(questions), "question") as bar:
        try:
            for right in pool.map(is_exact, *zip(*questions, strict=True)):
                exact += right
                bar.update()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return {"exact": exact, "total": len(questions)}
