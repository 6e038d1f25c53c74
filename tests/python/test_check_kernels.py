# SPDX-License-Identifier: MIT
"""scripts/check_kernels finds what is out of date, and a kernel without a body, a reference, a test or a
benchmark."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TABLE = "cpu_kernels/formats/cb.toml"
STALE = "not up to date; run cpu_kernels/formats/generate.py\n"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The part of the repository that the script reads."""
    for name in ("cpu_kernels", "gguf_tools", "tests/kernels", "bench", "docs"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts/check_kernels", tmp_path / "scripts")
    return tmp_path


def check(copy: Path) -> tuple[int, str]:
    """Exit status and output of the script on the copy."""
    done = subprocess.run([sys.executable, copy / "scripts/check_kernels"], capture_output=True, text=True)
    assert done.stderr == ""
    return done.returncode, done.stdout


def generate(copy: Path) -> None:
    """Brings the copy up to date with its cb.toml."""
    subprocess.run([sys.executable, copy / "cpu_kernels/formats/generate.py"], check=True)


def change(path: Path, pattern: str, replacement: str) -> None:
    """Replaces what the pattern matches, at least once."""
    text, times = re.subn(pattern, replacement, path.read_text())
    assert times > 0, pattern
    path.write_text(text)


def remove_job(copy: Path, set_: str, job: str) -> None:
    """Takes one job of a set out of cb.toml."""
    change(copy / TABLE, rf"(?ms)^(\[kernels\.{set_}\]$.*?)^{job} = .*?$\n", r"\1")


def test_the_repository_passes(copy: Path) -> None:
    assert check(copy)[0] == 0


@pytest.mark.parametrize(
    "path",
    [
        "cpu_kernels/formats/cb_types.h",
        "cpu_kernels/ref/bit_maps.inc",
        "cpu_kernels/dispatch/kernels.h",
        "cpu_kernels/include/lutra_sets.h",
        "cpu_kernels/avx2/gemm.c",
        "cpu_kernels/overlay/cb_rows.py",
        "gguf_tools/formats/members.py",
        "cpu_kernels/README.md",
        "docs/FORMAT.md",
    ],
)
def test_a_generated_file_that_was_changed(copy: Path, path: str) -> None:
    change(copy / path, r"(?i)cb3|1170006|neon", "CB7")
    status, problems = check(copy)
    assert status == 1
    assert f"{path}: {STALE}" in problems
    generate(copy)
    assert check(copy)[0] == 0


def test_a_kernel_of_cb_toml_that_was_not_generated(copy: Path) -> None:
    (copy / "cpu_kernels/avx2/gemv.c").unlink()
    status, problems = check(copy)
    assert status == 1
    assert f"cpu_kernels/avx2/gemv.c: {STALE}" in problems


def test_a_kernel_that_cb_toml_has_no_longer(copy: Path) -> None:
    remove_job(copy, "avx2", "gemv")
    status, problems = check(copy)
    assert status == 1
    assert "cpu_kernels/avx2/gemv.c: not in cb.toml" in problems
    assert f"cpu_kernels/dispatch/kernels.h: {STALE}" in problems
    assert f"cpu_kernels/README.md: {STALE}" in problems
    generate(copy)
    assert not (copy / "cpu_kernels/avx2/gemv.c").exists()
    assert check(copy)[0] == 0


def test_a_kernel_without_a_reference(copy: Path) -> None:
    remove_job(copy, "ref", "gemv")
    generate(copy)
    status, problems = check(copy)
    assert status == 1
    assert "lutra_gemv_cb4_4x1_avx2: no reference\n" in problems
    assert "lutra_gemm_cb4_16x4_avx2: no reference\n" not in problems


def test_a_kernel_without_a_body(copy: Path) -> None:
    change(copy / "cpu_kernels/avx2/gemm_avx2.h", r"void gemm\(", "void gemm_16x4(")
    (copy / "cpu_kernels/sve256/gemm_sve256.h").unlink()
    status, problems = check(copy)
    assert status == 1
    assert "cpu_kernels/avx2/gemm_avx2.h: does not define gemm, the body for avx2\n" in problems
    assert "cpu_kernels/avx2/gemm_avx2.h: does not define gemm, the body for avx2_vnni\n" in problems
    assert "cpu_kernels/sve256/gemm_sve256.h: missing, the body of gemm of sve256\n" in problems


@pytest.mark.parametrize("op", ["quantize", "dequantize", "gemv", "batch", "gemm"])
@pytest.mark.parametrize("source", ["tests/kernels/test_kernels.c", "bench/lutra.c", "bench/main.c"])
def test_a_job_without_a_test_or_a_benchmark(copy: Path, source: str, op: str) -> None:
    change(copy / source, rf"\bLUTRA_OP_{op.upper()}\b", "0")
    status, problems = check(copy)
    assert status == 1
    assert f"{source}: knows no {op}\n" in problems


@pytest.mark.parametrize(
    ("pattern", "replacement", "message"),
    [
        (r"(?m)^gemm = (.*gemm_avx2)", r"gem = \1", "kernels.avx2: there is no gem"),
        (r'(?s)(kernels.avx512.*?)"cb25"\]', r'\1"cb9"]', "kernels.avx512: there is no cb9"),
        (r'"16x4"', '"16"', "kernels.avx2.gemm: a tile is rows x columns, as 8x4, not 16"),
    ],
)
def test_a_row_that_cannot_be(copy: Path, pattern: str, replacement: str, message: str) -> None:
    change(copy / TABLE, pattern, replacement)
    done = subprocess.run([sys.executable, copy / "scripts/check_kernels"], capture_output=True, text=True)
    assert done.returncode == 1
    assert f"{TABLE}: {message}\n" in done.stderr
