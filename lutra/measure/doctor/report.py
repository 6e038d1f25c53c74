# SPDX-License-Identifier: MIT
"""The whole examination, and the part of it that people can send."""

from __future__ import annotations

import getpass
import os
import platform
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gguf_tools.errors import LutraError
from gguf_tools.inspect import read_info
from lutra import __version__
from lutra.measure.doctor import advice, clocks, cpu, disk, memory
from lutra.measure.doctor.roofline import bytes_per_token
from lutra.measure.doctor.system import System
from lutra.measure.speed import speed
from lutra.runtime.threads import default_threads

SCHEMA = "lutra-doctor/1"
_PROMPT, _FEWEST, _MOST = 32, 4, 64  # tokens of the short run
_RUN = 4.0  # seconds that it should take


def examine(
    file: Path | None = None,
    *,
    system: System | None = None,
    threads: int | None = None,
    seconds: float = 3.0,
) -> dict[str, Any]:
    """Look at this machine, and at a GGUF ``file`` on it: see docs/DOCTOR.md for what is returned.

    ``seconds`` of load on ``threads`` threads, reading of memory and disk, and a short run are measured; with
    0 nothing is. Raises LutraError where ``file`` is no file.
    """
    system = system or System()
    threads = threads or default_threads()
    report: dict[str, Any] = {"schema": SCHEMA, "version": __version__}
    # First what the measuring would change: the page cache, the load, the heat.
    about = _file(system, file, seconds / 2) if file else None
    report["cpu"] = cpu.examine(system) | {"threads": threads}
    report["clocks"] = clocks.examine(system, seconds, threads)
    report["memory"] = memory.examine(system, threads, seconds / 2)
    report["file"] = about
    if file and about and not about["error"] and seconds > 0:
        _run(file, about, report["memory"]["gb_per_s"], threads)
    report["findings"] = [asdict(finding) for finding in advice.findings(report)]
    return report


def _file(system: System, path: Path, seconds: float) -> dict[str, Any]:
    if not path.is_file():
        raise LutraError(f"{path}: no such file")
    about = {"error": None, "speed": None, **disk.examine(system, path, seconds)}
    try:
        info = read_info(path)
        about["bits_per_weight"] = round(info.bpw, 3)
        about["bytes_per_token"] = bytes_per_token(info)
        architecture = info.metadata.get("general.architecture")
        about["architecture"] = architecture and str(architecture.value)
    except LutraError as error:
        about["error"] = str(error).replace(str(path), advice.FILE)
    return about


def _run(path: Path, about: dict[str, Any], gb_per_s: float | None, threads: int) -> None:
    """Generate for some seconds, beside what memory would allow."""
    expected = gb_per_s * 1e9 / about["bytes_per_token"] if gb_per_s else None
    tokens = max(_FEWEST, min(_MOST, round((expected or 0) * _RUN)))
    try:
        measured = speed(path, threads, prompt=_PROMPT, generated=tokens, runs=1)
    except LutraError as error:
        about["error"] = str(error).replace(str(path), advice.FILE)
        return
    about["speed"] = {
        "expected_tps": expected and round(expected, 2),
        "generation_tps": round(measured["generation_tps"], 2),
        "prompt_tps": round(measured["prompt_tps"], 2),
        "generated": tokens,
        "prompt": _PROMPT,
        "threads": threads,
    }


def sendable(report: dict[str, Any]) -> dict[str, Any]:
    """The report without what tells of people: names of host and user, the path of the home are "***"."""
    private = {platform.node(), os.path.expanduser("~"), _user()} - {"", "/", "root", "localhost"}
    words = sorted((re.escape(word) for word in private if len(word) > 2), key=len, reverse=True)
    pattern = re.compile(rf"(?<!\w)(?:{'|'.join(words)})(?!\w)") if words else None

    def clean(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: clean(item) for key, item in value.items()}
        if isinstance(value, list):
            return [clean(item) for item in value]
        return pattern.sub("***", value) if pattern and isinstance(value, str) else value

    cleaned: dict[str, Any] = clean(report)
    return cleaned


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # no name for this number, as in containers
        return ""
