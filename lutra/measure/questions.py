# SPDX-License-Identifier: MIT
"""Questions with exact answers: how many of them a model gets right."""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from queue import SimpleQueue

from gguf_tools.errors import LutraError
from lutra.console import progress
from lutra.runtime.model import Model

QUESTION_CTX = 1024  # tokens of a question and its answer


def read_questions(path: Path) -> list[tuple[str, str]]:
    """(question, answer) of each line. Raises LutraError naming the line that is wrong."""
    questions = []
    try:
        lines = path.read_text("utf-8-sig").split("\n")
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
    free: SimpleQueue[Model] = SimpleQueue()

    def is_exact(question: str, answer: str) -> bool:
        model = free.get()
        try:
            said = ""
            for text in model.stream(question):
                said += text
                # It can only become right while it is the beginning of what is right.
                if not answer.strip().startswith(said.strip()):
                    break
            return said.strip() == answer.strip()
        finally:
            free.put(model)

    exact = 0
    n = min(threads, len(questions))
    with ExitStack() as stack:
        for i in range(n):
            free.put(stack.enter_context(Model(file, threads=1, n_ctx=QUESTION_CTX, probe=i == 0)))
        with ThreadPoolExecutor(n) as pool, progress(len(questions), "question") as bar:
            try:
                for right in pool.map(is_exact, *zip(*questions, strict=True)):
                    exact += right
                    bar.update()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
    return {"exact": exact, "total": len(questions)}
