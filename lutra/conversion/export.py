# SPDX-License-Identifier: MIT
"""``lutra.export``: a file with codebooks as one that any llama.cpp loads."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gguf import GGUFValueType
from gguf.gguf_writer import GGUFValue
from numpy.typing import NDArray

from gguf_tools.errors import LutraError
from gguf_tools.formats.catalog import TYPES, Type
from gguf_tools.formats.family import CB_FORMATS
from gguf_tools.inspect import FileInfo, read_info
from gguf_tools.reader import tensor_nbytes, type_id
from gguf_tools.sources.gguf import open_gguf
from gguf_tools.sources.hub import local_gguf
from gguf_tools.sources.tensors import Source, SourceTensor
from gguf_tools.writer import GGUFWriter, TensorSpec
from lutra.console import progress
from lutra.conversion.encode import stock
from lutra.conversion.output import QUANTIZATION_VERSION, require_space, require_writable
from lutra.conversion.plan import Planned, plan_as
from lutra.runtime.threads import checked_threads

EXPORT_TYPES = ("f16", "q8_0", "bf16", "f32")


def export(
    file: str | Path,
    output: str | Path | None = None,
    *,
    type: str = "f16",
    pure: bool = False,
    threads: int | None = None,
) -> FileInfo:
    """Write the model of ``file`` to ``output`` with its codebooks as ``type``: f16, q8_0, bf16 or f32.

    ``file`` is a GGUF file, of a split one the first, or a name on the hub; ``output`` None is its name with
    the type behind it, in the current directory. Weights are the values that the codebooks stand for, rounded
    to the type; f32 holds them exactly. Tensors of llama.cpp's types stay as they are; with ``pure`` every
    matrix becomes the type. Nothing is left at ``output`` when it fails. ``threads`` None takes the fast
    cores. Raises LutraError with the cause and the next step.
    """
    if type not in EXPORT_TYPES:
        raise LutraError(f"'{type}' is no type to export to; choose one of {', '.join(EXPORT_TYPES)}")
    threads, path = checked_threads(threads), local_gguf(file)
    name = re.sub(r"(-\d{5}-of-\d{5})?\.gguf$", "", path.name)
    output = Path(output or f"{name}-{type}.gguf")
    with open_gguf(path, quantized=True) as source:
        tensors = [_Tensor.of(tensor, TYPES[type], pure) for tensor in source.tensors]
        if not any(tensor.planned for tensor in tensors):
            hint = "" if pure else f"; --pure makes every matrix {type.upper()}"
            raise LutraError(f"{path}: has no codebooks, llama.cpp loads it as it is{hint}")
        for part in {tensor.path for tensor in source.tensors}:
            output = require_writable(output, str(part))
        _write(output, source, tensors, threads)
    return read_info(output)


@dataclass(frozen=True)
class _Tensor:
    """A tensor and what it becomes; without a plan it stays as it is."""

    source: SourceTensor
    planned: Planned | None

    @staticmethod
    def of(tensor: SourceTensor, kind: Type, pure: bool) -> _Tensor:
        """What a tensor becomes in a file of this type."""
        if type_id(tensor.dtype) not in CB_FORMATS and (tensor.keeps_f32 or not pure):
            return _Tensor(tensor, None)
        planned = plan_as(tensor, kind)
        return _Tensor(tensor, None if planned.type_name == tensor.dtype else planned)

    @property
    def spec(self) -> TensorSpec:
        """For the writer."""
        shape = self.source.shape
        number = self.planned.id if self.planned else type_id(self.source.dtype)
        return TensorSpec(self.source.name, number, shape, tensor_nbytes(number, shape))

    def data(self, threads: int) -> Iterator[NDArray[np.uint8]]:
        """Its bytes in pieces. Raises LutraError for weights that the type cannot hold."""
        if self.planned is None:
            assert self.source.stored  # of a GGUF file
            yield self.source.stored()
            return
        for piece in stock(self.planned, None, threads):
            if self.planned.type is TYPES["f16"] and not np.isfinite(piece.view("<f2")).all():
                raise LutraError(
                    f"{self.source.path}: tensor {self.source.name!r} has weights that F16 cannot hold; "
                    "--type f32 or bf16 can"
                )
            yield piece


def _write(output: Path, source: Source, tensors: Sequence[_Tensor], threads: int) -> None:
    specs = [tensor.spec for tensor in tensors]
    require_space(output, sum(spec.nbytes for spec in specs))
    with (
        GGUFWriter(output, _metadata(source, tensors), specs) as writer,
        progress(sum(tensor.source.rows * tensor.source.k for tensor in tensors), "w") as bar,
    ):
        for tensor in tensors:
            bar.set_postfix_str(tensor.source.name)
            for piece in tensor.data(threads):
                writer.write(piece)
            bar.update(tensor.source.rows * tensor.source.k)


def _metadata(source: Source, tensors: Sequence[_Tensor]) -> dict[str, GGUFValue]:
    """The key/values of the model: none that say how Lutra made the file, and another file type."""
    ours = ("lutra.", "general.file_type")
    values = {key: value for key, value in source.metadata.items() if not key.startswith(ours)}
    weights: Counter[int] = Counter()
    for tensor in tensors:
        weights[tensor.spec.type] += tensor.source.rows * tensor.source.k
    most = weights.most_common(1)[0][0]
    file_type = next((kind.file_type for kind in TYPES.values() if most in kind.ids.values()), None)
    if file_type is not None:  # llama.cpp finds out by itself otherwise
        values["general.file_type"] = GGUFValue(file_type, GGUFValueType.UINT32)
    values["general.quantization_version"] = GGUFValue(QUANTIZATION_VERSION, GGUFValueType.UINT32)
    return values
