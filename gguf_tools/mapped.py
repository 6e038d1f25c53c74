# SPDX-License-Identifier: MIT
"""Files mapped for reading, which are closed when their reader says so and not when memory is collected."""

from __future__ import annotations

import contextlib
import mmap
import os
import stat
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from gguf_tools.errors import LutraError


def _open_at_once(path: str, flags: int) -> int:
    """Open a file; a pipe as well, without waiting for its writer."""
    return os.open(path, flags | os.O_NONBLOCK)


class MappedFile:
    """A file, mapped read-only; a context manager. Raises ``LutraError`` when it cannot be read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with open(path, "rb", opener=_open_at_once) as file:
                if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                    raise LutraError(f"{path}: is no file but a device or a pipe; write a file first")
                self._map: mmap.mmap | None = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise LutraError(f"{path}: cannot be read: {error.strerror}") from None
        except ValueError:  # nothing to map
            raise LutraError(f"{path}: the file is empty; download it again") from None
        self.size = len(self._map)

    def __enter__(self) -> MappedFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def bytes(self) -> mmap.mmap:
        """All of the file. ``ValueError`` when it is closed."""
        if self._map is None:
            raise ValueError(f"{self.path} is closed")
        return self._map

    def array(self, dtype: DTypeLike, shape: tuple[int, ...], offset: int) -> NDArray[Any]:
        """``shape`` numbers from byte ``offset`` on, as they lie in the file: a view of the mapping."""
        return np.frombuffer(self.bytes, dtype, prod(shape), offset).reshape(shape)

    def close(self) -> None:
        """Give the mapping up; with arrays of it in use it goes when the last of them does."""
        if self._map is not None:
            with contextlib.suppress(BufferError):  # arrays in use
                self._map.close()
            self._map = None
