# SPDX-License-Identifier: MIT
"""Exact instruction traces of 64-bit Arm programs: qemu-user with trace_plugin.c, then llvm-objdump."""

from __future__ import annotations

import re
import struct
import subprocess
import tempfile
from array import array
from collections import Counter
from pathlib import Path

from . import programs
from .programs import BenchError, Kernel, Shape

LLVM = "22"
QEMU_CPU = {  # the emulated CPU that runs a set's kernels
    "neon": "cortex-a72",
    "neon_dotprod": "cortex-a76",
    "neon_i8mm": "max,sve=off,sme=off",
    "sve256": "max,sve-max-vq=2,sme=off",
}


def llvm(tool: str) -> str:
    """The path of one of LLVM's tools."""
    return programs.need(f"{tool}-{LLVM}", f"llvm-{LLVM}")


def qemu(isa: str) -> list[str]:
    """The command that emulates a CPU with this instruction set."""
    return [programs.need("qemu-aarch64", "qemu-user"), "-cpu", QEMU_CPU[isa]]


def build_plugin() -> Path:
    """Compile the plugin, for the machine that runs QEMU."""
    programs.BUILD.mkdir(parents=True, exist_ok=True)
    plugin = programs.BUILD / "trace_plugin.so"
    source = programs.ROOT / "bench" / "trace_plugin.c"
    command = [programs.need("cc", "gcc"), "-O2", "-fPIC", "-shared", "-o", str(plugin), str(source)]
    programs.run(command, programs.BUILD / "trace_plugin.log")
    return plugin


def parse(data: bytes) -> array[int]:
    """The instruction words of the marked region, in order, from the file that trace_plugin.c writes."""
    n_blocks, n_steps = struct.unpack_from("=QQ", data)
    at = 16
    blocks = []
    for _ in range(n_blocks):
        (n,) = struct.unpack_from("=I", data, at)
        blocks.append(array("I", data[at + 4 : at + 4 + 4 * n]))
        at += 4 + 4 * n
    steps = array("I", data[at : at + 4 * n_steps])
    if len(steps) != n_steps:
        raise BenchError("the trace file is cut short")
    words = array("I")
    for step in steps:
        words.extend(blocks[step])
    return words


def record(program: Path, plugin: Path, kernel: Kernel, shape: Shape) -> tuple[array[int], int]:
    """Run a kernel once under QEMU; its instructions and its units."""
    with tempfile.NamedTemporaryFile(suffix=".trace") as file:
        command = [*qemu(program.name.removeprefix("lutra_bench_")), "-plugin", f"{plugin},out={file.name}"]
        command += [str(program), "mark", kernel.name, kernel.op, *shape.arguments()]
        result = subprocess.run(command, capture_output=True, text=True)
        units = re.fullmatch(r"(\d+) units\n", result.stdout)
        if result.returncode or not units:
            raise BenchError(f"{' '.join(command)}\n{result.stdout}{result.stderr}".strip())
        words = parse(Path(file.name).read_bytes())
    if not words:
        raise BenchError(f"{kernel.name}: nothing was recorded; this needs QEMU 6.0 to 9.0 with plugins")
    return words, int(units[1])


def disassemble(words: set[int]) -> dict[int, str]:
    """The assembly text of instruction words."""
    order = sorted(words)
    with tempfile.TemporaryDirectory() as directory:
        source, binary = Path(directory, "words.s"), Path(directory, "words.o")
        source.write_text("".join(f".inst {word:#x}\n" for word in order))
        target = "--triple=aarch64"
        subprocess.run([llvm("llvm-mc"), target, "-filetype=obj", str(source), "-o", str(binary)], check=True)
        listing = subprocess.run(
            [llvm("llvm-objdump"), "-d", "--no-show-raw-insn", "--mattr=+all", target, str(binary)],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    lines = re.findall(r"^\s*[0-9a-f]+:\s*(.*?)\s*(?://.*)?$", listing, re.MULTILINE)
    if len(lines) != len(order):
        raise BenchError(f"llvm-objdump printed {len(lines)} lines for {len(order)} instructions")
    return dict(zip(order, lines, strict=True))


# ---- classes of instructions ----------------------------------------------------------------------

VECTOR = re.compile(r"\b[vqzp]\d+|\b[bhsd]\d+\b")
CLASSES = (  # the first whose pattern matches the whole mnemonic; all after `branch` need a vector register
    ("load", r"ld\w*|prf\w*"),
    ("store", r"st\w*"),
    ("branch", r"b|b\.\w+|bl|blr|br|ret|cbn?z|tbn?z"),
    ("dot", r"[su]dot|usdot|sudot"),
    ("mmla", r"[su]mmla|usmmla|bfmmla"),
    ("table", r"tbl|tbx|luti\d"),
    ("float", r"f\w+|[su]cvtf|bf\w+"),
    ("logic", r"and|orr|eor|bic|bsl|bit|bif|orn|eor3|bcax|mvn|not"),
    ("shift", r"u?s?r?shr\w*|r?shrn2?|s?q?shl\w*|[us]shll?2?|sli|sri|ls[lr]|asr|[us]r?sra"),
    ("move", r"(zip|uzp|trn|rev)\w*|ext|dup|ins|mov\w*|[us]mov|splice|index|[su]xtl2?|xtn2?|[su]unpk\w+"),
    ("multiply", r"(s|u|sq|sqr)?(mull?|ml[as]l?|dmull?|dmlal)\w*"),
)
SCALAR_TOO = 3  # load, store and branch


def classify(instruction: str) -> str:
    """The class of one line of assembly: what it does, as far as kernels care."""
    mnemonic, _, operands = instruction.partition("\t")
    vector = VECTOR.search(operands) is not None
    for i, (name, pattern) in enumerate(CLASSES):
        if (vector or i < SCALAR_TOO) and re.fullmatch(pattern, mnemonic):
            return name
    return "arithmetic" if vector else "scalar"


def histogram(words: array[int], text: dict[int, str]) -> dict[str, int]:
    """How many instructions of each class there are, most frequent first."""
    counts: Counter[str] = Counter()
    for word, n in Counter(words).items():
        counts[classify(text[word])] += n
    return dict(counts.most_common())
