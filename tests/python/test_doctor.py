# SPDX-License-Identifier: MIT
"""``lutra doctor`` on machines that are made up of files: boards, servers, containers, other systems."""

from __future__ import annotations

import argparse
import getpass
import json
import os
import platform
from pathlib import Path

import numpy as np
import pytest
from cli_runner import ROOT, assert_error, lutra, require_built
from gguf import GGUFValueType as T
from gguf.gguf_writer import GGUFValue
from gguf_samples import write_gguf

from gguf_tools.errors import LutraError
from gguf_tools.inspect import read_info
from lutra.cli import doctor
from lutra.measure.doctor import disk, memory
from lutra.measure.doctor.report import examine, sendable
from lutra.measure.doctor.roofline import bytes_per_token
from lutra.measure.doctor.system import System, cpu_list
from lutra.runtime import cgroups, kernels, threads
from lutra.runtime import memory as runtime_memory

POLICY = "sys/devices/system/cpu/cpufreq/policy0"
MEMINFO = "MemTotal: {0} kB\nMemAvailable: {1} kB\nSwapTotal: {2} kB\nSwapFree: {3} kB\n"


def cpuinfo(part: str, features: str) -> str:
    core = f"Features\t: {features}\nCPU implementer\t: 0x41\nCPU architecture: 8\nCPU part\t: {part}\n\n"
    return "".join(f"processor\t: {i}\n{core}" for i in range(4))


PI5 = {
    "proc/cpuinfo": cpuinfo("0xd0b", "fp asimd asimdhp asimddp"),
    "proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0\0",
    "proc/meminfo": MEMINFO.format(8245248, 7000000, 524272, 524272),
    "proc/swaps": "Filename Type Size Used Priority\n/dev/zram0 partition 524272 0 100\n",
    "proc/loadavg": "0.10 0.10 0.10 1/200 1000",
    "proc/sys/kernel/osrelease": "6.12.25+rpt-rpi-2712",
    "sys/devices/system/cpu/online": "0-3",
    "sys/class/thermal/thermal_zone0/temp": "84500",
    f"{POLICY}/related_cpus": "0 1 2 3",
    f"{POLICY}/scaling_driver": "cpufreq-dt",
    f"{POLICY}/scaling_governor": "ondemand",
    f"{POLICY}/cpuinfo_max_freq": 2400000,
    f"{POLICY}/scaling_max_freq": 2400000,
    f"{POLICY}/scaling_cur_freq": 2400000,
}
COOL = {
    "sys/class/thermal/thermal_zone0/temp": "52000",
    "usr/bin/vcgencmd": "#!/bin/sh\necho throttled=0x0\n",
}
HOT = {f"{POLICY}/scaling_cur_freq": 1500000, "usr/bin/vcgencmd": "#!/bin/sh\necho throttled=0xe0006\n"}
PI4 = {
    **PI5,
    **COOL,
    "proc/cpuinfo": cpuinfo("0xd08", "fp asimd evtstrm crc32"),
    "proc/device-tree/model": "Raspberry Pi 4 Model B Rev 1.4\0",
    f"{POLICY}/scaling_governor": "powersave",
    f"{POLICY}/cpuinfo_max_freq": 1800000,
    f"{POLICY}/scaling_max_freq": 1800000,
    f"{POLICY}/scaling_cur_freq": 600000,
}
GRAVITON = {
    "proc/cpuinfo": cpuinfo("0xd40", "fp asimd asimdhp asimddp sve i8mm bf16"),
    "proc/sys/abi/sve_default_vector_length": 32,
    "proc/meminfo": MEMINFO.format(8000000, 7500000, 0, 0),
    "proc/loadavg": "0.00 0.01 0.00 1/200 1000",
    "sys/devices/system/cpu/online": "0-3",
    "sys/devices/virtual/dmi/id/sys_vendor": "Amazon EC2",
    "sys/devices/virtual/dmi/id/product_name": "c7g.xlarge",
}
CONTAINER = {
    **GRAVITON,
    "proc/self/cgroup": "0::/\n",
    "sys/fs/cgroup/cpu.max": "200000 100000",
    "sys/fs/cgroup/memory.max": 2 << 30,
    "sys/fs/cgroup/memory.current": 1 << 30,
    "sys/fs/cgroup/memory.stat": "active_file 0\ninactive_file 0\n",
}


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """``machine(files, ...)`` is the report of a machine with these files; nothing is measured on it."""
    require_built()
    root = tmp_path / "root"

    def make(files, allowed=4, file=None, forced="", **system):
        for name, content in files.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(str(content))
            if name.startswith("usr/bin"):
                path.chmod(0o755)
        monkeypatch.setattr(cgroups, "ROOT", root / "sys/fs/cgroup")
        monkeypatch.setattr(cgroups, "OWN", root / "proc/self/cgroup")
        monkeypatch.setattr(runtime_memory, "_MEMINFO", root / "proc/meminfo")
        monkeypatch.setattr(threads, "_CPUS", root / "sys/devices/system/cpu")
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(allowed)), raising=False)
        monkeypatch.setenv("LUTRA_KERNELS", forced)
        system = {"kind": "Linux", "machine": "aarch64"} | system
        return examine(file, system=System(root, **system), seconds=0)

    return make


def said(report) -> list[str]:
    """The findings as level and what."""
    json.dumps(report)
    assert doctor.text_of(report, None)
    return [f"{finding['level']}: {finding['what']}" for finding in report["findings"]]


def fixes(report) -> list[str]:
    return [finding["fix"] for finding in report["findings"]]


# ---- machines ------------------------------------------------------------------------------


def test_a_pi_5_that_is_well(machine):
    report = machine(PI5 | COOL)
    assert said(report) == []
    assert report["cpu"]["name"] == "Raspberry Pi 5 Model B Rev 1.0 (Cortex-A76)"
    assert report["cpu"]["features"] == ["asimd", "asimdhp", "asimddp"]
    assert report["cpu"]["kernel"] == "6.12"
    assert (report["cpu"]["cpus"], report["cpu"]["threads"]) == (4, 4)
    assert report["memory"]["swap_kinds"] == ["zram"]
    assert doctor.text_of(report, None).endswith("Nothing to change.")


def test_a_pi_5_that_throttles(machine):
    report = machine(PI5 | HOT)
    assert said(report) == ["slow: throttled, now", "slow: 1500 of 2400 MHz under load"]
    assert report["clocks"]["pi_throttled"] == {
        "now": ["frequency capped", "throttled"],
        "since_start": ["frequency capped", "throttled", "soft temperature limit"],
    }
    assert "84 °C" in report["findings"][1]["why"]


def test_a_pi_with_a_weak_supply_and_no_vcgencmd(machine):
    report = machine(PI5 | {"sys/devices/platform/soc/soc:firmware/get_throttled": "50005"})
    assert said(report)[0] == "slow: under-voltage, now"


def test_a_pi_4_with_the_governor_powersave(machine):
    report = machine(PI4)
    assert report["cpu"]["name"] == "Raspberry Pi 4 Model B Rev 1.4 (Cortex-A72)"
    assert said(report) == ["slow: the governor is powersave"]
    (fix,) = fixes(report)
    assert fix == ("echo performance | sudo tee /sys/devices/system/cpu/cpufreq/policy*/scaling_governor")


def test_powersave_of_a_driver_that_governs_itself_is_fine(machine):
    files = PI4 | {f"{POLICY}/scaling_driver": "intel_pstate", f"{POLICY}/scaling_cur_freq": 1800000}
    assert said(machine(files)) == []


def test_a_clock_that_is_limited(machine):
    report = machine(PI5 | COOL | {f"{POLICY}/scaling_max_freq": 1500000})
    assert said(report) == ["slow: the clock is limited to 1500 of 2400 MHz"]


def test_a_graviton(machine):
    report = machine(GRAVITON)
    assert said(report) == []
    assert report["cpu"]["name"] == "Amazon EC2 c7g.xlarge (Neoverse V1)"
    assert report["cpu"]["sve_bits"] == 256
    assert report["clocks"]["policies"] == []
    assert report["clocks"]["mhz_load"] is None


def test_a_container_with_limits(machine):
    report = machine(CONTAINER)
    assert said(report) == [
        "slow: the control group gives 2 of 4 CPUs",
        "note: the control group gives 2.1 GB of 8.2 GB of memory",
    ]
    assert report["cpu"]["threads"] == 2
    assert report["memory"]["free_bytes"] == 1 << 30


def test_an_affinity(machine):
    assert said(machine(GRAVITON, allowed=1)) == ["slow: only 1 of 4 CPUs may be used"]


def test_other_programs_and_swap(machine):
    files = {"proc/loadavg": "3.90 3.00 2.00 4/200 1000", "proc/swaps": "F T S U P\n/var/swap file 1 1 -2\n"}
    files["proc/meminfo"] = MEMINFO.format(8245248, 7000000, 524272, 24272)
    assert said(machine(PI5 | COOL | files)) == [
        "slow: other programs kept 3.9 CPUs busy in the last minute",
        "note: 488 MiB are swapped out, to file",
    ]


def test_x86_that_throttles_under_load(machine, monkeypatch):
    counter = "sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count"
    files = {
        "proc/cpuinfo": "model name\t: A CPU\nflags\t\t: sse avx2 fma\ncpu MHz\t\t: 3000.5\n",
        counter: 7,
    }
    before = System.number
    counts = iter([7, 12])
    monkeypatch.setattr(
        System, "number", lambda self, path: next(counts) if path == counter else before(self, path)
    )
    report = machine(files, machine="x86_64")
    assert report["cpu"]["name"] == "A CPU (x86_64)"
    assert report["cpu"]["features"] == ["avx2", "fma"]
    assert report["clocks"]["mhz_rest"] == 3000.5
    assert said(report) == ["slow: throttled 5 times in 0 s of load"]


def test_a_mac(machine):
    sysctl = '#!/bin/sh\n[ "$2" = hw.memsize ] && echo 17179869184 || echo Apple M2\n'
    report = machine({"usr/bin/sysctl": sysctl}, kind="Darwin", machine="arm64")
    assert report["cpu"]["name"] == "Apple M2 (arm64)"
    assert report["memory"]["bytes"] == 16 << 30
    assert said(report) == []


def test_a_system_that_tells_nothing(machine):
    """As Termux on a phone, where most of /proc and /sys may not be read."""
    report = machine({})
    assert report["cpu"]["name"] == "unknown (aarch64)"
    assert report["memory"]["bytes"] is None
    assert said(report) == []


def test_kernels_that_cannot_be_had_are_broken(machine, monkeypatch, capsys):
    def sets():
        raise LutraError("LUTRA_KERNELS=nonsense: no such set")

    monkeypatch.setattr(kernels, "sets", sets)
    report = machine(PI5 | COOL)
    assert said(report) == ["broken: no kernels: LUTRA_KERNELS=nonsense: no such set"]
    monkeypatch.setattr("lutra.measure.doctor.report.examine", lambda *_, **__: report)
    assert doctor.run(argparse.Namespace(file=None, threads=None, report="-")) == 1
    assert json.loads(capsys.readouterr().out) == report
    report["findings"] = []
    assert doctor.run(argparse.Namespace(file=None, threads=None, report=None)) == 0
    assert capsys.readouterr().out.endswith("Nothing to change.\n")


def test_a_set_that_is_forced(machine, monkeypatch):
    sets = {"compiled": ["ref", "neon"], "supported": ["ref", "neon"], "chosen": ["ref"]}
    monkeypatch.setattr(kernels, "sets", lambda: sets)
    assert said(machine(PI5 | COOL)) == []
    assert said(machine(PI5 | COOL, forced="ref")) == [
        "slow: the kernels that run are ref; this CPU can do neon"
    ]


def test_a_system_of_32_bits_is_broken(machine):
    assert said(machine({}, machine="armv7l")) == ["broken: a 32-bit system"]


def test_the_gravest_comes_first(machine):
    files = PI4 | {"proc/swaps": "F T S U P\n/var/swap file 1 1 -2\n"}
    files["proc/meminfo"] = MEMINFO.format(8245248, 7000000, 524272, 24272)
    levels = [line.split(":")[0] for line in said(machine(files, machine="armv7l"))]
    assert levels == ["broken", "slow", "note"]


# ---- a file --------------------------------------------------------------------------------


def weights(rows: int, k: int = 256) -> tuple[int, tuple[int, int], np.ndarray]:
    return 1, (rows, k), np.zeros(rows * k * 2, np.uint8)  # F16


@pytest.fixture
def file(tmp_path):
    return write_gguf(
        tmp_path / "m.gguf",
        {
            "token_embd.weight": weights(1000),
            "output.weight": weights(1000),
            "blk.0.ffn_up_exps.weight": weights(64),
        },
        {
            "general.architecture": GGUFValue("qwen3moe", T.STRING),
            "qwen3moe.expert_count": GGUFValue(8, T.UINT32),
            "qwen3moe.expert_used_count": GGUFValue(2, T.UINT32),
        },
    )


def test_bytes_of_a_token(file, tmp_path):
    assert bytes_per_token(read_info(file)) == 512 * (1 + 1000 + 64 // 4)
    tied = write_gguf(tmp_path / "tied.gguf", {"token_embd.weight": weights(1000)}, {})
    assert bytes_per_token(read_info(tied)) == 512 * 1000


def test_a_file_that_is_larger_than_memory(machine, file):
    files = PI5 | COOL | {"proc/meminfo": MEMINFO.format(1000, 100, 0, 0)}
    report = machine(files, file=file)
    assert "slow: the file has 1 MB, free are 0 MB" in said(report)
    assert report["file"]["architecture"] == "qwen3moe"


def test_a_file_on_a_slow_card(machine, file, monkeypatch):
    about = {"bytes": 5 * 10**9, "cached": 0.2, "large_pages": None, "disk": "sd", "disk_mb_per_s": 40.0}
    monkeypatch.setattr(disk, "examine", lambda *_: about)
    report = machine(PI5 | COOL, file=file)
    assert said(report) == ["slow: 20% of the file is in memory, the first answer waits 100 s"]
    assert "SD card" in report["findings"][0]["why"]
    named = doctor.text_of(report, Path("a model.gguf"))
    assert "$ cat 'a model.gguf' > /dev/null" in named


@pytest.mark.parametrize(("size", "found"), [(5 * 10**9, 2), (10**7, 0)])
def test_a_file_that_is_slow_to_read_and_to_compute(machine, file, monkeypatch, size, found):
    about = {"bytes": size, "cached": 1.0, "large_pages": 0.1, "disk": "nvme", "disk_mb_per_s": 900.0}
    about["speed"] = {"expected_tps": 8.0, "generation_tps": 2.0}
    monkeypatch.setattr(disk, "examine", lambda *_: about)
    monkeypatch.setattr(doctor, "file_rows", lambda report: [])
    expected = ["note: only 10% of the file's cache is in large pages"]
    expected += ["note: 2.0 tokens per second; memory allows 8.0"]
    assert said(machine(PI5 | COOL, file=file)) == expected[:found]


def test_a_report_that_would_overwrite_a_model(file):
    before = file.read_bytes()
    assert_error(lutra("doctor", "--report", file), "a report's name ends in .json")
    assert file.read_bytes() == before


def test_a_file_that_is_none(machine, tmp_path):
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF")
    report = machine(PI5 | COOL, file=broken)
    assert said(report) == ["broken: the file cannot be loaded"]
    assert fixes(report) == ["lutra verify FILE"]
    assert str(tmp_path) not in json.dumps(report)
    with pytest.raises(LutraError, match="no such file"):
        machine(PI5, file=tmp_path / "missing.gguf")


def test_what_is_in_the_page_cache(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(os.urandom(20 << 20))
    cached = disk.cached_pages(path)
    assert cached is not None
    assert all(cached)
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    dropped = disk.cached_pages(path)
    if all(dropped):
        pytest.skip("this is no file system whose cache can be dropped")
    assert not any(dropped)
    assert disk.read_speed(path, dropped, 0.2) > 0
    assert disk.cached_pages(path) == dropped  # measuring has changed nothing


def test_the_disk_without_direct_reads(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_bytes(os.urandom(20 << 20))
    monkeypatch.delattr(os, "O_DIRECT", raising=False)
    assert disk.read_speed(path, b"\1" * 5120, 0.2) is None  # all of it is cached
    assert disk.read_speed(path, None, 0.2) is None  # nobody knows what is
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    before = disk.cached_pages(path)
    if not any(before):
        assert disk.read_speed(path, before, 0.2) > 0
        assert disk.cached_pages(path) == before


def test_memory_is_read():
    assert 0.1 < memory.read_bandwidth(2, 0.1, 1 << 30) < 10000
    assert memory.read_bandwidth(2, 0.1, 1 << 20) is None


def test_lists_of_cpus():
    assert cpu_list("0-3,6") == [0, 1, 2, 3, 6]
    assert cpu_list("") == []


# ---- the command ---------------------------------------------------------------------------


def test_the_command_on_this_machine(file, tmp_path):
    require_built("llama-bench")
    out = tmp_path / "report.json"
    done = lutra("doctor", "--report", out)
    assert done.returncode == 0, done.stderr
    assert "memory speed" in done.stdout
    report = json.loads(out.read_text())
    assert report["schema"] == "lutra-doctor/1"
    assert report["cpu"]["kernels"]["chosen"] == kernels.sets()["chosen"]
    assert report["file"] is None
    assert report["memory"]["gb_per_s"] > 0
    assert_error(lutra("doctor", tmp_path / "no.gguf"), "no.gguf: no such file")


def test_a_report_says_nothing_of_people(monkeypatch):
    monkeypatch.setattr(getpass, "getuser", lambda: "jane")
    monkeypatch.setattr(platform, "node", lambda: "janes-pi")
    monkeypatch.setenv("HOME", "/home/jane")
    report = {"a": ["the file /home/jane/m.gguf", {"b": "janes-pi"}], "c": 3, "d": None, "e": "janet"}
    assert sendable(report) == {"a": ["the file ***/m.gguf", {"b": "***"}], "c": 3, "d": None, "e": "janet"}


def test_the_report_is_documented(machine, file):
    def keys(value, path=""):
        if isinstance(value, dict):
            for key, item in value.items():
                yield f"{path}{key}"
                yield from keys(item, f"{path}{key}.")
        elif isinstance(value, list):
            for item in value[:1]:
                yield from keys(item, path)

    text = (ROOT / "docs/DOCTOR.md").read_text()
    report = machine(PI4, file=file)
    missing = [key for key in keys(report) if f"`{key.split('.')[-1]}`" not in text]
    assert missing == []
    assert report["schema"] in text
