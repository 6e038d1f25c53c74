# SPDX-License-Identifier: MIT
"""Flags of the environment do not reach the kernels: each directory keeps its own instruction set."""

from __future__ import annotations

import json
import platform
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SETS = {
    "x86_64": {"ref": "__SSE2__", "avx2": "__AVX2__", "avx2_vnni": "__AVXVNNI__", "avx512": "__AVX512VNNI__"},
    "aarch64": {
        "ref": "__ARM_NEON",
        "neon": "__ARM_NEON",
        "neon_dotprod": "__ARM_FEATURE_DOTPROD",
        "neon_i8mm": "__ARM_FEATURE_MATMUL_INT8",
        "sve256": "__ARM_FEATURE_SVE",
    },
}
HOSTILE = {
    "x86_64": ["-march=icelake-server", "-march=native", "-mavx512f -mavx512vl -mfma", "-O3 -mfma"],
    "aarch64": ["-mcpu=neoverse-v1", "-march=armv8.2-a+dotprod", "-mcpu=cortex-a76 -march=armv8.4-a+sve"],
}


def predefined(machine: str, cflags: str, build: Path) -> dict[str, set[str]]:
    """The macros that the compiler defines before a file of each directory: they name the instruction set."""
    command = ["cmake", "-S", ROOT / "cpu_kernels", "-B", build, "-G", "Ninja", f"-DCMAKE_C_FLAGS={cflags}"]
    command.append("-DCMAKE_EXPORT_COMPILE_COMMANDS=ON")
    if machine != platform.machine():
        command.append(f"-DCMAKE_TOOLCHAIN_FILE={ROOT}/cmake/{machine}-linux-gnu.cmake")
    subprocess.run(command, check=True, capture_output=True)
    macros: dict[str, set[str]] = {}
    for entry in json.loads((build / "compile_commands.json").read_text()):
        directory = Path(entry["file"]).parent.name
        if directory not in macros:
            options = shlex.split(entry["command"].partition(" -o ")[0])
            done = subprocess.run(
                [*options, "-dM", "-E", "-x", "c", "/dev/null"], check=True, capture_output=True, text=True
            )
            macros[directory] = {m for m in done.stdout.splitlines() if "XSAVE" not in m}  # no arithmetic
    return macros


@pytest.mark.parametrize("machine", SETS)
def test_flags_of_the_environment_change_no_set(machine: str, tmp_path: Path) -> None:
    if machine != platform.machine() and not (
        shutil.which("clang-22") or shutil.which(f"{machine}-linux-gnu-gcc")
    ):
        pytest.skip(f"no compiler for {machine}")
    plain = predefined(machine, "", tmp_path / "plain")
    for directory, macro in SETS[machine].items():
        assert f"#define {macro} 1" in plain[directory]
    for i, cflags in enumerate(HOSTILE[machine]):
        hostile = predefined(machine, cflags, tmp_path / str(i))
        for directory, macros in plain.items():
            assert hostile[directory] == macros, f"{directory} with {cflags}"


@pytest.mark.parametrize(
    "options", [["-DCMAKE_BUILD_TYPE=RelWithDebInfo"], ["-DCMAKE_BUILD_TYPE=None", "-DCMAKE_C_FLAGS=-O2"]]
)
def test_kernels_are_optimized_as_the_tests_run_them(options: list[str], tmp_path: Path) -> None:
    command = ["cmake", "-S", ROOT / "cpu_kernels", "-B", tmp_path, "-G", "Ninja", *options]
    subprocess.run([*command, "-DCMAKE_EXPORT_COMPILE_COMMANDS=ON"], check=True, capture_output=True)
    for entry in json.loads((tmp_path / "compile_commands.json").read_text()):
        levels = [word for word in shlex.split(entry["command"]) if word.startswith("-O")]
        assert levels[-1] == "-O3", entry["file"]
