# SPDX-License-Identifier: MIT
"""Tokens per second, by llama-bench (unmodified)."""

from __future__ import annotations

import json
from pathlib import Path

from gguf_tools.errors import LutraError
from lutra.console import progress
from lutra.runtime.probe import require_loadable
from lutra.runtime.tools import failure, run_tool

PROMPT, GENERATED, RUNS = 512, 128, 5  # of ``speed``: llama-bench's own defaults


def speed(
    model: Path, threads: int, *, prompt: int = PROMPT, generated: int = GENERATED, runs: int = RUNS
) -> dict[str, float]:
    """Tokens per second, mean and standard deviation of ``runs`` runs.

    ``prompt_tps``, ``prompt_sd``: of a prompt of ``prompt`` tokens; ``generation_tps``, ``generation_sd``: of
    ``generated`` tokens one by one.
    """
    command = ["-m", str(require_loadable(model)), "-t", str(threads), "-o", "jsonl", "--progress"]
    command += ["-p", str(prompt), "-n", str(generated), "-r", str(runs)]
    with progress(2 * (1 + runs), "run", "speed") as bar:  # one run each to warm up
        output = run_tool("llama-bench", command, lambda text: bar.update(text.count(" run")))
    records = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    if len(records) != 2:
        raise LutraError(f"{model}: llama-bench: {failure(output, 0)}")
    return {
        f"{name}_{unit}": record[key]
        for name, record in zip(("prompt", "generation"), records, strict=True)
        for unit, key in (("tps", "avg_ts"), ("sd", "stddev_ts"))
    }
