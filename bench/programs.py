# SPDX-License-Identifier: MIT
"""Building the bench programs: one per instruction set and compiler."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "bench"
SETS = {
    "aarch64": ("neon", "neon_dotprod", "neon_i8mm", "sve256"),
    "x86_64": ("avx2", "avx2_vnni", "avx512"),
}
UNSUPPORTED = 3  # exit status of a bench program on a CPU that lacks its set
OPS = ("gemv", "batch", "gemm", "dequantize", "quantize")


class BenchError(Exception):
    """The bench cannot run; the message says what to do."""


def need(program: str, package: str) -> str:
    """The path of an installed program, or an error that names its Debian package."""
    path = shutil.which(program, path=search_path())
    if path is None:
        raise BenchError(f"{program} is missing: sudo apt install {package}")
    return path


def search_path() -> str:
    """PATH with this Python's directory in front: cmake and ninja of a virtual environment are there."""
    return os.path.dirname(sys.executable) + os.pathsep + os.environ.get("PATH", os.defpath)


def run(command: list[str], log: Path) -> None:
    """Run a build command; its output goes to a log, whose end an error shows."""
    with log.open("a") as file:
        print("$", *command, file=file, flush=True)
        status = subprocess.run(
            command, stdout=file, stderr=subprocess.STDOUT, env={**os.environ, "PATH": search_path()}
        )
    if status.returncode:
        end = "\n".join(log.read_text(errors="replace").splitlines()[-20:])
        raise BenchError(f"{command[0]} failed, the whole log is {log}\n{end}")


@dataclass(frozen=True)
class Compiler:
    """A C and C++ compiler for one architecture."""

    name: str  # "clang-22", "gcc-12"
    machine: str  # "aarch64", "x86_64"
    cmake: tuple[str, ...]  # the options that select it


def compiler(family: str, machine: str) -> Compiler:
    """Clang or gcc for this architecture, native or cross."""
    cross = machine != platform.machine()
    options = []
    if family == "clang":
        newest = [f"clang-{v}" for v in range(30, 13, -1) if shutil.which(f"clang-{v}")]
        c = newest[0] if newest else "clang"
        need(c, "clang-22")
        cxx = c.replace("clang", "clang++")
        if cross:
            need(f"{machine}-linux-gnu-g++", f"g++-{machine.replace('_', '-')}-linux-gnu")
            options += [f"-DCMAKE_{x}_COMPILER_TARGET={machine}-linux-gnu" for x in ("C", "CXX")]
    else:
        prefix = f"{machine}-linux-gnu-" if cross else ""
        c, cxx = f"{prefix}gcc", f"{prefix}g++"
        need(cxx, f"g++-{machine}-linux-gnu" if cross else "g++")
    options += [f"-DCMAKE_C_COMPILER={c}", f"-DCMAKE_CXX_COMPILER={cxx}"]
    if cross:
        options += ["-DCMAKE_SYSTEM_NAME=Linux", f"-DCMAKE_SYSTEM_PROCESSOR={machine}"]
    version = subprocess.run([c, "-dumpversion"], capture_output=True, text=True, check=True).stdout
    return Compiler(f"{family}-{version.split('.')[0].strip()}", machine, tuple(options))


def upstream_sources() -> Path:
    """The pinned llama.cpp, not edited; the sdist of an earlier build is used where there is one."""
    sys.path.insert(0, str(ROOT / "scripts"))
    from fetch_sdist import FetchError, Lock, download, read_source, sha256, write_tree

    lock = Lock.read()
    given = os.environ.get("LUTRA_LLAMA_SOURCE")
    sdists = sorted(BUILD.parent.glob("*/sdist/*.tar.gz"))
    found = [path for path in sdists if sha256(path.read_bytes()) == lock.sha256]
    try:
        source = Path(given) if given else found[0] if found else download(lock, BUILD / "sdist")
        write_tree(read_source(source), BUILD / "llama.cpp")
    except FetchError as error:
        raise BenchError(str(error)) from error
    return BUILD / "llama.cpp"


def build(which: Compiler, sets: Iterable[str], llama: Path) -> dict[str, Path]:
    """Compile the bench programs of these instruction sets; their paths."""
    directory = BUILD / f"{which.machine}-{which.name}"
    directory.mkdir(parents=True, exist_ok=True)
    log = directory / "build.log"
    log.unlink(missing_ok=True)
    cmake = need("cmake", "cmake")
    need("ninja", "ninja-build")
    command = [cmake, "-S", str(ROOT / "bench"), "-B", str(directory), "-G", "Ninja"]
    command += [f"-DLUTRA_LLAMA={llama}", *which.cmake]
    if shutil.which("ccache"):
        command += [f"-DCMAKE_{x}_COMPILER_LAUNCHER=ccache" for x in ("C", "CXX")]
    run(command, log)
    targets = [f"lutra_bench_{name}" for name in sets]
    run([cmake, "--build", str(directory), "--target", *targets], log)
    return {name: directory / f"lutra_bench_{name}" for name in sets}


@dataclass(frozen=True)
class Kernel:
    """A kernel of a bench program, doing one job."""

    name: str
    isa: str
    op: str
    type: str
    bytes_per_unit: float  # of weights

    @property
    def ours(self) -> bool:
        """Whether it is Lutra's, not upstream's."""
        return self.name.startswith("lutra_")


def parse_list(text: str) -> list[Kernel]:
    """What a bench program prints for `list`."""
    rows = (line.split("\t") for line in text.splitlines())
    return [Kernel(name, isa, op, type_, float(size)) for name, isa, op, type_, size in rows]


def kernels(program: list[str]) -> list[Kernel]:
    """The kernels of a bench program; `program` is the command, emulator included."""
    result = subprocess.run([*program, "list"], capture_output=True, text=True)
    if result.returncode == UNSUPPORTED:
        print(f"skipped {Path(program[-1]).name}: {result.stderr.strip()}", file=sys.stderr)
        return []
    if result.returncode:
        raise BenchError(f"{' '.join(program)} list: {result.stderr.strip()}")
    return parse_list(result.stdout)


@dataclass(frozen=True)
class Shape:
    """The operands of a run: weights k x rows, activations k x columns."""

    k: int
    rows: int
    columns: int

    def arguments(self) -> list[str]:
        """As a bench program takes them."""
        return [str(self.k), str(self.rows), str(self.columns)]
