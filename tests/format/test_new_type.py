# SPDX-License-Identifier: MIT
"""A type is a row of cb.toml and golden files: a made-up one is added to a copy, and works.

It has 3-bit pairs and a second layer of 2 bits. The copy is cut to the reference and one job of one set,
which does not know the new type.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SECOND = "second = { bits = 2, weights = 1 }"
ROW = f"cb15 = {{ bits = 3, weights = 2, {SECOND}, ids = {{ 256 = 415, 64 = 435 }} }}\n"
MACHINE = {"x86_64": ("avx2", ["-mavx2", "-mfma", "-mf16c"]), "aarch64": ("neon", [])}
DEQUANTIZE = 3  # enum lutra_op

pytestmark = pytest.mark.skipif(platform.machine() not in MACHINE, reason="the reference is the only set")


@pytest.fixture(scope="module")
def set_() -> str:
    return MACHINE[platform.machine()][0]


def run(copy: Path, *command: str | Path, **env: str) -> str:
    """The output of a command in the copy, whose packages come before installed ones."""
    done = subprocess.run(
        command, cwd=copy, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(copy)} | env
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory, set_: str) -> Path:
    """The repository's part that knows types, cut, with the new type: generated and built."""
    copy = tmp_path_factory.mktemp("copy")
    for name in ("cpu_kernels", "gguf_tools", "lutra", "tests/kernels", "tests/format", "docs"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    generate = copy / "cpu_kernels/formats/generate.py"
    table = copy / "cpu_kernels/formats/cb.toml"
    parts = re.split(r"(?m)^(?=\[)", table.read_text())
    for i, part in enumerate(parts):
        if part.startswith("[kernels.") and not part.startswith("[kernels.ref]"):
            kept = ("[", "machine", "types", *(["dequ"] if part.startswith(f"[kernels.{set_}]") else []))
            parts[i] = "".join(line for line in part.splitlines(keepends=True) if line.startswith(kept))
    table.write_text("".join(parts))
    run(copy, sys.executable, generate)  # from here on it is the new type that changes files

    table.write_text(table.read_text().replace("[types]\n", "[types]\n" + ROW))
    written = run(copy, sys.executable, generate).split()
    assert set(written) >= {
        "cpu_kernels/formats/cb_types.h",
        "cpu_kernels/dispatch/kernels.h",
        "cpu_kernels/overlay/cb_rows.py",
        "cpu_kernels/ref/gemv.c",
        "cpu_kernels/README.md",
        "gguf_tools/formats/members.py",
        "docs/FORMAT.md",
    }
    assert not any(name.startswith(f"cpu_kernels/{set_}/") for name in written)
    before = {path.name: path.read_bytes() for path in (copy / "tests/format/golden").iterdir()}
    run(copy, sys.executable, copy / "tests/format/make_golden.py")
    after = {path.name: path.read_bytes() for path in (copy / "tests/format/golden").iterdir()}
    assert set(after) - set(before) == {"cb15.npz", "cb15_64.npz"}
    assert all(after[name] == before[name] for name in before)
    verify = json.loads((copy / "lutra/measure/golden.json").read_text())
    assert list(verify)[-2:] == ["CB15", "CB15_64"]

    kernels = copy / "cpu_kernels"
    cc = ["cc", "-std=gnu11", "-O1", "-fPIC", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", "-Iinclude"]
    sources = [*(kernels / "dispatch").glob("*.c"), *(kernels / "ref").glob("*.c"), kernels / "formats/cb.c"]
    run(kernels, *cc, "-c", *MACHINE[platform.machine()][1], f"{set_}/dequantize.c", "-o", copy / "set.o")
    run(kernels, *cc, "-shared", *sources, copy / "set.o", "-lm", "-o", copy / "libggml-base.so")
    tests = [*(copy / "tests/kernels").glob("*.c")]
    run(kernels, *cc, *tests, copy / "libggml-base.so", "-lm", f"-Wl,-rpath,{copy}", "-o", copy / "tests/run")
    return copy


def test_its_kernels_pass_on_the_reference(copy: Path) -> None:
    assert "8 kernels, 0 skipped, 0 checks failed" in run(copy, copy / "tests/run", "_cb15_")


def test_its_golden_vectors_pass_in_numpy_and_c(copy: Path) -> None:
    names = "CB15 or CB15_64"
    command = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/format/test_golden.py")
    output = run(copy, *command, "-k", names, LUTRA_LIB_DIR=str(copy))
    assert re.search(r"^[12][0-9] passed", output, re.MULTILINE), output
    assert "skipped" not in output


def test_the_best_set_that_has_a_kernel_is_chosen(copy: Path, set_: str) -> None:
    library = ctypes.CDLL(str(copy / "libggml-base.so"))
    library.lutra_kernel_chosen.restype = ctypes.POINTER(ctypes.c_char_p)  # its first member is the name
    supported = {
        row.split()[0]
        for row in run(copy, copy / "tests/run", f"_{set_}").splitlines()
        if row.startswith("lutra_")
    }
    best = set_ if f"lutra_dequantize_cb4_1x1_{set_}" in supported else "ref"
    assert library.lutra_kernel_chosen(DEQUANTIZE, 404)[0].decode() == f"lutra_dequantize_cb4_1x1_{best}"
    assert library.lutra_kernel_chosen(DEQUANTIZE, 415)[0] == b"lutra_dequantize_cb15_1x1_ref"


def test_everything_else_knows_it(copy: Path) -> None:
    assert "GGML_TYPE_CB15_64 = 435," in (copy / "cpu_kernels/overlay/cb_rows.py").read_text()
    assert "| CB15 | 415 | 3 | 2 | 256 | 2 bits per 1 | 3.8125 |" in (copy / "docs/FORMAT.md").read_text()
    assert "| gemv | cb15_64 | 1x1 |" in (copy / "cpu_kernels/README.md").read_text()
    ask = "from gguf_tools.formats.catalog import TYPES; print(TYPES['cb15'].id_for((4096, 576)))"
    assert run(copy, sys.executable, "-c", ask) == "435\n"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("cb9 = { bits = 7, weights = 1, ids = { 256 = 409 } }", "cb9: no layout for codes of 7 bits"),
        ("cb9 = { bits = 4, weights = 3, ids = { 256 = 409 } }", "cb9: a code stands for 1 or 2 weights"),
        ("cb9 = { bits = 4, weights = 1, ids = { 96 = 409 } }", "cb9: a super-block is a multiple of 64"),
        ("cb9 = { bits = 4, weights = 1, ids = { 256 = 403 } }", "cb9: id 403 is taken by CB3"),
        ("cb9 = { bits = 4, ids = { 256 = 409 } }", "cb9: needs bits, weights and ids"),
        (
            "cb9 = { bits = 4, weights = 1, second = { bits = 1 }, ids = { 256 = 409 } }",
            "cb9: second needs bits and weights",
        ),
        (
            "cb9 = { bits = 4, weights = 1, second = { bits = 7, weights = 1 }, ids = { 256 = 409 } }",
            "cb9: no layout for codes of 7 bits",
        ),
        ("q9 = { bits = 4, weights = 1, ids = { 256 = 409 } }", "q9: a name is cb and a number"),
    ],
)
def test_a_row_that_cannot_be_is_refused(tmp_path: Path, row: str, message: str) -> None:
    for name in ("cpu_kernels/formats", "gguf_tools"):
        shutil.copytree(ROOT / name, tmp_path / name)
    table = tmp_path / "cpu_kernels/formats/cb.toml"
    table.write_text(re.sub(r"(?m)^(cb4 = .*)$", rf"\1\n{row}", table.read_text()))
    done = subprocess.run(
        [sys.executable, tmp_path / "cpu_kernels/formats/generate.py"], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: cpu_kernels/formats/cb.toml: type {message}")


def test_without_a_toml_reader_it_says_what_to_install() -> None:
    hide = "sys.modules.update(tomllib=None, tomli=None)"
    code = f"import runpy, sys; {hide}; runpy.run_path(sys.argv.pop(), run_name='__main__')"
    command = [sys.executable, "-c", code, ROOT / "cpu_kernels/formats/generate.py"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert "cb.toml: reading TOML needs Python 3.11, or pip install tomli\n" in done.stderr
