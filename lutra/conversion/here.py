# SPDX-License-Identifier: MIT
"""This machine as a board: llama-bench on a small model of each type, with the kernels that will run it.

The model is made up, and all of its matrices are zeros: what weights are does not matter for the speed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from math import prod
from pathlib import Path

import numpy as np
from gguf import GGUFValueType
from gguf.gguf_writer import GGUFValue

from gguf_tools.errors import LutraError
from gguf_tools.formats.catalog import Type
from gguf_tools.formats.family import LAYOUT_VERSION, LAYOUT_VERSION_KEY
from gguf_tools.reader import tensor_nbytes
from gguf_tools.writer import GGUFWriter, TensorSpec
from lutra.console import progress
from lutra.conversion.boards import HERE
from lutra.runtime.tools import failure, run_tool

HIDDEN, FEED_FORWARD, LAYERS, HEADS, VOCABULARY = 2048, 6144, 3, 16, 256
TOKENS, RUNS = 8, 3
KEY = {
    "block_count": LAYERS, "context_length": 512, "embedding_length": HIDDEN, "vocab_size": VOCABULARY,
    "feed_forward_length": FEED_FORWARD, "attention.head_count": HEADS, "attention.head_count_kv": HEADS,
}  # fmt: skip


def measure_here(kinds: Sequence[Type], threads: int, path: Path) -> tuple[dict[str, float], float]:
    """Seconds per weight by type with so many threads, and per byte; ``path`` is for the models, one by one.

    Raises LutraError when llama-bench fails.
    """
    per_weight = {}
    with progress(len(kinds), "type", "measuring speed") as bar:
        for kind in kinds:
            weights = write_model(path, kind)
            per_weight[kind.name] = _seconds(path, threads) / weights
            path.unlink()
            bar.update()
    return per_weight, min(per_weight[kind.name] * 8 / kind.bpw for kind in kinds)


def write_model(path: Path, kind: Type) -> int:
    """A Llama of matrices of one type, and no tokenizer; returns the number of its weights."""
    specs = [
        TensorSpec(name, number, shape, tensor_nbytes(number, shape))
        for name, number, shape in _tensors(kind)
    ]
    values = {
        "general.architecture": GGUFValue("llama", GGUFValueType.STRING),
        "tokenizer.ggml.model": GGUFValue("none", GGUFValueType.STRING),
        LAYOUT_VERSION_KEY: GGUFValue(LAYOUT_VERSION, GGUFValueType.UINT32),
        "llama.attention.layer_norm_rms_epsilon": GGUFValue(1e-5, GGUFValueType.FLOAT32),
    }
    values |= {f"llama.{key}": GGUFValue(value, GGUFValueType.UINT32) for key, value in KEY.items()}
    with GGUFWriter(path, values, specs) as writer:
        for spec in specs:
            writer.write(np.zeros(spec.nbytes, np.uint8))
    multiplied = (spec.shape for spec in specs if spec.name.startswith("blk.") and len(spec.shape) == 2)
    return sum(map(prod, multiplied))


def _seconds(path: Path, threads: int) -> float:
    """Of a token, the fastest of a few runs."""
    arguments = ["-m", str(path), "-t", str(threads), "-o", "jsonl"]
    arguments += ["-p", "0", "-n", str(TOKENS), "-r", str(RUNS)]
    output = run_tool("llama-bench", arguments)
    records = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    if len(records) != 1:
        raise LutraError(f"--for {HERE}: llama-bench: {failure(output, 0)}")
    return float(min(records[0]["samples_ns"])) / 1e9 / TOKENS


def _tensors(kind: Type) -> Iterator[tuple[str, int, tuple[int, ...]]]:
    square, up, down = (HIDDEN, HIDDEN), (FEED_FORWARD, HIDDEN), (HIDDEN, FEED_FORWARD)
    shapes = {"attn_q": square, "attn_k": square, "attn_v": square, "attn_output": square}
    shapes |= {"ffn_gate": up, "ffn_up": up, "ffn_down": down}
    number = kind.id_for(down)
    assert number is not None
    yield "token_embd.weight", 1, (VOCABULARY, HIDDEN)
    yield "output_norm.weight", 0, (HIDDEN,)
    for i in range(LAYERS):
        for name in ("attn_norm", "ffn_norm"):
            yield f"blk.{i}.{name}.weight", 0, (HIDDEN,)
        for name, shape in shapes.items():
            yield f"blk.{i}.{name}.weight", number, shape
