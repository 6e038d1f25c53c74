# SPDX-License-Identifier: MIT
"""Other systems than Linux, made up: what macOS answers, and what Android keeps to itself."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path

import pytest

from lutra.conversion import workdir
from lutra.runtime import cgroups, darwin, memory, threads
from pyquant import _native


@pytest.fixture
def no_proc(monkeypatch):
    """No file of /proc and /sys can be read, and nobody says which CPUs we may use."""
    read = Path.read_text

    def refuse(self, *args, **kwargs):
        if str(self).startswith(("/proc/", "/sys/")):
            raise PermissionError(13, "Permission denied", str(self))
        return read(self, *args, **kwargs)

    monkeypatch.setattr(Path, "read_text", refuse)
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    monkeypatch.setattr(platform, "machine", lambda: "arm64")


@pytest.fixture
def macos(no_proc, monkeypatch, tmp_path):
    """A Mac with 4 performance cores and 2 others: ``macos(values)`` changes what sysctl answers."""
    program = tmp_path / "sysctl"
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(darwin, "_SYSCTL", str(program))

    def says(values: dict[str, str]) -> None:
        cases = "".join(f"{name}) echo {value!r} ;;\n" for name, value in values.items())
        program.write_text(f'#!/bin/sh\ncase "$2" in\n{cases}*) echo unknown oid >&2; exit 1 ;;\nesac\n')
        program.chmod(0o755)

    says({"hw.perflevel0.physicalcpu": "4", "hw.physicalcpu": "6", "machdep.cpu.brand_string": "Apple M2"})
    return says


def test_macos_uses_its_performance_cores(macos):
    assert threads.default_threads() == 4
    assert _native.thread_count(None) == 6
    macos({"hw.physicalcpu": "5"})  # all are alike
    assert threads.default_threads() == 5
    macos({})
    assert threads.default_threads() == 6


def test_macos_names_its_cpu(macos):
    assert workdir.cpu() == ["arm64", "model name: Apple M2"]


def test_a_system_that_lets_nobody_look(no_proc, monkeypatch):
    monkeypatch.setattr(sys, "platform", "android")
    assert threads.default_threads() == 6
    assert list(cgroups.control_groups("cpu")) == []
    assert memory.free_memory() == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert workdir.cpu() == ["arm64"]


def test_only_macos_is_asked(monkeypatch):
    monkeypatch.setattr(darwin, "_SYSCTL", "/does/not/exist")
    assert darwin.sysctl("hw.physicalcpu") == ""
