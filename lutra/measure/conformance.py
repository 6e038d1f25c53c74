# SPDX-License-Identifier: MIT
"""Does this machine compute right? Every kernel against golden values and the reference, bit by bit."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gguf_tools.formats.codebook import Parts, block_dtype, some_rows, split
from gguf_tools.formats.family import CB_FORMATS, ROWS, CBFormat
from gguf_tools.inspect import check, part
from gguf_tools.reader import GGUFFile, TensorInfo
from lutra.runtime import kernels
from lutra.runtime.kernels import Kernel

# y of one made-up strip times one made-up row (``golden_input``), as float32 bits by the reference.
GOLDEN: dict[str, tuple[int, ...]] = {
    name: tuple(int(word, 16) for word in words.split())
    for name, words in json.loads(Path(__file__).with_name("golden.json").read_text()).items()
}

STRIPS = 3  # looked at per tensor: the first, one in the middle, the last


def checks(file: GGUFFile) -> Iterator[tuple[str, list[str]]]:
    """(what is checked, what is wrong with it) of a file and of this machine's kernels."""
    cb_tensors = [t for t in file.tensors.values() if t.type in CB_FORMATS]
    which = f"part {text} only, its " if (text := part(file.metadata)) else ""
    yield f"{file.path}: {which}{len(file.tensors)} tensors, sizes and ranges", check(file.path)
    listed = [k for k in kernels.kernels() if k.supported]
    for fmt in CB_FORMATS.values():
        yield f"{fmt.name}: golden dot products", golden_problems(fmt, listed)
    for fmt in dict.fromkeys(CB_FORMATS[t.type] for t in cb_tensors):
        tensors = [t for t in cb_tensors if t.type == fmt.type]
        problems = [p for t in tensors for p in tensor_problems(file, t, fmt, listed)]
        yield f"{fmt.name}: strips of {len(tensors)} tensors, all kernels alike", problems


def tensor_problems(file: GGUFFile, tensor: TensorInfo, fmt: CBFormat, listed: list[Kernel]) -> list[str]:
    """Kernels that differ from the reference on strips of a tensor."""
    data, k = file.data(tensor), tensor.shape[-1]
    strips = tensor.weights // k // ROWS
    chosen = np.unique(np.linspace(0, strips - 1, STRIPS).astype(int)).tolist()
    parts = [split(some_rows(data, k, fmt, ROWS * i, ROWS * (i + 1)), fmt) for i in chosen]
    picked = Parts(
        np.concatenate([part.strips for part in parts]),
        parts[0].library,
        np.concatenate([part.second for part in parts]),
    )
    found = problems_against_reference(fmt, picked, activations(k), listed)
    return [f"tensor {tensor.name!r}: {problem}" for problem in found]


# ---- made-up data --------------------------------------------------------------------------


def random_bytes(n: int, seed: int) -> NDArray[np.uint8]:
    """The same bytes everywhere and always: a 32-bit linear congruential generator, its highest bytes."""
    state, out = seed, bytearray(n)
    for i in range(n):
        state = (state * 1664525 + 1013904223) & 0xFFFFFFFF
        out[i] = state >> 24
    return np.frombuffer(bytes(out), np.uint8)


def activations(k: int, seed: int = 1) -> NDArray[np.float32]:
    """A row of k multiples of 1/32 in [-4, 4)."""
    return ((random_bytes(k, seed).astype(np.float32) - 128) / 32).astype(np.float32)


def golden_input(fmt: CBFormat) -> tuple[Parts, NDArray[Any]]:
    """One strip of two super-blocks, and a row of activations float32."""
    k = 2 * fmt.sb
    strip = random_bytes(2 * fmt.block_bytes, fmt.type).copy()
    blocks = strip.view(block_dtype(fmt))
    blocks["d"] = (1 + np.arange(blocks["d"].size).reshape(blocks["d"].shape) / 16) / 64
    library = np.maximum(random_bytes(fmt.library_bytes, fmt.bits).view(np.int8), -127)
    return Parts(
        strip, library.view(np.uint8), random_bytes(2 * fmt.second_bytes, fmt.type + 1)
    ), activations(k)


# ---- kernels against what is right ---------------------------------------------------------


def golden_problems(fmt: CBFormat, listed: list[Kernel]) -> list[str]:
    """Kernels that do not give the golden bits, or differ from the reference on the golden input."""
    parts, x = golden_input(fmt)
    reference = next(k for k in listed if k.op == "gemv" and k.type == fmt.type and k.set == "ref")
    y = kernels.gemv(reference, parts, *quantized(fmt, x, listed))
    problems = problems_against_reference(fmt, parts, x, listed)
    return problems + ([] if bits(y) == GOLDEN[fmt.name] else [f"{reference.name}: not the golden values"])


def problems_against_reference(
    fmt: CBFormat, parts: Parts, x: NDArray[Any], listed: list[Kernel]
) -> list[str]:
    """Kernels of ``fmt`` whose results differ from the reference set's in any bit."""
    of_type = [k for k in listed if k.type == (fmt.sb if k.op == "quantize" else fmt.type)]
    expected = {k.op: result(k, fmt, parts, x, listed) for k in of_type if k.set == "ref"}
    return [
        f"{k.name}: differs from the reference"
        for k in of_type
        if result(k, fmt, parts, x, listed) != expected[k.op]
    ]


def result(k: Kernel, fmt: CBFormat, parts: Parts, x: NDArray[Any], listed: list[Kernel]) -> bytes:
    """What a kernel computes, as bytes."""
    if k.op == "quantize":
        return b"".join(a.tobytes() for a in kernels.quantize(k, x))
    if k.op == "dequantize":
        return kernels.dequantize(k, parts, x.size).tobytes()
    column = quantized(fmt, x, listed)
    if k.op == "gemv":
        return kernels.gemv(k, parts, *column).tobytes()
    # Five columns: more than a tile of any kernel and not a multiple of it.
    return kernels.gemm(k, parts, [quantized(fmt, np.roll(x, i), listed) for i in range(5)]).tobytes()


def quantized(fmt: CBFormat, x: NDArray[Any], listed: list[Kernel]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Activations as the reference quantizes them."""
    reference = next(k for k in listed if k.op == "quantize" and k.type == fmt.sb and k.set == "ref")
    return kernels.quantize(reference, x)


def bits(y: NDArray[np.float32]) -> tuple[int, ...]:
    """Floats as their 32 bits."""
    return tuple(y.view(np.uint32).tolist())
