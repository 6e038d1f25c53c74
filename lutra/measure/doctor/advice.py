# SPDX-License-Identifier: MIT
"""What keeps a machine from what it could do, the gravest first, and what to type about it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from lutra.console import decimal_size

FILE = "FILE"  # stands for the file's path in commands
_SMALL = 100e6  # bytes of a file whose speed says nothing of memory
_NEAR = 0.9  # of a clock or a speed: as good as reached
_POLICIES = "/sys/devices/system/cpu/cpufreq/policy*"
# Drivers whose governor "powersave" goes as high as the load wants.
_SELF_GOVERNED = ("intel_pstate", "amd-pstate-epp", "amd_pstate_epp")


@dataclass(frozen=True)
class Finding:
    """``level`` is "broken", "slow" or "note"; ``fix`` a command or None where hands are needed."""

    level: str
    what: str
    why: str
    fix: str | None = None


def findings(report: dict[str, Any]) -> list[Finding]:
    """All that is wrong, ordered: what is broken, then what costs most."""
    every = [
        *_broken(report),
        *_supply(report),
        *_clocks(report),
        *_share(report),
        *_file(report),
        *_memory(report),
    ]
    levels = ("broken", "slow", "note")
    return sorted(every, key=lambda finding: levels.index(finding.level))


def _broken(report: dict[str, Any]) -> Iterator[Finding]:
    if report["cpu"]["machine"] in ("armv6l", "armv7l", "armv8l"):
        yield Finding(
            "broken", "a 32-bit system", "the kernels need 64 bits; install the 64-bit image of your system"
        )
    if error := report["cpu"]["kernels"].get("error"):
        yield Finding(
            "broken", f"no kernels: {error}", "no codebook file can be computed", "unset LUTRA_KERNELS"
        )
    file = report.get("file")
    if file and file.get("error"):
        yield Finding("broken", "the file cannot be loaded", file["error"], f"lutra verify {FILE}")


def _supply(report: dict[str, Any]) -> Iterator[Finding]:
    pi = report["clocks"]["pi_throttled"]
    if not pi:
        return
    if "under-voltage" in pi["now"] + pi["since_start"]:
        when = "now" if "under-voltage" in pi["now"] else "since it was switched on"
        yield Finding(
            "slow",
            f"under-voltage, {when}",
            "the firmware lowers the clock when the supply is weak; use the supply made for the board and a "
            "short cable, and give disks a supply of their own",
            "vcgencmd get_throttled",
        )
    if {"throttled", "soft temperature limit", "frequency capped"} & {*pi["now"], *pi["since_start"]}:
        when = "now" if set(pi["now"]) - {"under-voltage"} else "since it was switched on"
        yield Finding(
            "slow",
            f"throttled, {when}",
            "the board lowers its clock at 80 to 85 °C; it needs a heat sink, and under long load a fan",
            "watch vcgencmd measure_temp",
        )


def _clocks(report: dict[str, Any]) -> Iterator[Finding]:
    clocks = report["clocks"]
    highest = max((policy["mhz_max"] or 0 for policy in clocks["policies"]), default=0)
    limit = max((policy["mhz_limit"] or 0 for policy in clocks["policies"]), default=0)
    load = clocks["mhz_load"]
    governors = {
        policy["governor"] for policy in clocks["policies"] if policy["driver"] not in _SELF_GOVERNED
    } - {None}
    if "powersave" in governors:
        yield Finding(
            "slow",
            "the governor is powersave",
            "the clock stays at its lowest"
            + (f", {load:.0f} of {highest:.0f} MHz" if load and highest else ""),
            f"echo performance | sudo tee {_POLICIES}/scaling_governor",
        )
    elif highest and limit and limit < _NEAR * highest:
        yield Finding(
            "slow",
            f"the clock is limited to {limit:.0f} of {highest:.0f} MHz",
            "a setting or the cooling keeps it there",
            f"cat {_POLICIES}/cpuinfo_max_freq | sudo tee {_POLICIES.replace('*', '0')}/scaling_max_freq",
        )
    elif highest and load and load < _NEAR * (limit or highest):
        heat = clocks["celsius_load"]
        if heat and heat >= 75:
            why = f"{heat:.0f} °C under load: it needs better cooling"
            fix = None
        else:
            why = f"the governor is {', '.join(sorted(governors)) or 'unknown'}"
            fix = f"echo performance | sudo tee {_POLICIES}/scaling_governor"
        yield Finding("slow", f"{load:.0f} of {highest:.0f} MHz under load", why, fix)
    if clocks["throttle_events"]:
        yield Finding(
            "slow",
            f"throttled {clocks['throttle_events']} times in {clocks['load_seconds']:.0f} s of load",
            "the processor is too hot: clean or better its cooling",
        )


def _share(report: dict[str, Any]) -> Iterator[Finding]:
    cpu = report["cpu"]
    chosen, supported = cpu["kernels"].get("chosen"), cpu["kernels"].get("supported")
    if chosen and supported and cpu["kernels"]["forced"] and supported[-1] not in chosen:
        yield Finding(
            "slow",
            f"the kernels that run are {', '.join(chosen)}; this CPU can do {supported[-1]}",
            "LUTRA_KERNELS is set",
            "unset LUTRA_KERNELS",
        )
    if cpu["quota_cpus"] is not None and cpu["quota_cpus"] < cpu["allowed_cpus"]:
        yield Finding(
            "slow",
            f"the control group gives {cpu['quota_cpus']:.0f} of {cpu['allowed_cpus']} CPUs",
            "a container's limit",
            f"docker run --cpus={cpu['allowed_cpus']} ...",
        )
    if cpu["allowed_cpus"] < cpu["cpus"]:
        yield Finding(
            "slow",
            f"only {cpu['allowed_cpus']} of {cpu['cpus']} CPUs may be used",
            "the affinity of this process, from taskset, a container or a batch system",
            f"taskset -c 0-{cpu['cpus'] - 1} lutra doctor",
        )
    if cpu["load"] and cpu["load"] > 0.5 * cpu["threads"]:
        yield Finding(
            "slow",
            f"other programs kept {cpu['load']:.1f} CPUs busy in the last minute",
            "they take cores and memory from the model, and the figures here are too low",
            "top",
        )


def _file(report: dict[str, Any]) -> Iterator[Finding]:
    file, memory = report.get("file"), report["memory"]
    if not file or file.get("error"):
        return
    size, rate = file["bytes"], file["disk_mb_per_s"]
    room = memory["free_bytes"]
    if size > room:  # what is cached of it counts as free
        yield Finding(
            "slow",
            f"the file has {decimal_size(size)}, free are {decimal_size(room)}",
            "weights are read from the disk again for every token; take a smaller type, end other programs, "
            "or share the model with other machines",
            "lutra worker --help",
        )
    elif file["cached"] is not None and file["cached"] < _NEAR and rate:
        card = ", an SD card; an SSD on USB 3 or NVMe is faster"
        seconds = size * (1 - file["cached"]) / rate / 1e6
        yield Finding(
            "slow" if seconds > 10 else "note",
            f"{file['cached']:.0%} of the file is in memory, the first answer waits {seconds:.0f} s",
            f"the disk gives {rate:.0f} MB/s" + card * (file["disk"] == "sd"),
            f"cat {FILE} > /dev/null",
        )
    if size < _SMALL:
        return  # caches hold it
    if file["large_pages"] is not None and file["large_pages"] < 0.5 and file["cached"] > 0.5:
        yield Finding(
            "note",
            f"only {file['large_pages']:.0%} of the file's cache is in large pages",
            "it was written or read in small pieces; read again in large ones it is faster (docs/SPEED.md)",
            f"dd of={FILE} oflag=nocache conv=notrunc,fdatasync count=0 && dd if={FILE} of=/dev/null bs=4M",
        )
    speed = file.get("speed")
    if speed and speed["expected_tps"] and speed["generation_tps"] < 0.5 * speed["expected_tps"]:
        yield Finding(
            "note",
            f"{speed['generation_tps']:.1f} tokens per second; memory allows {speed['expected_tps']:.1f}",
            "cores, not memory, set the speed, or another program interferes; see the other findings",
            f"lutra bench {FILE} -t 1,2,4",
        )


def _memory(report: dict[str, Any]) -> Iterator[Finding]:
    memory = report["memory"]
    used = memory["swap_used_bytes"] or 0
    if used > 64 << 20:
        kinds = ", ".join(memory["swap_kinds"]) or "a disk"
        yield Finding(
            "note",
            f"{used / 2**20:.0f} MiB are swapped out, to {kinds}",
            "memory was short; what comes back from there, an SD card above all, is slow",
            "ps aux --sort=-rss | head",
        )
    limit, total = memory["limit_bytes"], memory["bytes"]
    if limit and total and limit < 0.9 * total:
        yield Finding(
            "note",
            f"the control group gives {decimal_size(limit)} of {decimal_size(total)} of memory",
            "a container's limit; the file's pages count",
            "docker run --memory=... ...",
        )
