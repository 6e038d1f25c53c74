# SPDX-License-Identifier: MIT
"""Importance matrices as llama-imatrix writes them: how strongly each input column of a matrix is used.

Both formats hold, per matrix, the sum over tokens of the squared input activations: GGUF (tensors
``NAME.in_sum2`` and ``NAME.counts``, the format of today) and the older binary ``.dat``.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gguf_tools.errors import LutraError
from gguf_tools.reader import GGUFFile

SUMS, COUNTS = ".in_sum2", ".counts"
F32 = 0  # ggml type id


def read_imatrix(path: str | Path) -> dict[str, NDArray[np.float32]]:
    """Mean squared activation per tensor name: float32 (k,), or (n_expert, k) for experts.

    An expert that no token reached has ones. Raises LutraError for a file that is truncated or no
    imatrix, and for sums that are NaN, infinite or negative.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise LutraError(f"{path}: cannot be read: {error.strerror}") from None
    if magic != b"GGUF":
        return _read_legacy(path)
    with GGUFFile(path) as file:
        return _read_gguf(path, file)


def _read_gguf(path: Path, file: GGUFFile) -> dict[str, NDArray[np.float32]]:
    names = [name.removesuffix(SUMS) for name in file.tensors if name.endswith(SUMS)]
    if not names:
        raise LutraError(f"{path}: holds no importance matrix; make one with llama-imatrix")
    result = {}
    for name in names:
        sums = _read_tensor(path, file, name + SUMS)
        counts = _read_tensor(path, file, name + COUNTS).reshape(-1)
        k = sums.shape[-1]
        if sums.size != counts.size * k:
            raise LutraError(f"{path}: {name} has {counts.size} counts for sums of shape {sums.shape}")
        _check(path, name, sums)
        _check(path, name, counts)
        sums = sums.reshape(counts.size, k)
        used = counts > 0
        mean = np.ones_like(sums)
        mean[used] = sums[used] / counts[used, None]
        result[name] = mean[0] if counts.size == 1 else mean
    return result


def _read_tensor(path: Path, file: GGUFFile, name: str) -> NDArray[np.float32]:
    info = file.tensors.get(name)
    if info is None or info.type != F32 or info.weights == 0:
        raise LutraError(
            f"{path}: {name} is missing, empty or not F32; make the file again with llama-imatrix"
        )
    return file.data(info).view("<f4").astype(np.float32).reshape(info.shape)


def _read_legacy(path: Path) -> dict[str, NDArray[np.float32]]:
    """int32 entries; per entry int32 length, name, int32 calls, int32 values, values (sum / tokens * calls).

    What may follow (number of chunks, name of the text) is not needed. Experts lie one after the
    other in one entry and look like a longer row here; the converter knows the number of columns.
    """
    data = path.read_bytes()
    at = 0

    def take(size: int, what: str) -> bytes:
        nonlocal at
        if size < 0 or at + size > len(data):
            raise LutraError(f"{path}: not an imatrix, or truncated: {what} is missing")
        at += size
        return data[at - size : at]

    def integer(what: str) -> int:
        return int.from_bytes(take(4, what), "little", signed=True)

    result = {}
    entries = integer("the number of entries")
    if entries < 1:
        raise LutraError(f"{path}: not an imatrix: {entries} entries")
    for i in range(entries):
        try:
            name = take(integer(f"entry {i}"), f"the name of entry {i}").decode()
        except UnicodeDecodeError:
            raise LutraError(f"{path}: not an imatrix: entry {i} has no readable name") from None
        calls, values = integer(f"the calls of {name!r}"), integer(f"the size of {name!r}")
        if values < 1:
            raise LutraError(f"{path}: {name!r} has {values} values")
        sums = np.frombuffer(take(4 * values, f"a value of {name!r}"), "<f4").astype(np.float32)
        _check(path, name, sums)
        result[name] = sums / np.float32(max(calls, 1))
    return result


def _check(path: Path, name: str, values: NDArray[np.float32]) -> None:
    if not np.isfinite(values).all() or (values < 0).any():
        raise LutraError(
            f"{path}: {name} holds NaN, infinite or negative values; make it again with llama-imatrix"
        )
