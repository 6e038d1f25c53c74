"""How many threads to use when the user does not say."""

from __future__ import annotations

import os
from pathlib import Path

_CPUS = Path("/sys/devices/system/cpu")


def default_threads() -> int:
    """Physical cores we may run on; on big.LITTLE only the fast ones (slow ones hold the others up).

    A core is fast when its capacity (Arm) or else its highest clock is above 60% of the best core's.
    """
    allowed = sorted(os.sched_getaffinity(0))
    speeds = {
        cpu: _number(cpu, "cpu_capacity") or _number(cpu, "cpufreq/cpuinfo_max_freq") for cpu in allowed
    }
    best = max(speeds.values())
    fast = [cpu for cpu in allowed if speeds[cpu] >= 0.6 * best]
    cores = {_text(cpu, "topology/thread_siblings_list") or str(cpu) for cpu in fast}
    return len(cores)


def _text(cpu: int, name: str) -> str:
    try:
        return (_CPUS / f"cpu{cpu}" / name).read_text().strip()
    except OSError:
        return ""


def _number(cpu: int, name: str) -> int:
    text = _text(cpu, name)
    return int(text) if text.isdigit() else 0
