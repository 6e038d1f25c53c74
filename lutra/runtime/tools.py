# SPDX-License-Identifier: MIT
"""Running llama.cpp's tools as child processes."""

from __future__ import annotations

import re
import signal
import subprocess
from collections.abc import Callable

from gguf_tools.children import child
from gguf_tools.errors import LutraError
from lutra.runtime.paths import tool_path


def run_tool(
    name: str,
    arguments: list[str],
    on_output: Callable[[str], object] | None = None,
    *,
    ok: int = 0,
    subject: str = "",
) -> str:
    """Run a tool and return everything it printed, standard output and error together.

    ``on_output`` sees the text as it comes. Raises LutraError with ``subject`` and the tool's own reason when
    its exit code is neither 0 nor ``ok``.
    """
    command = [str(tool_path(name)), *arguments]
    output = []
    with child(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        assert process.stdout is not None
        while data := process.stdout.read1():  # type: ignore[attr-defined]
            output.append(data)
            if on_output:
                on_output(data.decode("utf-8", "replace"))
        code = process.wait()
    text = b"".join(output).decode("utf-8", "replace")
    if code not in (0, ok):
        raise LutraError(": ".join(filter(None, (subject, name, failure(text, code)))))
    return text


def pass_through(name: str, arguments: list[str]) -> None:
    """Run a tool on our own standard output and error. Raises LutraError when it fails."""
    with child([str(tool_path(name)), *arguments]) as process:
        code = process.wait()
    if code:
        raise LutraError(f"{name} {ending(code)}")


def failure(output: str, code: int) -> str:
    """The reason in a failed tool's output: an assertion or our line, the first error, or how it ended."""
    # Our line may come in the middle of one that another thread writes.
    if found := re.search(r"^(?:.*/)?([\w.-]+:\d+: GGML_.*)|lutra: error: (.*)", output, re.MULTILINE):
        return (found[1] or found[2]).strip()
    for line in output.splitlines():
        if found := re.search(r"^[\d.]+ E (.*)|^.*?(\b(?:error|failed)\b.*)", line, re.IGNORECASE):
            return (found[1] or found[2]).strip()
    return ending(code)


def ending(code: int) -> str:
    """How a process ended that should have done something else."""
    if code == 0:
        return "ended without a result"
    return f"ended with code {code}" if code > 0 else f"was ended by {signal.Signals(-code).name}"
