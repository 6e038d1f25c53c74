# SPDX-License-Identifier: MIT
"""The control groups that limit this process: their directories, of version 2 or 1."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

ROOT = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")


def control_groups(controller: str) -> Iterator[Path]:
    """The directories of our control groups that may limit ``controller`` ("cpu"), with those above them.

    /proc/self/cgroup has lines of number:controllers:path, without controllers for version 2. In a container
    the path may be one of the host's, and only the mount's own root is there.
    """
    for line in read(OWN).splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            roots = [ROOT, ROOT / "unified"]
        elif controller in controllers.split(","):
            roots = [ROOT / controllers, ROOT / controller]
        else:
            continue
        own = PurePosixPath(path.lstrip("/"))
        yield from (root / above for root in roots for above in (own, *own.parents))


def read(path: Path) -> str:
    """What is in a file of the system; empty where there is none."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""
