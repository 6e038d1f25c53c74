# SPDX-License-Identifier: MIT
"""Tokens per second that whole machines should reach, from modelled cycles and published figures.

A token takes the larger of two times: what the cores compute, and what memory delivers. Attention, norms
and the cache are left out, and one core is taken to reach the bandwidth of all. docs/BENCH.md lists the
sources of every figure here, and says how far the predictions were off where somebody had measured.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from .report import Record, number, table

UNIT = 32  # weights
PROMPT = 512  # tokens of a prompt that pass through the model together


@dataclass(frozen=True)
class Machine:
    """A machine, as its maker and others describe it."""

    name: str
    core: str  # of model.CORES
    ghz: float
    cores: int
    gb_per_s: float  # what reading weights gets of the memory
    sets: tuple[str, ...]  # instruction sets, best first


@dataclass(frozen=True)
class Shape:
    """Weights of a Llama-like model that are multiplied: once per token in the blocks, and in the head."""

    name: str
    layers: int
    hidden: int
    kv: int  # rows of the key projection
    feed_forward: int
    vocabulary: int

    @property
    def blocks(self) -> int:
        """Weights of all blocks: query, output, key, value and three of the feed-forward part."""
        attention = 2 * self.hidden * (self.hidden + self.kv)
        return self.layers * (attention + 3 * self.hidden * self.feed_forward)

    @property
    def head(self) -> int:
        """Weights of the output layer, tied to the embedding or not."""
        return self.vocabulary * self.hidden


MACHINES = (
    Machine("Raspberry Pi 4", "a72", 1.8, 4, 5.5, ("neon",)),
    Machine("Raspberry Pi 5", "n1", 2.4, 4, 11.4, ("neon_dotprod",)),
    Machine("Graviton2", "n1", 2.5, 64, 0.6 * 204.8, ("neon_dotprod",)),
    Machine("Graviton3", "v1", 2.6, 64, 0.6 * 307.2, ("sve256", "neon_i8mm", "neon_dotprod")),
    Machine("Graviton4", "v2", 2.8, 96, 0.6 * 537.6, ("neon_i8mm", "neon_dotprod")),
)
SHAPES = (
    Shape("Qwen2.5-0.5B", 24, 896, 128, 4864, 151936),
    Shape("Llama-3.2-1B", 16, 2048, 512, 8192, 128256),
    Shape("Llama-3.1-8B", 32, 4096, 1024, 14336, 128256),
)
TINYLLAMA = Shape("TinyLlama-1.1B", 22, 2048, 256, 5632, 32000)
MISTRAL = Shape("Mistral-7B", 32, 4096, 1024, 14336, 32000)
LLAMA_3B = Shape("Llama-3.2-3B", 28, 3072, 1024, 8192, 128256)
PI4, PI5, _, GRAVITON3, _ = MACHINES
LLAMA_8B = SHAPES[2]


@dataclass(frozen=True)
class Measured:
    """What somebody else measured with llama.cpp or a program on top of it."""

    machine: Machine
    shape: Shape
    mix: tuple[str, ...]  # types that share the weights in equal parts
    gigabytes: float  # of the file
    job: str  # "generation" or "prompt"
    cores: int
    tokens_per_s: float
    source: str


AI_BENCHMARKS = "https://github.com/geerlingguy/ai-benchmarks/issues/7"
READ_IT_LATER = "https://github.com/guevara/read-it-later/issues/11711"
LLAMA_CPP = "https://github.com/ggml-org/llama.cpp/pull/"
CALIBRATION = (
    Measured(PI5, LLAMA_8B, ("q4_k",), 4.92, "generation", 4, 2.17, AI_BENCHMARKS),
    Measured(PI5, LLAMA_3B, ("q4_k",), 2.02, "generation", 4, 4.88, AI_BENCHMARKS),
    Measured(PI5, TINYLLAMA, ("q8_0",), 1.17, "generation", 4, 9, READ_IT_LATER),
    Measured(PI4, TINYLLAMA, ("q8_0",), 1.17, "generation", 4, 3, READ_IT_LATER),
    Measured(GRAVITON3, MISTRAL, ("q2_k", "q3_k"), 2.7, "generation", 2, 4.67, LLAMA_CPP + "12064"),
    Measured(GRAVITON3, MISTRAL, ("q2_k", "q3_k"), 2.7, "generation", 48, 59.78, LLAMA_CPP + "12064"),
    Measured(GRAVITON3, MISTRAL, ("q3_k",), 3.5, "generation", 2, 4.86, LLAMA_CPP + "11917"),
    Measured(GRAVITON3, MISTRAL, ("q3_k",), 3.5, "generation", 48, 49.41, LLAMA_CPP + "11917"),
    Measured(GRAVITON3, LLAMA_8B, ("q8_0",), 8.54, "prompt", 4, 48.72, LLAMA_CPP + "21916"),
    Measured(GRAVITON3, LLAMA_8B, ("q8_0",), 8.54, "prompt", 16, 189.44, LLAMA_CPP + "21916"),
)


def seconds(machine: Machine, cores: int, units: float, cycles: float, gigabytes: float) -> float:
    """Time for this many units of work on weights of this size: the slower of cores and memory."""
    return max(units * cycles / (cores * machine.ghz * 1e9), gigabytes / machine.gb_per_s)


def generation(machine: Machine, shape: Shape, cores: int, cycles: float, bytes_per_unit: float) -> float:
    """Tokens per second, one after the other: every weight, once per token."""
    units = (shape.blocks + shape.head) / UNIT
    return 1 / seconds(machine, cores, units, cycles, units * bytes_per_unit / 1e9)


def prompt(machine: Machine, shape: Shape, cores: int, cycles: float, bytes_per_unit: float) -> float:
    """Tokens per second of a prompt: the weights of the blocks serve many tokens, the head only the last."""
    units = shape.blocks / UNIT
    return PROMPT / seconds(machine, cores, PROMPT * units, cycles, units * bytes_per_unit / 1e9)


JOBS = {"generation": ("gemv", generation), "prompt": ("gemm", prompt)}


def kernel_for(machine: Machine, type_: str, op: str, records: Iterable[Record]) -> Record | None:
    """The record of the machine's best set that has this job; most columns, clang rather than gcc."""
    fitting = [
        r
        for r in records
        if r.type == type_ and r.op == op and r.isa in machine.sets and machine.core in r.cycles_per_unit
    ]
    return min(
        fitting,
        key=lambda r: (machine.sets.index(r.isa), -r.columns, not r.compiler.startswith("clang")),
        default=None,
    )


def type_for(type_: str, shape: Shape) -> str | None:
    """The type itself, or its form for rows that are no multiple of 256 weights, if it has one."""
    if shape.hidden % 256 == 0 or type_ in ("q4_0", "q8_0", "iq4_nl"):
        return type_
    return f"{type_}_64" if type_.startswith("cb") else None


def core_counts(machine: Machine) -> list[int]:
    """1, 2, 4 ... and all cores."""
    return [*(n for n in (1, 2, 4, 8, 16, 32, 64) if n < machine.cores), machine.cores]


def predictions(records: list[Record]) -> Iterator[str]:
    """Per machine and job a table: types by numbers of cores, a column per model."""
    types = list(dict.fromkeys(r.type for r in records if r.op == "gemv" and not r.type.endswith("_64")))
    for machine in MACHINES:
        for job, (op, predict) in JOBS.items():
            counts = core_counts(machine)
            rows = []
            for shape in SHAPES:
                for type_ in types:
                    name = type_for(type_, shape)
                    kernel = kernel_for(machine, name, op, records) if name else None
                    if kernel:
                        cycles = kernel.cycles_per_unit[machine.core]
                        rates = (predict(machine, shape, n, cycles, kernel.bytes_per_unit) for n in counts)
                        rows.append(
                            [shape.name, kernel.type, kernel.isa, *(number(rate, 1) for rate in rates)]
                        )
            if rows:
                header = ["model", "type", "set", *(f"{n} cores" if n > 1 else "1 core" for n in counts)]
                yield f"### {machine.name}, {job}: tokens per second, modelled\n\n{table(header, rows)}"


def calibrate(point: Measured, records: list[Record]) -> float | None:
    """The model's tokens per second for a published measurement; None without the kernels for it."""
    op, _ = JOBS[point.job]
    kernels = [kernel_for(point.machine, type_, op, records) for type_ in point.mix]
    if None in kernels:
        return None
    cycles = sum(k.cycles_per_unit[point.machine.core] for k in kernels if k) / len(kernels)
    _, predict = JOBS[point.job]
    bytes_per_unit = point.gigabytes * 1e9 / ((point.shape.blocks + point.shape.head) / UNIT)
    return predict(point.machine, point.shape, point.cores, cycles, bytes_per_unit)


def calibration(records: list[Record]) -> str:
    """The published measurements beside the model."""
    rows = []
    for point in CALIBRATION:
        modelled = calibrate(point, records)
        if modelled:
            error = f"{100 * (modelled / point.tokens_per_s - 1):+.0f} %"
            name = f"{point.shape.name} {'+'.join(point.mix)}"
            row = [point.machine.name, name, point.job, str(point.cores), number(point.tokens_per_s)]
            rows.append([*row, number(modelled), error, point.source])
    header = ["machine", "model", "job", "cores", "measured t/s", "modelled t/s", "error", "source"]
    return f"### Published measurements beside the model\n\n{table(header, rows)}"


def to_markdown(records: list[Record]) -> str:
    """All tables of the roofline."""
    return "\n".join([*predictions(records), calibration(records)])
