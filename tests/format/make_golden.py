# SPDX-License-Identifier: MIT
"""Writes the golden vectors of the format from the numpy reference: python tests/format/make_golden.py

One golden/<member>.npz per member of the family: the inputs (codes, selectors, d, library, x) and what
the format makes of them (data, weights, q, dx, y); and the dot products of ``lutra verify``, a line per type
of lutra/measure/golden.json. What is there never changes: only new members are written.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

sys.path.append(str(Path(__file__).resolve().parents[2]))  # an installed package comes first

from gguf_tools.formats import codebook
from gguf_tools.formats.family import CB_FORMATS, CHUNK, GROUP, CBFormat, Codes
from lutra.measure.conformance import bits, golden_input

GOLDEN = Path(__file__).parent / "golden"
VERIFY = Path(__file__).parents[2] / "lutra" / "measure" / "golden.json"
ROWS = 16  # two strips
COLUMNS = 4

# The ggml types, and members that only the references know.
MEMBERS = [
    *CB_FORMATS.values(),
    *(CBFormat(f"B{bits}P{pair}_64", -1, bits, pair, 64) for bits in (1, 2, 3, 5, 6) for pair in (1, 2)),
    CBFormat("B4P1_B3P1_64", -1, 4, 1, 64, second=Codes(3, 1)),  # 7 bits
]


def columns_of(fmt: CBFormat) -> int:
    """Weights per row: several super-blocks, for sb = 64 not a multiple of 256."""
    return 3 * fmt.sb if fmt.sb == CHUNK else 2 * fmt.sb


def make(fmt: CBFormat) -> dict[str, np.ndarray]:
    """The golden vectors of one member."""
    rng = np.random.default_rng(1000 * fmt.bits + 10 * fmt.pair + fmt.sb)
    k = columns_of(fmt)
    codes = rng.integers(0, 1 << fmt.bits, (ROWS, k // fmt.pair), np.uint8)
    selectors = rng.integers(0, 256, (ROWS, k // GROUP), np.uint8)
    library = rng.integers(-127, 128, fmt.library_shape).astype(np.int8)
    library[7] = 127  # with x[0] below: the largest sums
    selectors[0] = 7
    d = (rng.standard_normal((ROWS, k // fmt.sb)) * 0.01).astype(np.float16)
    d[1, 0], d[2, 0], d[3, 0] = 0, 6e-8, 65504  # zero, the smallest subnormal, the largest
    second = {}
    if layer := fmt.second:
        second["codes2"] = rng.integers(0, 1 << layer.bits, (ROWS, k // layer.pair), np.uint8)
        second["library2"] = rng.integers(-127, 128, layer.library_shape).astype(np.int8)
    x = rng.standard_normal((COLUMNS, k)).astype(np.float32)
    x[0] = 3
    x[1, : fmt.sb] = 0
    x[2, : fmt.sb] *= np.float32(1e-32)  # below the smallest amax that is kept
    x[3, 5], x[3, fmt.sb + 9] = np.nan, np.inf
    q, dx = codebook.quantize_x(x, fmt.sb)
    data = codebook.pack(codes, selectors, d, library, fmt, tuple(second.values()) or None)
    return {
        "codes": codes,
        "selectors": selectors,
        "d": d.view(np.uint16),
        "library": library,
        **second,
        "x": x,
        "data": data,
        "weights": codebook.dequantize(data, ROWS, k, fmt),
        "q": q,
        "dx": dx,
        "y": codebook.gemm(data, ROWS, k, fmt, q, dx),
    }


def verify_words(fmt: CBFormat) -> str:
    """The line of ``golden.json``: the dot products of ``golden_input``, as float32 bits."""
    parts, x = golden_input(fmt)
    y = codebook.gemv(parts.join(), 8, x.size, fmt, *codebook.quantize_x(x, fmt.sb))
    return " ".join(f"{word:08x}" for word in bits(y))


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for member in MEMBERS:
        path = GOLDEN / f"{member.name.lower()}.npz"
        if not path.exists():
            np.savez_compressed(path, **make(member))
    words = json.loads(VERIFY.read_text())
    words |= {f.name: verify_words(f) for f in CB_FORMATS.values() if f.name not in words}
    VERIFY.write_text(json.dumps(words, indent=2) + "\n")
