"""Runs the command ``lutra`` as a person would, for the tests of the command line."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gguf_tools.errors import LutraError
from lutra.runtime.paths import lib_path, tool_path

ROOT = Path(__file__).parents[2]
TINY_CHAT = ROOT / "models" / "tiny-chat"


def lutra(*args: object, cwd: Path | None = None, env: dict[str, str] | None = None, **options):
    """Run ``lutra`` and return the finished process, its output as text."""
    return subprocess.run(
        command(*args), cwd=cwd, env=environment(env), capture_output=True, text=True, timeout=300, **options
    )


def command(*args: object) -> list[str]:
    return [sys.executable, "-m", "lutra", *map(str, args)]


def environment(extra: dict[str, str] | None = None) -> dict[str, str]:
    """The caller's, with the sources importable from anywhere."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return os.environ | {"PYTHONPATH": path} | (extra or {})


def heed_interrupts() -> None:
    """For ``preexec_fn``: a test run in the background ignores SIGINT, and its children inherit that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def killed_after(count: int, number: int, *args: object) -> subprocess.Popen:
    """``lutra convert`` with ``args``, stopped by a signal when it has finished ``count`` tensors."""
    work = args[-1].with_name(f".{args[-1].name}.lutra-work")
    process = subprocess.Popen(
        command("convert", *args),
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heed_interrupts,
    )
    while len(list(work.glob("*.tensor"))) < count:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    process.send_signal(number)
    process.said = process.communicate(timeout=60)[1]
    return process


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
