# SPDX-License-Identifier: MIT
"""The files and programs by which a system tells of itself."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from lutra.runtime.cgroups import read

CPUS = "sys/devices/system/cpu"


@dataclass(frozen=True)
class System:
    """The one that we run on, or what a test has put under ``root`` (its programs in usr/bin)."""

    root: Path = Path("/")
    kind: str = field(default_factory=platform.system)  # "Linux", "Darwin"
    machine: str = field(default_factory=platform.machine)  # "aarch64"

    def text(self, path: str) -> str:
        """What is in a file, without white space around it; empty where nothing can be read."""
        return read(self.root / path).strip("\0\n ")

    def number(self, path: str) -> int | None:
        """The whole number in a file."""
        text = self.text(path)
        return int(text) if re.fullmatch(r"-?\d+", text) else None

    def find(self, pattern: str) -> list[str]:
        """The files that fit, cpu2 before cpu10."""
        try:
            found = [str(path.relative_to(self.root)) for path in self.root.glob(pattern)]
        except OSError:
            return []
        return sorted(found, key=lambda path: [int(number) for number in re.findall(r"\d+", path)])

    def run(self, *command: str) -> str:
        """What a program prints; empty where there is none or it fails."""
        program = shutil.which(
            command[0], path=None if self.root == Path("/") else str(self.root / "usr/bin")
        )
        if not program:
            return ""
        try:
            done = subprocess.run([program, *command[1:]], capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return ""
        return done.stdout.strip() if done.returncode == 0 else ""


def cpu_list(text: str) -> list[int]:
    """The CPUs of "0-3,6"."""
    spans = [span.split("-") for span in re.findall(r"\d+(?:-\d+)?", text)]
    return [cpu for span in spans for cpu in range(int(span[0]), int(span[-1]) + 1)]
