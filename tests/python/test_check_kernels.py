"""scripts/check_kernels finds a kernel without a row, file, reference, test, benchmark or README entry."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
KERNELS = "cpu_kernels/dispatch/kernels.h"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The part of the repository that the script reads."""
    for name in ("cpu_kernels", "tests/kernels", "bench"):
        shutil.copytree(ROOT / name, tmp_path / name)
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts/check_kernels", tmp_path / "scripts")
    return tmp_path


def check(copy: Path, *options: str) -> tuple[int, str]:
    """Exit status and output of the script on the copy."""
    command = [sys.executable, copy / "scripts/check_kernels", *options]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stderr == ""
    return done.returncode, done.stdout


def change(path: Path, pattern: str, replacement: str) -> None:
    """Replaces what the pattern matches, at least once."""
    text, times = re.subn(pattern, replacement, path.read_text())
    assert times > 0, pattern
    path.write_text(text)


def remove_row(copy: Path, function: str) -> None:
    """Takes the row of one kernel out of the registry."""
    change(copy / KERNELS, rf"(?m)^ *ROW\(.*\b{function}\)( \\)?\n", "")


def test_the_repository_passes(copy: Path) -> None:
    assert check(copy)[0] == 0


def test_a_file_without_a_row(copy: Path) -> None:
    remove_row(copy, "lutra_gemv_cb4_8x1_neon")
    status, problems = check(copy, "--write")
    assert status == 1
    assert "cpu_kernels/neon/lutra_gemv_cb4_8x1_neon.c: no row in dispatch/kernels.h\n" in problems


def test_a_row_without_a_file(copy: Path) -> None:
    (copy / "cpu_kernels/avx2/lutra_gemv_cb4_4x1_avx2.c").unlink()
    status, problems = check(copy)
    assert status == 1
    assert "cpu_kernels/avx2/lutra_gemv_cb4_4x1_avx2.c: missing\n" in problems


def test_a_file_of_another_kernel(copy: Path) -> None:
    avx2 = copy / "cpu_kernels/avx2"
    shutil.copy(avx2 / "lutra_gemv_cb3_4x1_avx2.c", avx2 / "lutra_gemv_cb4_4x1_avx2.c")
    status, problems = check(copy)
    assert status == 1
    assert "does not define lutra_gemv_cb4_4x1_avx2\n" in problems


def test_a_row_with_a_wrong_name(copy: Path) -> None:
    change(
        copy / KERNELS,
        r"LUTRA_TYPE_CB4,( +)lutra_gemv_cb4_4x1_avx2",
        r"LUTRA_TYPE_CB3,\1lutra_gemv_cb4_4x1_avx2",
    )
    status, problems = check(copy)
    assert status == 1
    assert "lutra_gemv_cb4_4x1_avx2: not lutra_gemv_cb3_<rows>x<columns>_avx2\n" in problems


def test_a_kernel_without_a_reference(copy: Path) -> None:
    remove_row(copy, "lutra_gemv_cb4_1x1_ref")
    (copy / "cpu_kernels/ref/lutra_gemv_cb4_1x1_ref.c").unlink()
    status, problems = check(copy, "--write")
    assert status == 1
    assert "lutra_gemv_cb4_4x1_avx2: no reference\n" in problems
    assert "lutra_gemv_cb3_4x1_avx2: no reference\n" not in problems


@pytest.mark.parametrize("op", ["quantize", "dequantize", "gemv", "batch", "gemm"])
@pytest.mark.parametrize("source", ["tests/kernels/test_kernels.c", "bench/lutra.c", "bench/main.c"])
def test_a_job_without_a_test_or_a_benchmark(copy: Path, source: str, op: str) -> None:
    change(copy / source, rf"\bLUTRA_OP_{op.upper()}\b", "0")
    status, problems = check(copy)
    assert status == 1
    assert f"{source}: knows no {op}\n" in problems


def test_a_readme_without_the_kernel(copy: Path) -> None:
    change(copy / "cpu_kernels/README.md", r"\| gemv \| cb4 \|.*\n", "")
    status, problems = check(copy)
    assert status == 1
    assert "the kernel table is not up to date" in problems
    assert check(copy, "--write")[0] == 0
    assert check(copy)[0] == 0
