# SPDX-License-Identifier: MIT
"""Files mapped for reading, which are closed when their reader says so and not when memory is collected."""

from __future__ import annotations

import contextlib
import mmap
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from gguf_tools.errors import LutraError


class MappedFile:
    """A file, mapped read-only; a context manager. Raises ``LutraError`` when it cannot be read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
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
