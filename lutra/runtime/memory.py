# SPDX-License-Identifier: MIT
"""How much memory a program may still take."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from lutra.runtime.cgroups import control_groups, read

_MEMINFO = Path("/proc/meminfo")


def free_memory() -> int:
    """Bytes that can be had without swapping, within our control groups. What is cached of files counts."""
    return max(0, min([_free(), *_left()]))


def memory_limit() -> int | None:
    """Bytes that our control groups allow, None without such a limit."""
    names = ("memory.max", "memory.limit_in_bytes")
    limits = (read(group / name) for group in control_groups("memory") for name in names)
    # Version 1 has a number near 2**63 for none.
    return min((int(text) for text in limits if text.isdigit() and int(text) < 1 << 60), default=None)


def total_memory() -> int:
    """Bytes that the machine has, or less if our control groups allow less."""
    return min(_physical(), memory_limit() or _physical())


def _physical() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _free() -> int:
    fields = dict(line.split(":", 1) for line in read(_MEMINFO).splitlines())
    if "MemAvailable" in fields:
        return int(fields["MemAvailable"].split()[0]) * 1024
    return _physical()  # no Linux


def _left() -> Iterator[int]:
    """What our control groups leave; their files (the cache) can be dropped."""
    for group in control_groups("memory"):
        for limit, used, prefix in (
            ("memory.max", "memory.current", ""),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
        ):
            most, now = read(group / limit), read(group / used)
            if most.isdigit() and now.isdigit():  # "max" is none
                statistics = dict(line.split() for line in read(group / "memory.stat").splitlines())
                files = sum(int(statistics.get(f"{prefix}{kind}_file", 0)) for kind in ("active", "inactive"))
                yield int(most) - int(now) + files
