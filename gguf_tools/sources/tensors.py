# SPDX-License-Identifier: MIT
"""What a source of weights looks like to the rest of Lutra, whatever file it came from."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from types import TracebackType

import numpy as np
from gguf.gguf_writer import GGUFValue
from numpy.typing import NDArray

from gguf_tools.errors import LutraError
from gguf_tools.interrupts import shielded

EMBEDDING, OUTPUT = "token_embd.weight", "output.weight"

# Of any architecture: the matrices that llama.cpp wants in float32 whatever the others are, as its converter
# has them, and llama-quantize leaves them: norms, what chooses experts, positions and types of tokens, short
# convolutions, coefficients of AltUp, the small matrices of RWKV, indexers of sparse attention, biases of T5.
_F32 = re.compile(
    r"_norm\.weight|ffn_gate_inp(_shexp)?\.|^(position_embd|token_types)\.|conv1d|shortconv\.conv\."
    r"|altup_(correct|predict)_coef\.|time_mix_(first|w[012]|a[012]|v[012]|g[12]|decay_w[12]|lerp_fused)\."
    r"|indexer\.(k_|q_)?proj\.|attn_rel_b\."
)


def keeps_f32(name: str, shape: tuple[int, ...]) -> bool:
    """True when GGUF tensor ``name``, of a family that is not known, stays float32 in a file of any type.

    Beside the matrices that need it, these are vectors, whatever the number of dimensions they come with.
    """
    return prod(shape[:-1]) == 1 or not name.endswith(".weight") or _F32.search(name) is not None


@dataclass(frozen=True)
class SourceTensor:
    """One tensor, read by rows.

    ``shape`` is in numpy order (..., rows, k); ``dtype`` names the stored type (F32, F16, BF16, Q8_0, ...).
    ``keeps_f32``: it is float32 in a file of any type. ``stored``: in a GGUF file, its bytes as they are.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    path: Path
    load: Callable[[int, int], NDArray[np.float32]] = field(repr=False)  # rows [start, stop) as (n, k)
    keeps_f32: bool
    stored: Callable[[], NDArray[np.uint8]] | None = field(default=None, repr=False)

    @property
    def k(self) -> int:
        """Weights per row."""
        return self.shape[-1]

    @property
    def rows(self) -> int:
        """Rows, all leading dimensions multiplied."""
        return prod(self.shape[:-1])

    def read(self, start: int = 0, stop: int | None = None) -> NDArray[np.float32]:
        """Rows ``start`` to ``stop`` (of ``rows``) as float32 (n, k).

        Raises ``LutraError`` when one of them holds a NaN or an infinity.
        """
        with np.errstate(all="ignore"):  # of scales that are no numbers
            weights = self.load(*slice(start, stop).indices(self.rows)[:2])
        if not np.isfinite(weights).all():
            row = start + int(np.argmin(np.isfinite(weights).all(axis=1)))
            raise LutraError(
                f"{self.path}: tensor {self.name!r} has a NaN or an infinity in row {row}; "
                "the model is damaged, download it again"
            )
        return weights


@dataclass(frozen=True)
class Source:
    """A model: its GGUF metadata (``GGUFValue`` by key, in order) and its tensors.

    A context manager: leaving it closes what the tensors are read from.
    """

    path: Path
    architecture: str
    metadata: dict[str, GGUFValue]
    tensors: list[SourceTensor]
    resources: ExitStack = field(default_factory=ExitStack, repr=False, compare=False)
    files: Sequence[Path] = ()  # what else it follows from, if it is there: config, tokenizer
    gguf: Path | None = None  # a file that has all of it, while the source is open

    def __enter__(self) -> Source:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @shielded
    def close(self) -> None:
        """Close the files and remove temporary ones: no tensor can be read any more."""
        self.resources.close()
