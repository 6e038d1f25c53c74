#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Compare the CB family, and the parameters around it, with upstream's types of like size.

Every variant's weights are dequantized into a copy of the F16 model, which llama-perplexity then
compares with the F16 model itself: only the weights differ. No calibration of any kind; upstream's types
that insist on an importance matrix get one of ones.

    scripts/bakeoff.py --bin BIN --text wiki.test.raw --text books.txt --chunks 20 MODEL-f16.gguf...

BIN holds llama-quantize and llama-perplexity. Needs the package gguf beside Lutra's own.
"""

from __future__ import annotations

import argparse
import re
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, dequantize
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parent.parent))
from gguf_tools.formats.family import CB_FORMATS
from pyquant.arguments import Shape
from pyquant.codebook import decode_shape, encode_shape, learn_shape, look_up
from pyquant.layers import First, encode_layer, learn_layer

CB = {fmt.name: Shape.of(fmt) for fmt in CB_FORMATS.values() if fmt.sb == 256}
SECOND = {fmt.name: Shape.of_second(fmt) for fmt in CB_FORMATS.values() if fmt.sb == 256 and fmt.second}
PER_ROW = 0  # as Shape.sb: one scale per row
# llama-quantize's name -> the type that --pure gives every matrix
UPSTREAM = {
    "Q2_K": "Q2_K", "IQ2_XS": "IQ2_XS", "IQ2_M": "IQ2_S", "Q3_K_M": "Q3_K", "IQ3_M": "IQ3_S",
    "Q4_0": "Q4_0", "IQ4_XS": "IQ4_XS", "IQ4_NL": "IQ4_NL", "Q4_K_M": "Q4_K",
    "Q5_K_M": "Q5_K", "Q6_K": "Q6_K",
}  # fmt: skip
STATISTICS = (r"Mean PPL\(Q\)", r"Mean +KLD", "Same top p")
NEEDS_IMATRIX = {"IQ2_XS", "IQ2_M"}


def around(name: str) -> dict[str, Shape]:
    """The member ``name`` with one parameter changed at a time; none of those of two layers."""
    if name in SECOND:
        return {}
    shape = CB[name]
    variants = {f"{name}, {t} tables": replace(shape, tables=t) for t in (64, 128, 512)}
    variants |= {f"{name}, groups of {g}": replace(shape, group=g) for g in (16, 64)}
    variants |= {
        f"{name}, super-blocks of 64": replace(shape, sb=64),
        f"{name}, d per row": replace(shape, sb=PER_ROW),
    }
    if name == "CB2":
        variants["2-bit scalars"] = Shape(2, 1, 256)
    return variants


@dataclass
class Score:
    """Of a variant on a model: bits per weight, dB; per text perplexity, mean KL divergence, same top %."""

    bpw: float
    snr: float
    texts: list[tuple[float, ...]]


class Model:
    """An F16 GGUF, its matrices, and its logits on every text."""

    def __init__(self, path: Path, args: argparse.Namespace, work: Path) -> None:
        """Run the F16 model over every text, once."""
        self.path, self.args, self.work = path, args, work
        self.copy = work / "variant.gguf"
        self.matrices = [t.name for t in GGUFReader(path).tensors if len(t.shape) > 1]
        for text in args.text:
            run(self._perplexity(path, text))  # saves the logits

    def _perplexity(self, model: Path, text: Path) -> list:
        return [
            self.args.bin / "llama-perplexity", "-m", model, "-f", text, "-t", self.args.threads,
            "-c", self.args.ctx, "--chunks", self.args.chunks,
            "--kl-divergence-base", self.work / f"{self.path.stem}-{text.name}.kld",
        ]  # fmt: skip

    def _statistics(self, model: Path, text: Path) -> tuple[float, ...]:
        """Perplexity, mean KL divergence and same top %, as llama-perplexity reports them."""
        for _ in range(5):  # under load llama.cpp can lose some of the last lines of what it says
            said = run([*self._perplexity(model, text), "--kl-divergence"])
            found = [re.search(rf"{name}\s*:\s*([-0-9.]+)", said) for name in STATISTICS]
            if all(found):
                return tuple(float(f[1]) for f in found)
        raise SystemExit(f"llama-perplexity prints no statistics for {text}: {said[-500:]}")

    def score(self, bits: float, dequantized: Callable[[str, np.ndarray], np.ndarray]) -> Score:
        """Score the model whose matrices are ``dequantized(name, weights)``; ``bits``: of all of them."""
        shutil.copyfile(self.path, self.copy)
        noise = signal = weights = 0.0
        for tensor in GGUFReader(self.copy, "r+").tensors:
            if tensor.name in self.matrices:
                w = tensor.data.astype(np.float32)
                w_hat = dequantized(tensor.name, w)
                noise += float(np.square(w - w_hat, dtype=np.float64).sum())
                signal += float(np.square(w, dtype=np.float64).sum())
                weights += w.size
                tensor.data[:] = w_hat
        texts = [self._statistics(self.copy, text) for text in self.args.text]
        return Score(bits / weights, 10 * np.log10(signal / noise), texts)

    def score_cb(self, shape: Shape, second: Shape | None = None) -> Score:
        """Learn and encode every matrix, with a ``second`` layer if there is one."""
        bits = 0.0
        coded = {}
        for tensor in GGUFReader(self.path).tensors:
            if tensor.name not in self.matrices:
                continue
            w = tensor.data.astype(np.float32)
            own = replace(shape, sb=shape.sb or w.shape[1])
            library = learn_shape(w, own, threads=self.args.threads)
            codes, selectors, d, _ = encode_shape(w, library, own, threads=self.args.threads)
            coded[tensor.name] = decode_shape(codes, selectors, d, library, own)
            if second:
                first = First.of(codes, selectors, d, library, own)
                rest = first.rest(w)
                entries = learn_layer(rest, first, library, second, threads=self.args.threads)
                codes, _ = encode_layer(rest, first, entries, second, threads=self.args.threads)
                coded[tensor.name] += look_up(codes, selectors, d, entries, second)
                bits += w.size * second.bits / second.pair + 8 * entries.size
            per_weight = own.bits / own.pair + np.log2(own.tables) / own.group + 16 / own.sb
            bits += w.size * per_weight + 8 * library.size
        return self.score(bits, lambda name, _: coded[name])

    def score_upstream(self, name: str) -> Score:
        """llama-quantize --pure."""
        out = self.work / "upstream.gguf"
        command = [self.args.bin / "llama-quantize", "--pure"]
        if name in NEEDS_IMATRIX:
            command += ["--imatrix", self._imatrix_of_ones()]
        run([*command, self.path, out, name])
        tensors = {t.name: t for t in GGUFReader(out).tensors}
        kinds = {tensors[m].tensor_type for m in self.matrices}
        if kinds != {GGMLQuantizationType[UPSTREAM[name]]}:
            raise SystemExit(f"llama-quantize --pure {name} gave {', '.join(k.name for k in kinds)}")
        bits = 8 * sum(int(tensors[m].n_bytes) for m in self.matrices)
        return self.score(bits, lambda m, _: dequantize(tensors[m].data, tensors[m].tensor_type))

    def _imatrix_of_ones(self) -> Path:
        """An imatrix in llama-imatrix's old format that prefers no column."""
        path = self.work / "ones.dat"
        with path.open("wb") as f:
            f.write(struct.pack("<i", len(self.matrices)))
            for tensor in GGUFReader(self.path).tensors:
                if tensor.name in self.matrices:
                    k = int(tensor.shape[0])
                    f.write(
                        struct.pack("<i", len(tensor.name)) + tensor.name.encode() + struct.pack("<ii", 1, k)
                    )
                    f.write(np.ones(k, np.float32).tobytes())
        return path


def run(command: list) -> str:
    """Run a tool and return all it says; end the script with its last lines when it fails."""
    with tempfile.TemporaryFile("w+", errors="replace") as output:  # llama.cpp can lose the end of a pipe
        done = subprocess.run([str(c) for c in command], stdout=output, stderr=subprocess.STDOUT)
        output.seek(0)
        said = output.read()
    if done.returncode:
        raise SystemExit(f"{command[0]}: {said[-500:]}")
    return said


def rows(models: list[Model], wanted: str) -> Iterator[tuple[str, list[Score]]]:
    """Score every variant whose name matches ``wanted`` on every model."""
    variants: list[tuple[str, Callable[[Model], Score]]] = []
    for name in CB:
        variants.append((name, lambda m, n=name: m.score_cb(CB[n], SECOND.get(n))))
        peers = [u for u in UPSTREAM if UPSTREAM[u].removeprefix("I")[1] == name[2]]
        variants += [(UPSTREAM[u], lambda m, u=u: m.score_upstream(u)) for u in peers]
        variants += [(v, lambda m, s=s: m.score_cb(s)) for v, s in around(name).items()]
    variants = [v for v in variants if re.search(wanted, v[0])]
    for name, score in tqdm(variants):
        yield name, [score(m) for m in models]


def main() -> None:
    """Print the table in Markdown."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+", type=Path, metavar="MODEL-f16.gguf")
    parser.add_argument(
        "--bin", type=Path, required=True, help="directory of llama-quantize and llama-perplexity"
    )
    parser.add_argument(
        "--text", type=Path, action="append", required=True, help="a held-out text; may be repeated"
    )
    parser.add_argument("--chunks", type=int, default=20)
    parser.add_argument("--ctx", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", default="", metavar="REGEX", help="variants to run")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        models = [Model(path, args, Path(work)) for path in args.models]
        header = ["type"]
        for model in args.models:
            header += [f"{model.stem}: bpw", "dB"]
            for text in args.text:
                header += [f"{text.stem}: PPL", "KLD", "same top %"]
        print("|", " | ".join(header), "|")
        print("|---" * len(header) + "|")
        for name, scores in rows(models, args.only):
            cells = [name]
            for score in scores:
                cells += [f"{score.bpw:.3f}", f"{score.snr:.2f}"]
                for ppl, kld, top in score.texts:
                    cells += [f"{ppl:.2f}", f"{kld:.4f}", f"{top:.1f}"]
            print("|", " | ".join(cells), "|", flush=True)


if __name__ == "__main__":
    main()
