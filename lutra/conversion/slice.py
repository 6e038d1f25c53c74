# SPDX-License-Identifier: MIT
"""``lutra.slice``: a file of two layers cut down to its first one, at the speed of the disk."""

from __future__ import annotations

import re
from pathlib import Path

from gguf import GGUFValueType
from gguf.gguf_writer import GGUFValue

from gguf_tools.errors import LutraError
from gguf_tools.formats.catalog import RECIPES, TYPES
from gguf_tools.formats.family import CB_FORMATS, first_layer
from gguf_tools.inspect import FileInfo, read_info
from gguf_tools.reader import tensor_nbytes, type_id
from gguf_tools.sources.gguf import open_gguf
from gguf_tools.sources.hub import local_gguf
from gguf_tools.sources.tensors import Source, SourceTensor
from gguf_tools.writer import GGUFWriter, TensorSpec
from lutra.console import progress
from lutra.conversion.options import OPTIONS_KEY
from lutra.conversion.output import require_space, require_writable

SLICED_KEY = "lutra.slice.of"  # the options of the file that was cut
PIECE = 1 << 24  # bytes copied at a time
CUTS = tuple(  # what a file can be cut down to
    dict.fromkeys(first.family for f in CB_FORMATS.values() if f.second and (first := first_layer(f)))
)


def slice_file(
    file: str | Path, output: str | Path | None = None, *, type: str = CUTS[0], pure: bool = False
) -> FileInfo:
    """Write ``file`` to ``output`` as a file of ``type``, without the second layers that it does not need.

    ``file`` is a GGUF file, of a split one the first, or a name on the hub; ``output`` None is its name with
    the type behind it, in the current directory. The bytes of first layers stay as they are. Tensors to which
    the recipe of ``type`` gives more bits keep both layers, but not with ``pure``. Nothing is left at
    ``output`` when it fails. Raises LutraError for a type that is no first layer, and where there is nothing
    to cut.
    """
    if type not in CUTS:
        raise LutraError(
            f"'{type}' is the first layer of no type; a file can be cut down to {', '.join(CUTS)}"
        )
    path = local_gguf(file)
    name = re.sub(r"(-\d{5}-of-\d{5})?\.gguf$", "", path.name)
    output = Path(output or f"{name}-{type}.gguf")
    with open_gguf(path, quantized=True) as source:
        specs = [_spec(tensor, type, pure) for tensor in source.tensors]
        if all(
            spec.type == type_id(tensor.dtype) for spec, tensor in zip(specs, source.tensors, strict=True)
        ):
            hint = "" if pure else "; --pure cuts those of two layers that a file of this type has, too"
            raise LutraError(f"{path}: has no tensor that can be cut down to {type}{hint}")
        for part in {tensor.path for tensor in source.tensors}:
            output = require_writable(output, str(part))
        _write(output, source, specs, type)
    return read_info(output)


def _spec(tensor: SourceTensor, type: str, pure: bool) -> TensorSpec:
    """What becomes of a tensor: its first bytes."""
    number, shape = type_id(tensor.dtype), tensor.shape
    fmt = CB_FORMATS.get(number)
    first = first_layer(fmt) if fmt else None
    wanted = TYPES[type] if pure else RECIPES[type].wanted(tensor.name)
    if first and first.family == wanted.name == type:
        number = first.type
    return TensorSpec(tensor.name, number, shape, tensor_nbytes(number, shape))


def _write(output: Path, source: Source, specs: list[TensorSpec], type: str) -> None:
    require_space(output, sum(spec.nbytes for spec in specs))
    values = dict(source.metadata)
    if options := values.pop(OPTIONS_KEY, None):
        values[SLICED_KEY] = options
    values["general.file_type"] = GGUFValue(TYPES[type].file_type, GGUFValueType.UINT32)
    with (
        GGUFWriter(output, values, specs) as writer,
        progress(sum(spec.nbytes for spec in specs), "B") as bar,
    ):
        for tensor, spec in zip(source.tensors, specs, strict=True):
            assert tensor.stored  # of a GGUF file
            data = tensor.stored()[: spec.nbytes]
            for start in range(0, spec.nbytes, PIECE):
                piece = data[start : start + PIECE]
                writer.write(piece)
                bar.update(len(piece))
