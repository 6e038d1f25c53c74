# SPDX-License-Identifier: MIT
"""Whole paths, with the models that come with the repository."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "python"))

from cli_runner import TINY_CHAT, lutra, require_built


@pytest.fixture(scope="session")
def tiny_chat(tmp_path_factory):
    """tiny-chat converted: ``tiny_chat("cb4")`` is a path. Each type is made once, uncalibrated."""
    directory = tmp_path_factory.mktemp("tiny-chat")

    def convert(kind: str) -> Path:
        require_built("llama-perplexity", "llama-quantize", "llama-bench")
        path = directory / f"{kind}.gguf"
        if not path.exists():
            done = lutra("convert", TINY_CHAT, "--type", kind, "--no-calibration", "-o", path)
            assert done.returncode == 0, done.stderr
        return path

    return convert


@pytest.fixture(scope="session")
def f16(tmp_path_factory):
    """tiny-chat as it is."""
    require_built("llama-perplexity")
    path = tmp_path_factory.mktemp("f16") / "f16.gguf"
    done = lutra("convert", TINY_CHAT, "--type", "f16", "-o", path)
    assert done.returncode == 0, done.stderr
    return path
