# SPDX-License-Identifier: MIT
"""Memory: how much there is, how much is free, and how fast it is read."""

from __future__ import annotations

import ctypes
import mmap
import re
import threading
import time
from typing import Any

from lutra.measure.doctor.system import System
from lutra.runtime.memory import free_memory, memory_limit

_LARGEST, _PER_THREAD = 1 << 30, 64 << 20  # bytes that are read, at most and of each thread
_ABSENT = 0xFF  # a byte that memchr does not find


def examine(system: System, threads: int, seconds: float) -> dict[str, Any]:
    """The section "memory" of the report. Bandwidth is measured for ``seconds``; 0: not at all."""
    fields = {
        key: int(value) * 1024
        for key, value in re.findall(r"^(\w+):\s+(\d+) kB$", system.text("proc/meminfo"), re.MULTILINE)
    }
    total = fields.get("MemTotal") or int(system.run("sysctl", "-n", "hw.memsize") or 0) or None
    swaps = [line.split() for line in system.text("proc/swaps").splitlines()[1:]]
    huge = re.search(r"\[(\w+)\]", system.text("sys/kernel/mm/transparent_hugepage/enabled"))
    free = free_memory()
    gigabytes = read_bandwidth(threads, seconds, free) if seconds > 0 else None
    return {
        "bytes": total,
        "free_bytes": free,
        "limit_bytes": memory_limit(),
        "swap_bytes": fields.get("SwapTotal"),
        "swap_used_bytes": fields.get("SwapTotal", 0) - fields.get("SwapFree", 0),
        "swap_kinds": sorted({"zram" if "zram" in swap[0] else swap[1] for swap in swaps if len(swap) > 1}),
        "page_bytes": mmap.PAGESIZE,
        "huge_pages": huge[1] if huge else None,
        "gb_per_s": gigabytes,
        "gb_per_s_threads": threads if gigabytes else None,
        "gb_per_s_method": "memchr of the C library over 64 MiB per thread" if gigabytes else None,
    }


def read_bandwidth(threads: int, seconds: float, free: int) -> float | None:
    """10^9 bytes per second that ``threads`` read of memory together, the best of several passes.

    Each looks with the C library's memchr, which is made for speed and needs no lock of Python's, for a byte
    that is not there. None where memory is too short to leave the caches behind.
    """
    size = min(_PER_THREAD, _LARGEST // threads, free // (4 * threads)) // mmap.PAGESIZE * mmap.PAGESIZE
    if size * threads < 32 << 20:
        return None
    memchr = ctypes.CDLL(None).memchr
    memchr.restype, memchr.argtypes = ctypes.c_void_p, (ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t)
    blocks = [(ctypes.c_char * size)() for _ in range(threads)]
    for block in blocks:
        ctypes.memset(block, 1, size)  # pages of its own, not the one page of zeros
    start, done = threading.Barrier(threads + 1), threading.Barrier(threads + 1)
    best, going = float("inf"), True

    def read(block: object) -> None:
        while True:
            start.wait()
            if not going:
                return
            memchr(block, _ABSENT, size)
            done.wait()

    readers = [threading.Thread(target=read, args=(block,), daemon=True) for block in blocks]
    for reader in readers:
        reader.start()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        start.wait()
        began = time.perf_counter()
        done.wait()
        best = min(best, time.perf_counter() - began)
    going = False
    start.wait()
    for reader in readers:
        reader.join()
    return round(size * threads / best / 1e9, 1)
