# SPDX-License-Identifier: MIT
"""A file: how much of it is in the page cache, and how fast its disk brings the rest."""

from __future__ import annotations

import ctypes
import mmap
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lutra.measure.doctor.system import System

_BLOCK = 4 << 20  # bytes of one read
_MOST = 128 << 20  # bytes read to measure the disk
_SAMPLES = 4096  # pages that are looked at
_COMPOUND = 1 << 15 | 1 << 16  # of /proc/kpageflags: head or tail of a unit of several pages


def examine(system: System, path: Path, seconds: float) -> dict[str, Any]:
    """The section "file" of the report, as far as the disk goes. Reads for ``seconds``; 0: not at all."""
    cached = cached_pages(path)
    return {
        "bytes": path.stat().st_size,
        "cached": None if cached is None else round(sum(cached) / max(1, len(cached)), 3),
        "large_pages": large_pages(path, cached),
        "disk": device(system, path),
        "disk_mb_per_s": read_speed(path, cached, seconds) if seconds > 0 else None,
    }


def cached_pages(path: Path) -> bytes | None:
    """A byte per page of the file, 1 when it is in the page cache (mincore). None where that is not told.

    Linux tells it of files that are ours or that we may write.
    """
    try:
        mincore = ctypes.CDLL(None).mincore
    except AttributeError:
        return None
    size = path.stat().st_size
    if not size or not (os.access(path, os.W_OK) or path.stat().st_uid == os.geteuid()):
        return None
    pages = (ctypes.c_ubyte * -(-size // mmap.PAGESIZE))()
    with _mapped(path) as address:
        failed = mincore(ctypes.c_void_p(address), ctypes.c_size_t(size), pages)
    return None if failed else bytes(page & 1 for page in pages)


def large_pages(path: Path, cached: bytes | None) -> float | None:
    """The part of the cached pages that the kernel holds in larger units. None unless root asks on Linux."""
    held = [i for i, page in enumerate(cached or b"") if page]
    large, seen = 0, held[:: max(1, len(held) // _SAMPLES)]
    try:
        with (
            open("/proc/self/pagemap", "rb", 0) as map_,
            open("/proc/kpageflags", "rb", 0) as flags,
            _mapped(path) as address,
        ):
            for page in seen:
                at = address + page * mmap.PAGESIZE
                ctypes.string_at(at, 1)  # so that it has an entry
                map_.seek(at // mmap.PAGESIZE * 8)
                flags.seek((int.from_bytes(map_.read(8), "little") & (1 << 55) - 1) * 8)
                large += bool(int.from_bytes(flags.read(8), "little") & _COMPOUND)
    except OSError:
        return None
    return round(large / len(seen), 3) if seen else None


@contextmanager
def _mapped(path: Path) -> Iterator[int]:
    """The address of the file's bytes; nothing is read yet."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as mapped:
        first = ctypes.c_char.from_buffer(mapped)
        try:
            yield ctypes.addressof(first)
        finally:
            del first  # or the mapping could not be closed


def read_speed(path: Path, cached: bytes | None, seconds: float) -> float | None:
    """10^6 bytes per second that the disk gives of the file, and the page cache stays as it is.

    Read past the cache (O_DIRECT) from the beginning. Where the file system cannot, only what is not cached
    is read, and dropped again. None when there is nothing to read.
    """
    for direct in (True, False):
        flags = os.O_RDONLY | (getattr(os, "O_DIRECT", 0) if direct else 0)
        if direct and not hasattr(os, "O_DIRECT"):
            continue
        try:
            descriptor = os.open(path, flags)
        except OSError:
            continue
        try:
            return _read(descriptor, None if direct else cached, direct, seconds)
        except OSError:
            continue
        finally:
            os.close(descriptor)
    return None


def _read(descriptor: int, cached: bytes | None, direct: bool, seconds: float) -> float | None:
    if not direct and (cached is None or not hasattr(os, "posix_fadvise")):
        return None
    size = os.fstat(descriptor).st_size
    read, spent = 0, 0.0
    with mmap.mmap(-1, _BLOCK) as block:  # aligned, as O_DIRECT wants it
        for offset in range(0, size - size % _BLOCK, _BLOCK):
            pages = slice(offset // mmap.PAGESIZE, (offset + _BLOCK) // mmap.PAGESIZE)
            if cached is not None and any(cached[pages]):
                continue
            began = time.perf_counter()
            read += os.preadv(descriptor, [block], offset)
            spent += time.perf_counter() - began
            if not direct:
                os.posix_fadvise(descriptor, offset, _BLOCK, os.POSIX_FADV_DONTNEED)
            if spent > seconds or read >= _MOST:
                break
    return round(read / spent / 1e6, 1) if read else None


def device(system: System, path: Path) -> str | None:
    """What the file lies on: "sd" card, "nvme", "usb", "disk" that turns, "ssd", or a kind of file system."""
    number = path.stat().st_dev
    major, minor = os.major(number), os.minor(number)
    for line in system.text("proc/self/mountinfo").splitlines():
        words = line.split()
        if words[2] == f"{major}:{minor}" and major == 0:  # overlay, tmpfs, a network
            return words[words.index("-") + 1]
    link = system.root / f"sys/dev/block/{major}:{minor}"
    target = os.path.realpath(link)
    for kind, pattern in (("sd", r"/mmc"), ("nvme", r"/nvme"), ("usb", r"/usb\d")):
        if re.search(pattern, target):
            return kind
    for queue in ("queue", "../queue"):  # a partition's is its disk's
        turns = system.text(f"sys/dev/block/{major}:{minor}/{queue}/rotational")
        if turns:
            return "disk" if turns == "1" else "ssd"
    return None
