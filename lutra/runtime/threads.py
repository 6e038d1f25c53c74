# SPDX-License-Identifier: MIT
"""How many threads to use when the user does not say."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

from gguf_tools.errors import LutraError
from lutra.runtime.cgroups import control_groups, read
from lutra.runtime.darwin import sysctl

MAX_THREADS = 512  # GGML_MAX_N_THREADS
_CPUS = Path("/sys/devices/system/cpu")


def default_threads() -> int:
    """Physical cores that we may run on, and no more than the control groups give us time on."""
    return max(1, int(min(_fast_cores(allowed_cpus()), cpu_quota(), MAX_THREADS)))


def checked_threads(threads: int | None) -> int:
    """``threads``, or the default for None. Raises LutraError for a number that nothing can run with."""
    if threads is None:
        return default_threads()
    if not 1 <= threads <= MAX_THREADS:
        raise LutraError(f"{threads} threads: give a number from 1 to {MAX_THREADS}, or none")
    return threads


def allowed_cpus() -> list[int]:
    """The logical CPUs that we may run on."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def _fast_cores(cpus: list[int]) -> int:
    """How many physical cores ``cpus`` are; on big.LITTLE only the fast ones (slow ones hold the others up).

    A core is fast when its capacity (Arm) or else its highest clock is above 60% of the best core's; macOS
    counts its performance cores itself. Where the system does not say, every logical CPU is a fast core.
    """
    if counted := sysctl("hw.perflevel0.physicalcpu") or sysctl("hw.physicalcpu"):
        return int(counted)
    speeds = {cpu: _number(cpu, "cpu_capacity") or _number(cpu, "cpufreq/cpuinfo_max_freq") for cpu in cpus}
    best = max(speeds.values())
    fast = [cpu for cpu in cpus if speeds[cpu] >= 0.6 * best]
    return len({read(_CPUS / f"cpu{cpu}" / "topology/thread_siblings_list") or str(cpu) for cpu in fast})


def _number(cpu: int, name: str) -> int:
    text = read(_CPUS / f"cpu{cpu}" / name)
    return int(text) if text.isdigit() else 0


# ---- control groups ------------------------------------------------------------------------


def cpu_quota() -> float:
    """The whole CPUs' worth of time that our control groups and those above them allow; inf: no limit."""
    return min((cpus for group in control_groups("cpu") for cpus in _limits(group)), default=math.inf)


def _limits(group: Path) -> Iterator[int]:
    """The same for one control group, of version 2 or 1."""
    for quota, period in (
        (read(group / "cpu.max").split() or ["max", ""])[:2],
        (read(group / "cpu.cfs_quota_us"), read(group / "cpu.cfs_period_us")),
    ):
        if quota.isdigit() and period.isdigit() and int(period):  # "max" and -1 are no limit
            yield int(quota) // int(period)
