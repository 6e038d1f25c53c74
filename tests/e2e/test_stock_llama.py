# SPDX-License-Identifier: MIT
"""What is exported runs in a llama.cpp that knows nothing of Lutra, and predicts the same."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cli_runner import environment, lutra

from lutra.runtime.model import Model

pytest.importorskip("xllamacpp", reason="a llama.cpp that is not ours is missing: pip install xllamacpp")

TEXT = "The capital of France is Paris. What is seven plus eight?"
NOT_LOADED = 3


def stock(file: Path, prompts: list[list[int]]) -> subprocess.CompletedProcess[str]:
    """``stock_llama``: the process is of its own, as two llama.cpp do not go together."""
    command = [sys.executable, Path(__file__).with_name("stock_llama.py"), file, json.dumps(prompts)]
    return subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300)


def ours(file: Path, prompts: list[list[int]]) -> np.ndarray:
    """Log probabilities of the token after each prompt."""
    rows = []
    with Model(file, n_ctx=256) as model:
        for prompt in prompts:
            logits = np.ctypeslib.as_array(model.logits(prompt), (len(prompt), model.n_vocab))[-1]
            rows.append(logits - np.logaddexp.reduce(logits.astype(float)))
    return np.array(rows)


def divergence(p: np.ndarray, q: np.ndarray) -> float:
    """KL divergence of log probabilities, the mean of the rows."""
    return float((np.exp(p) * (p - q)).sum(axis=-1).mean())


@pytest.fixture(scope="module")
def prompts(f16: Path) -> list[list[int]]:
    with Model(f16, weights=False, n_ctx=32) as model:
        tokens = model.tokenize(TEXT)
    return [tokens[:n] for n in range(2, len(tokens), 2)]


def test_it_is_no_build_of_ours(tiny_chat, prompts: list[list[int]]) -> None:
    assert stock(tiny_chat("cb4"), prompts).returncode == NOT_LOADED


@pytest.mark.parametrize(("kind", "bound"), [("f16", 1e-4), ("q8_0", 2e-3)])
def test_stock_llama_cpp_predicts_the_same(
    tiny_chat, f16: Path, prompts: list[list[int]], tmp_path: Path, kind: str, bound: float
) -> None:
    exported = tmp_path / "out.gguf"
    done = lutra("export", tiny_chat("cb4"), "--type", kind, "-o", exported)
    assert done.returncode == 0, done.stderr
    done = stock(exported, prompts)
    assert done.returncode == 0, done.stderr
    theirs = np.array(json.loads(done.stdout.splitlines()[-1]))
    # The same file here, and the codebooks, whose kernels round activations to 8 bits.
    assert abs(divergence(ours(exported, prompts), theirs)) < bound
    codebooks = ours(tiny_chat("cb4"), prompts)
    assert divergence(codebooks, theirs) < divergence(codebooks, ours(f16, prompts)) / 2
