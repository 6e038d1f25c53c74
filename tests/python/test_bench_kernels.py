# SPDX-License-Identifier: MIT
"""The bench: its parts on known input, and one kernel end to end where the tools are installed."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
from array import array
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from bench import model, plot, programs, report, roofline, trace
from bench.programs import BenchError
from bench.report import Record

ROOT = Path(__file__).resolve().parents[2]
TOOLS = (
    "qemu-aarch64",
    "llvm-mca-22",
    "llvm-mc-22",
    "llvm-objdump-22",
    "aarch64-linux-gnu-g++",
    "cc",
    "ninja",
)
MISSING = [tool for tool in TOOLS if not shutil.which(tool, path=programs.search_path())]
UPSTREAM = os.environ.get("LUTRA_LLAMA_SOURCE") or next((ROOT / "build").glob("*/sdist/*.tar.gz"), None)


def record(**fields) -> Record:
    values = {
        "kernel": "lutra_gemv_cb4_8x1_neon_dotprod",
        "op": "gemv",
        "type": "cb4",
        "isa": "neon_dotprod",
        "compiler": "clang-22",
        "columns": 1,
        "bytes_per_unit": 17.25,
        "insn_per_unit": 9.5,
        "cycles_per_unit": {"n1": 3.6, "v1": 2.5},
        "dot_share": {"v1": 0.25},
    }
    return Record(**{**values, **fields})


# ---- traces ------------------------------------------------------------------------------------------


def trace_file(blocks: list[list[int]], steps: list[int]) -> bytes:
    data = struct.pack("=QQ", len(blocks), len(steps))
    for words in blocks:
        data += struct.pack(f"=I{len(words)}I", len(words), *words)
    return data + array("I", steps).tobytes()


def test_a_trace_repeats_its_blocks_in_the_order_they_ran():
    assert list(trace.parse(trace_file([[10, 11], [20]], [0, 1, 1, 0]))) == [10, 11, 20, 20, 10, 11]


def test_a_cut_trace_is_an_error():
    with pytest.raises(BenchError, match="cut short"):
        trace.parse(trace_file([[1]], [0, 0, 0])[:-4])


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("sdot\tv0.4s, v1.16b, v2.4b[1]", "dot"),
        ("sdot\tz0.s, z1.b, z2.b", "dot"),
        ("smmla\tv0.4s, v1.16b, v2.16b", "mmla"),
        ("tbl\tv0.16b, { v1.16b }, v2.16b", "table"),
        ("ldr\tq0, [x0, #0x10]", "load"),
        ("ldp\tx0, x1, [sp]", "load"),
        ("ld1rqb\t{ z0.b }, p0/z, [x0]", "load"),
        ("st1\t{ v0.4s }, [x0]", "store"),
        ("b.ne\t0x10 <.text+0x10>", "branch"),
        ("cbz\tx0, 0x10", "branch"),
        ("ret", "branch"),
        ("and\tv0.16b, v1.16b, v2.16b", "logic"),
        ("and\tx0, x1, #0xf", "scalar"),
        ("ushr\tv0.16b, v1.16b, #4", "shift"),
        ("fmla\tv0.4s, v1.4s, v2.4s", "float"),
        ("fcvt\ts0, h1", "float"),
        ("smlal2\tv0.8h, v1.16b, v2.16b", "multiply"),
        ("zip1\tv0.16b, v1.16b, v2.16b", "move"),
        ("add\tv0.4s, v1.4s, v2.4s", "arithmetic"),
        ("add\tx0, x1, x2", "scalar"),
    ],
)
def test_instructions_are_classified(line, expected):
    assert trace.classify(line) == expected


# ---- the model ---------------------------------------------------------------------------------------


def test_long_traces_are_sampled_evenly_from_first_to_last():
    words = list(range(10 * model.PIECES * model.PIECE))
    pieces = model.sample(words)
    assert [len(piece) for piece in pieces] == [model.PIECE] * model.PIECES
    assert (pieces[0][0], pieces[-1][-1]) == (words[0], words[-1])
    assert model.sample(words[:100]) == [words[:100]]


def test_branches_go_nowhere_and_system_calls_are_left_out():
    text = {1: "b.ne\t0x10 <.text+0x10>", 2: "svc\t#0", 3: "adrp\tx0, 0x1000 <.text+0x1000>", 4: "nop"}
    assert model.assembly([4, 1, 2, 3], text) == ["nop", "b.ne\t.Lnowhere", "adrp\tx0, .Lnowhere"]


def test_a_prefix_without_its_instruction_is_left_out():
    text = {1: "movprfx\tz5, z6", 2: "smmla\tz5.s, z1.b, z2.b", 3: "add\tx0, x1, x2"}
    assert model.assembly([1, 2, 3, 1], text) == [text[1], text[2], text[3]]


def test_the_busiest_units_are_found():
    output = """
Total Cycles:      200

Resources:
[0]   - UnitB
[1.0] - UnitV
[1.1] - UnitV

Resource pressure per iteration:
[0]    [1.0]  [1.1]
 -     150.00 90.00

Resource pressure by instruction:
"""
    assert model.parse_summary(output) == (200, "UnitV", 150.0)
    with pytest.raises(BenchError):
        model.parse_summary("error")


# ---- kernels and reports -----------------------------------------------------------------------------


def test_the_list_of_a_program_is_read():
    line = "ggml_vec_dot_q2_K_q8_K\tneon\tgemm\tQ2_K\t10.5\n"
    (kernel,) = programs.parse_list(line)
    assert (kernel.op, kernel.type, kernel.bytes_per_unit, kernel.ours) == ("gemm", "Q2_K", 10.5, False)


def test_json_keeps_what_it_is_given():
    records = [record(), record(insn_per_unit=None, cycles_per_unit={}, dot_share={}, ns_per_unit=0.7)]
    text = report.to_json(records)
    modelled, measured = json.loads(text)
    keys = {"kernel", "op", "type", "isa", "compiler", "columns", "insn_per_unit", "cycles_per_unit"}
    assert keys <= modelled.keys()
    assert modelled["cycles_per_unit"] == {"n1": 3.6, "v1": 2.5}
    assert measured["ns_per_unit"] == 0.7
    assert "cycles_per_unit" not in measured
    assert report.from_json(text) == records


def test_markdown_puts_the_faster_kernel_first():
    slow = record(kernel="ggml_slow", cycles_per_unit={"n1": 9.0, "v1": 9.0})
    text = report.to_markdown([slow, record()])
    assert text.startswith("### neon_dotprod, gemv, modelled\n")
    assert text.index("lutra_gemv") < text.index("ggml_slow")
    assert "| 25 % |" in text


def test_a_plot_is_a_png(tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    plot.plot([record(), record(kernel="ggml_gemv", type="q4_0")], tmp_path / "bench.png")
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")


# ---- the roofline ------------------------------------------------------------------------------------

MACHINE = roofline.Machine("test", "n1", 2.0, 4, 10.0, ("neon_dotprod", "neon"))
SHAPE = roofline.Shape("test", 2, 64, 32, 128, 1000)


def test_weights_of_a_shape():
    # query and output 64 x 64, key and value 32 x 64, three of 64 x 128; two layers
    assert SHAPE.blocks == 2 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 64 * 128)
    assert SHAPE.head == 64_000
    assert roofline.LLAMA_8B.blocks + 2 * roofline.LLAMA_8B.head == pytest.approx(8.03e9, rel=1e-3)


def test_the_slower_of_cores_and_memory_decides():
    assert roofline.seconds(MACHINE, 1, 1e9, 4.0, 1.0) == pytest.approx(2.0)  # 4e9 cycles at 2 GHz
    assert roofline.seconds(MACHINE, 4, 1e9, 4.0, 10.0) == pytest.approx(1.0)  # 10 GB at 10 GB/s
    units = (SHAPE.blocks + SHAPE.head) / 32
    assert roofline.generation(MACHINE, SHAPE, 2, 3.0, 0.0) == pytest.approx(4e9 / (3.0 * units))
    assert roofline.prompt(MACHINE, SHAPE, 2, 3.0, 0.0) == pytest.approx(4e9 / (3.0 * SHAPE.blocks / 32))


def test_the_best_set_and_the_most_columns_are_taken():
    gemm = {"op": "gemm", "columns": 64}
    records = [record(isa="neon", **gemm), record(**gemm), record(op="gemm", columns=512, compiler="gcc-12")]
    assert roofline.kernel_for(MACHINE, "cb4", "gemm", records) is records[2]
    assert roofline.kernel_for(MACHINE, "cb4", "gemm", records[:2]) is records[1]
    assert roofline.kernel_for(MACHINE, "cb3", "gemm", records) is None


def test_the_roofline_has_predictions_and_calibration():
    records = [record(type="q4_k"), record()]
    text = roofline.to_markdown(records)
    assert "### Raspberry Pi 5, generation: tokens per second, modelled" in text
    assert "| Llama-3.1-8B | cb4 | neon_dotprod |" in text
    assert "https://github.com/geerlingguy/ai-benchmarks/issues/7" in text


# ---- the command -------------------------------------------------------------------------------------


def bench_kernels(*arguments: str, path: str | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PATH": path} if path else {**os.environ}
    if UPSTREAM:
        environment["LUTRA_LLAMA_SOURCE"] = str(UPSTREAM)
    command = [sys.executable, str(ROOT / "scripts/bench_kernels"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_help_has_examples():
    result = bench_kernels("--help")
    assert result.returncode == 0
    assert "scripts/bench_kernels --modelled --quick" in result.stdout


def test_a_missing_tool_is_named_with_its_package(tmp_path):
    result = bench_kernels("--modelled", path=str(tmp_path))
    assert result.returncode == 1
    assert result.stderr == "error: qemu-aarch64 is missing: sudo apt install qemu-user\n"


def test_roofline_wants_modelled_results():
    assert "--roofline needs --modelled" in bench_kernels("--roofline").stderr


@pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")
@pytest.mark.skipif(UPSTREAM is None, reason="no llama.cpp: set LUTRA_LLAMA_SOURCE, or build Lutra first")
def test_one_kernel_and_upstreams_end_to_end(tmp_path):
    out = tmp_path / "bench.json"
    options = ["--modelled", "--quick", "--isa", "neon_dotprod", "--op", "gemv", "--compiler", "gcc"]
    result = bench_kernels(*options, "--type", "cb4", "--type", "q4_0", "--json", str(out))
    assert result.returncode == 0, result.stderr
    by_type = {r["type"]: r for r in json.loads(out.read_text())}
    assert set(by_type) == {"cb4", "q4_0"}
    for r in by_type.values():
        assert r["compiler"].startswith("gcc-")
        assert set(r["cycles_per_unit"]) == {"n1", "v1", "v2"}
        assert sum(r["classes"].values()) == pytest.approx(r["insn_per_unit"], abs=0.01)
        # 32 products per unit, 16 per SDOT
        assert r["classes"]["dot"] == pytest.approx(2.0, abs=0.01)
        assert 4 < r["insn_per_unit"] < 20
        assert r["insn_per_unit"] / 4 < r["cycles_per_unit"]["n1"] < r["insn_per_unit"]
