# SPDX-License-Identifier: MIT
"""Writing a file: its key/values, its tensors one after another, and what stands beside it meanwhile."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from gguf import GGUFValueType
from gguf.gguf_writer import GGUFValue

from gguf_tools.errors import LutraError
from gguf_tools.formats.catalog import RECIPES
from gguf_tools.formats.family import LAYOUT_VERSION, LAYOUT_VERSION_KEY
from gguf_tools.formats.keys import PLANES_KEY
from gguf_tools.sources.tensors import Source
from gguf_tools.writer import GGUFWriter, TensorSpec, require_replaceable
from lutra import __version__
from lutra.console import mib, progress
from lutra.conversion.encode import stock
from lutra.conversion.options import OPTIONS_KEY
from lutra.conversion.plan import Planned, Rules, main_type, plan
from lutra.conversion.weighting import Importance
from lutra.conversion.workdir import WorkDirectory
from lutra.runtime import crash

QUANTIZATION_VERSION = 2  # of ggml's own block types


def write(
    output: Path,
    source: Source,
    planned: Sequence[Planned],
    values: dict[str, GGUFValue],
    threads: int,
    importance: Importance | None = None,
    work: WorkDirectory | None = None,
) -> None:
    """Write ``output`` tensor by tensor; nothing is left behind when anything goes wrong.

    ``values`` as ``metadata`` has them. Codebook tensors are finished in ``work``.
    """
    importance = importance or {}
    require_space(output, sum(p.nbytes for p in planned))
    with (
        GGUFWriter(output, values, tensor_specs(planned)) as writer,
        progress(sum(p.weights for p in planned), "w") as bar,
    ):
        for p in planned:
            bar.set_postfix_str(p.name)
            if work and p.fmt:
                writer.write(work.load(p.name)[0])
            else:
                for data in stock(p, importance.get(p.name), threads):
                    writer.write(data)
            bar.update(p.weights)


def write_floats(output: Path, source: Source, kind: str, threads: int, record: str) -> None:
    """Write ``source`` with its matrices as ``kind`` ("f32", "f16", "bf16"), on the way to the output."""
    planned = plan(source.tensors, Rules(RECIPES[kind]))
    values = metadata(source, planned, record, RECIPES[kind].base.file_type)
    write(output, source, planned, values, threads)


def tensor_specs(planned: Sequence[Planned]) -> list[TensorSpec]:
    """What the writer needs to know beforehand."""
    return [TensorSpec(p.name, p.id, p.source.shape, p.nbytes) for p in planned]


def metadata(
    source: Source, planned: Sequence[Planned], record: str, file_type: int | None = None
) -> dict[str, GGUFValue]:
    """The source's key/values with our own: file type, layout version, planes, and how the file was made.

    ``record``: the options, as ``ConversionOptions.record``; ``file_type``: None for that of most weights.
    """
    stale = ("lutra.", "quantize.imatrix.")
    values = {key: value for key, value in source.metadata.items() if not key.startswith(stale)}
    if file_type is None:
        file_type = main_type(planned).file_type
    values["general.file_type"] = GGUFValue(file_type, GGUFValueType.UINT32)
    values["general.quantization_version"] = GGUFValue(QUANTIZATION_VERSION, GGUFValueType.UINT32)
    if any(p.fmt for p in planned):
        values[LAYOUT_VERSION_KEY] = GGUFValue(LAYOUT_VERSION, GGUFValueType.UINT32)
    if names := [p.name for p in planned if p.has_two_planes]:
        values[PLANES_KEY] = GGUFValue(names, GGUFValueType.ARRAY, GGUFValueType.STRING)
    values["lutra.convert.version"] = GGUFValue(__version__, GGUFValueType.STRING)
    values[OPTIONS_KEY] = GGUFValue(record, GGUFValueType.STRING)
    return values


def require_writable(output: Path, source: str) -> Path:
    """The file that ``output`` leads to. Raises LutraError, before any work, when it cannot become one."""
    if output.exists() and Path(source).exists() and output.samefile(source):
        raise LutraError(f"{output}: would overwrite the source; choose another output with -o")
    return require_replaceable(output)


def require_space(output: Path, nbytes: int) -> None:
    """Raise LutraError when the disk of ``output`` cannot hold ``nbytes``."""
    directory = output.absolute().parent
    if not directory.is_dir():
        raise LutraError(f"{directory}: no such directory; create it or choose another place with -o")
    free = shutil.disk_usage(directory).free
    if free < nbytes:
        raise LutraError(
            f"{output}: needs {mib(nbytes)}, {directory} has {mib(free)} free; make room, or choose another "
            "place with -o"
        )


@contextlib.contextmanager
def temporary(output: Path, role: str) -> Iterator[Path]:
    """A name beside ``output`` for a file that is gone afterwards, whatever happens."""
    path = output.with_name(f".{output.name}.{role}.gguf")
    with crash.removing(path):
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)
