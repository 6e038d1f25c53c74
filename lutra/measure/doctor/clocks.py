# SPDX-License-Identifier: MIT
"""Clocks, governors, temperatures, and whether the machine holds itself back."""

from __future__ import annotations

import hashlib
import re
import threading
import time
from statistics import median
from typing import Any

from lutra.measure.doctor.system import CPUS, System

_SAMPLE = 0.2  # seconds
# Of the Raspberry Pi's firmware: bits of now, the same 16 higher since it was switched on.
_PI = {0: "under-voltage", 1: "frequency capped", 2: "throttled", 3: "soft temperature limit"}


def examine(system: System, seconds: float, threads: int) -> dict[str, Any]:
    """The section "clocks" of the report: at rest, and in the second half of ``seconds`` of load."""
    rest = _now(system)
    counters = _counters(system)
    busy = rest
    if seconds > 0:
        with Load(threads):
            time.sleep(seconds / 2)
            samples = [_now(system)]
            end = time.monotonic() + seconds / 2
            while time.monotonic() < end:
                time.sleep(min(_SAMPLE, seconds / 2))
                samples.append(_now(system))
            busy = {key: _middle([sample[key] for sample in samples]) for key in rest}
    return {
        "policies": [_policy(system, path) for path in system.find(f"{CPUS}/cpufreq/policy*")],
        "load_seconds": seconds,
        "mhz_rest": rest["mhz"],
        "mhz_load": busy["mhz"],
        "celsius_rest": rest["celsius"],
        "celsius_load": busy["celsius"],
        "throttle_events": None if counters is None else (_counters(system) or 0) - counters,
        "pi_throttled": _pi(system),
    }


class Load:
    """All cores busy, within: a hash, which Python computes without its lock."""

    def __init__(self, threads: int) -> None:
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(threads)]

    def _work(self) -> None:
        while not self._stop.is_set():
            hashlib.pbkdf2_hmac("sha256", b"load", b"load", 20000)

    def __enter__(self) -> None:
        for thread in self._threads:
            thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


def _now(system: System) -> dict[str, float | None]:
    return {"mhz": _mhz(system), "celsius": _celsius(system)}


def _middle(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return round(median(known), 1) if known else None


def _mhz(system: System) -> float | None:
    """The clock of the fastest core."""
    clocks = [system.number(f"{path}/scaling_cur_freq") for path in system.find(f"{CPUS}/cpufreq/policy*")]
    known = [clock / 1000 for clock in clocks if clock]
    if not known:  # x86 without cpufreq, as in a virtual machine
        known = [
            float(mhz)
            for mhz in re.findall(r"^cpu MHz\s*: ([\d.]+)$", system.text("proc/cpuinfo"), re.MULTILINE)
        ]
    return round(max(known), 1) if known else None


def _celsius(system: System) -> float | None:
    """Of the hottest thermal zone or sensor."""
    files = system.find("sys/class/thermal/thermal_zone*/temp") or system.find(
        "sys/class/hwmon/hwmon*/temp*_input"
    )
    known = [value / 1000 for value in map(system.number, files) if value is not None and 0 < value < 150000]
    return round(max(known), 1) if known else None


def _policy(system: System, path: str) -> dict[str, Any]:
    def mhz(name: str) -> float | None:
        value = system.number(f"{path}/{name}")
        return value / 1000 if value else None

    return {
        "cpus": system.text(f"{path}/related_cpus") or system.text(f"{path}/affected_cpus"),
        "driver": system.text(f"{path}/scaling_driver") or None,
        "governor": system.text(f"{path}/scaling_governor") or None,
        "mhz_max": mhz("cpuinfo_max_freq"),
        "mhz_limit": mhz("scaling_max_freq"),
    }


def _counters(system: System) -> int | None:
    """How often x86 cores have throttled since the start; None where nobody counts."""
    values = [
        value
        for name in ("core", "package")
        for path in system.find(f"{CPUS}/cpu*/thermal_throttle/{name}_throttle_count")
        if (value := system.number(path)) is not None
    ]
    return sum(values) if values else None


def _pi(system: System) -> dict[str, list[str]] | None:
    """What a Raspberry Pi's firmware says of its supply and heat: now, and since it was switched on."""
    text = system.run("vcgencmd", "get_throttled").partition("=")[2]
    text = text or system.text("sys/devices/platform/soc/soc:firmware/get_throttled")
    if not re.fullmatch(r"(0x)?[0-9a-fA-F]+", text):
        return None
    bits = int(text, 16)
    return {
        "now": [name for bit, name in _PI.items() if bits >> bit & 1],
        "since_start": [name for bit, name in _PI.items() if bits >> (bit + 16) & 1],
    }
