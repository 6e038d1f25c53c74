# SPDX-License-Identifier: MIT
"""Free memory: what the system has available, and no more than the control groups leave."""

from __future__ import annotations

import pytest

from lutra.runtime import cgroups, memory

MEMINFO = "MemTotal: 8000 kB\nMemFree: 1000 kB\nMemAvailable: 6000 kB"


@pytest.fixture
def free(tmp_path, monkeypatch):
    """``free(files, cgroup)``: the KiB that a made-up machine has left."""

    def ask(files: dict[str, object], cgroup: str = "0::/a\n", meminfo: str = MEMINFO) -> float:
        for name, content in files.items():
            path = tmp_path / "cgroup" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{content}\n")
        (tmp_path / "own").write_text(cgroup)
        (tmp_path / "meminfo").write_text(meminfo)
        monkeypatch.setattr(cgroups, "ROOT", tmp_path / "cgroup")
        monkeypatch.setattr(cgroups, "OWN", tmp_path / "own")
        monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "meminfo")
        return memory.free_memory() / 1024

    return ask


def test_without_limits_it_is_what_is_available(free):
    assert free({}) == 6000
    assert free({"a/memory.max": "max", "a/memory.current": 5 << 20}) == 6000
    assert free({"a/memory.max": 100 << 20, "a/memory.current": 0}) == 6000


def test_version_2_leaves_its_limit_less_what_is_used_but_cached_files(free):
    group = {"a/memory.max": 4000 << 10, "a/memory.current": 3000 << 10}
    assert free(group) == 1000
    assert free(group | {"a/memory.stat": f"anon 5\nactive_file {512 << 10}\ninactive_file 1024"}) == 1513
    assert free({"a/memory.max": 4000, "a/memory.current": 5000, "a/memory.stat": ""}) == 0


def test_a_parent_counts(free):
    files = {"memory.max": 3000 << 10, "memory.current": 0, "a/memory.max": "max", "a/memory.current": 0}
    assert free(files) == 3000


def test_version_1(free):
    files = {
        "memory/a/memory.limit_in_bytes": 4000 << 10,
        "memory/a/memory.usage_in_bytes": 3000 << 10,
        "memory/a/memory.stat": f"inactive_file 7\ntotal_inactive_file {100 << 10}",
    }
    assert free(files, "9:cpu:/\n4:memory:/a\n") == 1100


def test_where_the_system_does_not_say(free):
    assert free({}, "", "") > 1 << 17  # this machine's memory, in KiB


def test_all_memory_is_the_machine_s_or_what_the_control_groups_allow(free, monkeypatch):
    monkeypatch.setattr(memory, "_physical", lambda: 8000 << 10)
    free({"a/memory.max": "max"})
    assert memory.total_memory() == 8000 << 10
    free({"a/memory.max": 3000 << 10, "a/memory.current": 2000 << 10})
    assert memory.total_memory() == 3000 << 10  # whatever is used
    free({"a/memory.max": 9000 << 10})
    assert memory.total_memory() == 8000 << 10
