# SPDX-License-Identifier: MIT
"""What this process holds open."""

from __future__ import annotations

import os
from pathlib import Path


def held(directory: Path) -> list[str]:
    """Descriptors and mappings of files in ``directory``, one entry each."""
    found = [line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "/" in line]
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        except FileNotFoundError:  # of listdir itself
            continue
    return [path for path in found if path.startswith(str(directory))]
