#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""What tuning takes: memory and seconds of a step, with random weights of a model's shape.

scripts/tuning_cost.py --way frugal --hidden 2048 --inner 8192 --heads 32 --kv-heads 8 --vocabulary 128256
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
from functools import partial
from math import prod
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from gguf import GGUFValueType
from gguf.gguf_writer import GGUFValue

from gguf_tools.formats import codebook
from gguf_tools.formats.catalog import TYPES
from gguf_tools.formats.family import CB_FORMATS, LAYOUT_VERSION, LAYOUT_VERSION_KEY, ROWS
from gguf_tools.reader import GGUFFile
from gguf_tools.sources.tensors import Source, SourceTensor
from gguf_tools.writer import GGUFWriter, TensorSpec
from lutra.conversion import tune


def shapes(args) -> dict[str, tuple[int, ...]]:
    """The tensors of a Llama."""
    hidden, inner, kv = args.hidden, args.inner, args.kv_heads * (args.hidden // args.heads)
    found = {"token_embd.weight": (args.vocabulary, hidden), "output_norm.weight": (hidden,)}
    if args.untied:
        found["output.weight"] = (args.vocabulary, hidden)
    for i in range(args.layers):
        found |= {
            f"blk.{i}.attn_norm.weight": (hidden,),
            f"blk.{i}.ffn_norm.weight": (hidden,),
            f"blk.{i}.attn_q.weight": (hidden, hidden),
            f"blk.{i}.attn_k.weight": (kv, hidden),
            f"blk.{i}.attn_v.weight": (kv, hidden),
            f"blk.{i}.attn_output.weight": (hidden, hidden),
            f"blk.{i}.ffn_gate.weight": (inner, hidden),
            f"blk.{i}.ffn_up.weight": (inner, hidden),
            f"blk.{i}.ffn_down.weight": (hidden, inner),
        }
    return found


def random_source(args) -> Source:
    """The original, bfloat16, made when it is read."""
    u32 = partial(GGUFValue, type=GGUFValueType.UINT32)
    metadata = {
        "llama.block_count": u32(args.layers),
        "llama.attention.head_count": u32(args.heads),
        "llama.attention.head_count_kv": u32(args.kv_heads),
        "llama.embedding_length": u32(args.hidden),
        "llama.attention.layer_norm_rms_epsilon": GGUFValue(1e-5, GGUFValueType.FLOAT32),
    }

    def tensor(name: str, shape: tuple[int, ...]) -> SourceTensor:
        k, is_norm = shape[-1], len(shape) == 1

        def load(start: int, stop: int):
            if is_norm:
                return np.ones((1, k), np.float32)
            rng = np.random.default_rng([len(name), start])
            return np.resize(rng.standard_normal((64, k), np.float32) / np.float32(k**0.5), (stop - start, k))

        return SourceTensor(name, shape, "BF16", Path(name), load, is_norm)

    return Source(Path("."), "llama", metadata, [tensor(*item) for item in shapes(args).items()])


def random_tensor(shape: tuple[int, int], type_name: str) -> np.ndarray:
    """The bytes of a codebook tensor: a strip that repeats itself."""
    fmt, rng = CB_FORMATS[TYPES[type_name].id_for(shape)], np.random.default_rng(0)
    k = shape[1]
    layers = [
        (rng.integers(0, 1 << layer.bits, (ROWS, k // layer.pair), np.uint8),
         rng.integers(-60, 61, layer.library_shape).astype(np.int8))
        for layer in fmt.layers
    ]  # fmt: skip
    d = np.full((ROWS, k // fmt.sb), k**-0.5 / 35, np.float16)
    selectors = rng.integers(0, 256, (ROWS, k // 32), np.uint8)
    parts = codebook.split(codebook.pack(layers[0][0], selectors, d, layers[0][1], fmt, *layers[1:]), fmt)
    strips = shape[0] // ROWS
    return np.concatenate([np.tile(parts.strips, strips), parts.library, np.tile(parts.second, strips)])


def random_file(args, path: Path) -> Path:
    """A file of the same shapes."""
    specs = []
    for name, shape in shapes(args).items():
        fmt = CB_FORMATS[TYPES[args.type].id_for(shape)] if len(shape) > 1 else None
        nbytes = fmt.tensor_bytes(*shape) if fmt else 4 * shape[0]
        specs.append(TensorSpec(name, fmt.type if fmt else 0, shape, nbytes))
    metadata = {LAYOUT_VERSION_KEY: GGUFValue(LAYOUT_VERSION, GGUFValueType.UINT32)}
    with GGUFWriter(path, metadata, specs) as writer:
        for shape in shapes(args).values():
            is_norm = len(shape) == 1
            writer.write(
                np.ones(shape, np.float32).view(np.uint8) if is_norm else random_tensor(shape, args.type)
            )
    return path


def main() -> None:
    """See --help."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = partial(parser.add_argument, type=int)
    add("--hidden", default=1024)
    add("--layers", default=16)
    add("--inner", default=4096)
    add("--heads", default=16)
    add("--kv-heads", default=4)
    add("--vocabulary", default=32768)
    add("--steps", default=2)
    add("--threads", default=2)
    add("--limit", help="of a GPU's memory, in GB: as if it had no more")
    parser.add_argument("--untied", action="store_true", help="an output matrix of its own")
    parser.add_argument("--type", default="cb2")
    parser.add_argument("--device", choices=tune.DEVICES, default="auto")
    parser.add_argument("--way", choices=("usual", "frugal"), required=True)
    args = parser.parse_args()
    device, source = tune.device_of(args.device), random_source(args)
    weights = sum(prod(t.shape) for t in source.tensors)
    if args.limit:
        import torch

        torch.cuda.set_per_process_memory_fraction(
            args.limit * 1e9 / torch.cuda.get_device_properties(device).total_memory
        )
    length = 256
    size = tune.BATCH[device.type] // length, length
    with tempfile.TemporaryDirectory(dir=".") as directory:
        path = random_file(args, Path(directory) / "random.gguf")
        original = tune.load(source, device, frugal=args.way == "frugal")
        with GGUFFile(path) as file, tune.reproducible(device):
            types = {name: CB_FORMATS.get(t.type) for name, t in file.tensors.items()}
            needs = tune.needs(source, types, device)
            tuning = tune.tuning_of(file, source, original, 0, args.threads)
            seconds = []
            for step in range(args.steps):
                tokens = np.random.default_rng(step).integers(args.vocabulary, size=size)
                seconds.append(tuning.seconds_per_token(tokens) * tokens.size)
    if device.type == "cuda":
        import torch

        peak = torch.cuda.max_memory_reserved()
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    expected = needs.frugal() if args.way == "frugal" else needs.usual()
    print(
        f"{weights / 1e9:.3f} B weights, {args.type}, {args.way}, {device.type}: peak {peak / 1e9:.2f} GB "
        f"({peak / weights:.1f} bytes per weight), reckoned {expected / 1e9:.2f} GB, "
        f"seconds of steps {' '.join(f'{s:.1f}' for s in seconds)}"
    )


if __name__ == "__main__":
    main()
