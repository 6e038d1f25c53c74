# SPDX-License-Identifier: MIT
"""Child processes that never outlive us."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gguf_tools.interrupts import shielded


@contextlib.contextmanager
def child(
    command: Sequence[str], environment: Mapping[str, str] | None = None, **options: Any
) -> Iterator[subprocess.Popen[bytes]]:
    """A process of ``command``, with ``environment`` beside our own, which ends with the context."""
    children: list[subprocess.Popen[bytes]] = []
    try:
        _start(command, children, environment or {}, options)
        yield children[0]
    finally:
        _stop(children)


@shielded
def _start(
    command: Sequence[str],
    children: list[subprocess.Popen[bytes]],
    environment: Mapping[str, str],
    options: dict[str, Any],
) -> None:
    """Start a child; a signal finds it among ``children``."""
    env = {
        **os.environ,
        **environment,
        "GGML_NO_BACKTRACE": "1",
    }  # it would start a debugger, if there is one
    children.append(subprocess.Popen(command, stdin=subprocess.DEVNULL, env=env, **options))


@shielded
def _stop(children: list[subprocess.Popen[bytes]]) -> None:
    """End children that still run, and reap them."""
    for process in children:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
