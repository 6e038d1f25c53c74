# SPDX-License-Identifier: MIT
"""Runs the command ``lutra`` as a person would, for the tests of the command line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from gguf_samples import hf_model

from gguf_tools.errors import LutraError
from lutra.runtime.paths import lib_path, tool_path

ROOT = Path(__file__).parents[2]
TINY_CHAT = ROOT / "models" / "tiny-chat"


def lutra(*args: object, cwd: Path | None = None, env: dict[str, str] | None = None, **options):
    """Run ``lutra`` and return the finished process, its output as text. Nothing is typed but ``input``."""
    if "input" not in options:
        options.setdefault("stdin", subprocess.DEVNULL)
    return subprocess.run(
        command(*args), cwd=cwd, env=environment(env), capture_output=True, text=True, timeout=600, **options
    )


def random_codebooks(directory: Path, kind: str = "cb4", **sizes: object) -> Path:
    """A random model of codebooks throughout, of super-blocks of 256 and, unless ``sizes`` differ, of 64."""
    require_built()
    sizes = {"intermediate_size": 704} | sizes
    source = hf_model(
        directory / "hf", hidden_size=512, num_attention_heads=8, num_key_value_heads=2, **sizes
    )
    path = directory / "m.gguf"
    done = lutra("convert", source, "--type", kind, "--pure", "--no-calibration", "-o", path)
    assert done.returncode == 0, done.stderr
    return path


def command(*args: object) -> list[str]:
    return [sys.executable, "-m", "lutra", *map(str, args)]


def environment(extra: dict[str, str] | None = None) -> dict[str, str]:
    """The caller's, with the sources importable from anywhere."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return os.environ | {"PYTHONPATH": path} | (extra or {})


def signalled(
    number: int, function: str, *args: object, nth: int = 1, **options
) -> subprocess.CompletedProcess:
    """``lutra`` with ``args``, which sends itself a signal when it calls ``function`` for the ``nth`` time.

    ``function`` is "module:name" or "module:class.name". No clock decides how far the program has come.
    """
    program = [sys.executable, Path(__file__).with_name("signalled.py"), number, function, nth, *args]
    return subprocess.run(
        list(map(str, program)), env=environment(), capture_output=True, text=True, timeout=600, **options
    )


def assert_error(done: subprocess.CompletedProcess, *fragments: str) -> None:
    """It failed with one line on stderr that has all ``fragments``, and printed nothing else."""
    assert done.returncode > 0, done
    assert done.stdout == "", done.stdout
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("lutra: error: "), done.stderr
    for fragment in fragments:
        assert fragment in lines[0]


def require_built(*tools: str) -> None:
    """Skip, with the reason, where the native libraries or tools are not built."""
    try:
        lib_path("ggml-base"), lib_path("llama"), lib_path("lutra_quant")
        for tool in tools:
            tool_path(tool)
    except LutraError as reason:
        pytest.skip(str(reason))
