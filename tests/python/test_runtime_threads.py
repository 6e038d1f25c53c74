# SPDX-License-Identifier: MIT
"""Default threads: cores that are allowed and fast, and the control groups' share of time."""

from __future__ import annotations

import os

import pytest

from lutra.runtime import cgroups, threads


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A made-up machine: ``machine(files, cgroup=..., allowed=...)`` is how many threads it is given."""

    def ask(files: dict[str, object], cgroup: str = "", allowed: range = range(8)) -> int:
        for name, content in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{content}\n")
        own = tmp_path / "own"
        own.write_text(cgroup)
        monkeypatch.setattr(threads, "_CPUS", tmp_path / "cpu")
        monkeypatch.setattr(cgroups, "ROOT", tmp_path / "cgroup")
        monkeypatch.setattr(cgroups, "OWN", own)
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(allowed), raising=False)
        return threads.default_threads()

    return ask


def test_siblings_are_one_core(machine):
    assert (
        machine({f"cpu/cpu{i}/topology/thread_siblings_list": f"{i % 4},{i % 4 + 4}" for i in range(8)}) == 4
    )


def test_slow_cores_are_left_out(machine):
    assert machine({f"cpu/cpu{i}/cpu_capacity": 446 if i < 4 else 1024 for i in range(8)}) == 4
    assert machine({f"cpu/cpu{i}/cpu_capacity": 446 for i in range(8)}) == 8


def test_a_system_that_says_nothing(machine, monkeypatch):
    assert machine({}, allowed=range(3)) == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 5)
    assert threads.default_threads() == 5
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert threads.default_threads() == 1


@pytest.mark.parametrize(
    ("quota", "expected"),
    [
        ("max 100000", 8),
        ("300000 100000", 3),
        ("250000 100000", 2),
        ("50000 100000", 1),
        ("9000000 100000", 8),
    ],
)
def test_quota_of_version_2(machine, quota, expected):
    assert machine({"cgroup/a/b/cpu.max": quota}, "0::/a/b\n") == expected


def test_quota_of_a_parent_counts(machine):
    files = {"cgroup/a/cpu.max": "200000 100000", "cgroup/a/b/cpu.max": "400000 100000"}
    assert machine(files, "0::/a/b\n") == 2
    assert machine({"cgroup/cpu.max": "100000 100000"}, "0::/a/b\n") == 1


def test_quota_in_a_container_that_sees_only_its_own_root(machine):
    assert machine({"cgroup/cpu.max": "200000 100000"}, "0::/of/the/host\n") == 2


@pytest.mark.parametrize(("quota", "expected"), [(-1, 8), (250000, 2), (10000, 1)])
def test_quota_of_version_1(machine, quota, expected):
    files = {
        "cgroup/cpu,cpuacct/docker/x/cpu.cfs_quota_us": quota,
        "cgroup/cpu,cpuacct/docker/x/cpu.cfs_period_us": 100000,
    }
    assert machine(files, "4:cpu,cpuacct:/docker/x\n3:memory:/other\n1:name=systemd:/\n") == expected


def test_quota_of_version_1_above(machine):
    files = {"cgroup/cpu/cpu.cfs_quota_us": 300000, "cgroup/cpu/cpu.cfs_period_us": 100000}
    assert machine(files, "1:cpu:/of/the/host\n0::/\n") == 3
