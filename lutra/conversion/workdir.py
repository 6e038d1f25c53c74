# SPDX-License-Identifier: MIT
"""Finished tensors of a conversion on disk, so that the same command goes on after a crash or a stop."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import platform
import shlex
import shutil
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO
from urllib.parse import quote

import numpy as np
from threadpoolctl import threadpool_info

import gguf_tools
import lutra
import pyquant
from gguf_tools.errors import LutraError
from gguf_tools.interrupts import shielded
from lutra.console import warn
from lutra.runtime import crash
from lutra.runtime.cgroups import read
from lutra.runtime.darwin import sysctl
from lutra.runtime.paths import lib_dir

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gguf_tools.sources.open import Source

SIGNATURE = "fingerprint.json"
TOKENS = "tokens"
LOSS_BYTES = 8  # behind the bytes of a tensor


@contextlib.contextmanager
def _whole(path: Path) -> Iterator[BinaryIO]:
    """A file to write; it is there under its name once all of it is on the disk. Raises LutraError."""
    partial = path.with_suffix(".partial")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise LutraError(
            f"{path}: cannot be written: {error.strerror}; make room, or choose another place with -o"
        ) from None


class WorkDirectory:
    """``.OUT.lutra-work`` beside the output; a context manager.

    ``fingerprint`` is all that the finished tensors depend on; work with another fingerprint is thrown
    away. Leaving without an exception removes the directory; otherwise it stays if it holds a tensor or
    what was measured, unless it is not ``lasting``, and an error or a line on stderr says so. So it is, too,
    where native code ends the process. Raises LutraError while another conversion uses it.
    """

    def __init__(self, output: Path, fingerprint: Mapping[str, Any], *, lasting: bool = True) -> None:
        self.path = output.with_name(f".{output.name}.lutra-work")
        self._lasting = lasting
        self._fingerprint = json.loads(json.dumps(fingerprint))
        self._lock: int | None = None
        self._empty = contextlib.ExitStack()  # what a crash removes while no tensor is finished,
        self._temporary = contextlib.ExitStack()  # and what it always removes

    def __enter__(self) -> WorkDirectory:
        try:
            self._open()
            return self
        except BaseException as error:  # a signal at the end of _open is raised here, too
            self._close(error)
            raise

    @shielded
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close(error)

    @shielded
    def _open(self) -> None:
        """Make and lock the directory, and decide what of its content counts."""
        while self._lock is None:
            try:
                self.path.mkdir(exist_ok=True)
                lock = os.open(self.path, os.O_RDONLY)
            except OSError as error:
                if isinstance(error, FileNotFoundError) and self.path.parent.is_dir():
                    continue  # another conversion, which ended, has just removed it
                raise LutraError(
                    f"{self.path}: cannot be made: {error.strerror}; choose another place with -o"
                ) from None
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                os.close(lock)
                raise LutraError(
                    f"{self.path}: another conversion to this output is running; wait for it, "
                    "or choose another output with -o"
                ) from None
            if self._is_there(lock):
                self._lock = lock
            else:
                os.close(lock)
        self._begin()
        if self.done() or self._measured():
            self._keep()
        else:
            for path in (self.path, self.path / SIGNATURE, self.path / TOKENS):
                self._empty.enter_context(crash.removing(path))

    def _is_there(self, lock: int) -> bool:
        """Whether the directory is still the one that was locked."""
        with contextlib.suppress(FileNotFoundError):
            return os.path.samestat(os.fstat(lock), self.path.stat())
        return False

    @shielded
    def _close(self, error: BaseException | None) -> None:
        """Remove the directory or, if an error leaves tensors in it, say so; give the lock back."""
        if self._lock is None:  # not ours
            return
        self._temporary.close()
        self._empty.close()
        crash.kept("")
        done = len(self.done()) if error else 0
        keeps = self._lasting and bool(done or (error and self._measured()))
        if not keeps:
            shutil.rmtree(self.path, ignore_errors=True)
            if self.path.exists():
                warn(f"{self.path}: cannot be removed; nothing in it is needed")
        os.close(self._lock)
        self._lock = None
        if keeps:
            kept = self._kept(f"{done} finished tensors are" if done else "what was measured is")
            if isinstance(error, LutraError):
                raise LutraError(f"{error} ({kept})") from None
            print(f"lutra: {kept}", file=sys.stderr)

    def _kept(self, what: str = "finished tensors are") -> str:
        return (
            f"{what} kept in {self.path}; the same command goes on from there, "
            f"rm -r {shlex.quote(str(self.path))} drops them"
        )

    def _keep(self) -> None:
        """From now on a crash leaves the finished tensors, and says so."""
        self._empty.close()
        crash.kept(self._kept())

    def temporary(self, name: str) -> Path:
        """A name in the directory for a file that can be made again: a crash removes it."""
        path = self.path / name
        self._temporary.enter_context(crash.removing(path))
        return path

    def beside_tensors(self, name: str) -> Path:
        """A name in the directory for a file that finished tensors need: a crash without any removes it."""
        path = self.path / name
        if not self.done():
            self._empty.enter_context(crash.removing(path))
        return path

    def done(self) -> list[Path]:
        """The files of finished tensors."""
        return list(self.path.glob("*.tensor"))

    def _measured(self) -> list[Path]:
        """The files of what is ``cached``, and of arrays."""
        files = (*self.path.glob("*.json"), *self.path.glob("*.npz"))
        return [path for path in files if path.name != SIGNATURE]

    def __contains__(self, name: str) -> bool:
        return self._file(name).exists()

    def save(self, name: str, parts: Sequence[NDArray[Any]], loss: float) -> None:
        """Keep a tensor: its bytes, in parts, and the loss of its calibration (NaN without)."""
        with _whole(self._file(name)) as file:
            for part in (*parts, np.array([loss], "<f8")):
                file.write(np.ascontiguousarray(part).reshape(-1).view(np.uint8).data)
        self._keep()

    def tokens_of(self, name: str, write: Callable[[], Sequence[Sequence[int]]]) -> list[list[int]]:
        """Sequences of one length that are kept under ``name``, or else what ``write`` gives.

        Raises LutraError when they cannot be kept.
        """
        tokens = self.arrays_of(name, lambda: {"tokens": np.array(write(), np.int32)})["tokens"]
        return [list(map(int, sequence)) for sequence in tokens]

    def arrays_of(self, name: str, make: Callable[[], Mapping[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
        """Arrays that are kept under ``name``, or else what ``make`` gives. Raises LutraError as above."""
        path = self.path / f"{name}.npz"
        with contextlib.suppress(OSError, ValueError, EOFError, zipfile.BadZipFile), np.load(path) as kept:
            return dict(kept)
        arrays: dict[str, Any] = dict(make())
        with _whole(path) as file:
            np.savez(file, **arrays)
        self._keep()
        return arrays

    def number(self, name: str, compute: Callable[[], float]) -> float:
        """A number that is kept under ``name``, or else what ``compute`` gives: it may depend on the day."""
        path = self.path / f"{name}.number"
        with contextlib.suppress(OSError, ValueError):
            return float(path.read_text())
        if not (self.done() or self._measured()):
            self._empty.enter_context(crash.removing(path))
        number = compute()
        with _whole(path) as file:
            file.write(repr(number).encode())
        return number

    def cached(self, name: str, compute: Callable[[], Any]) -> Any:
        """What is kept as JSON under ``name``, or else what ``compute`` gives, which is kept from now on."""
        path = self.path / f"{name}.json"
        if not path.exists():
            self.keep(name, compute())
        return json.loads(path.read_text())

    def known(self, name: str, default: Any) -> Any:
        """What is kept as JSON under ``name``, or else ``default``, which is not kept."""
        path = self.path / f"{name}.json"
        return json.loads(path.read_text()) if path.exists() else default

    def keep(self, name: str, value: Any) -> None:
        """Keep a value as JSON under ``name``, in the place of what was there."""
        with _whole(self.path / f"{name}.json") as file:
            file.write(json.dumps(value).encode())
        self._keep()

    def nbytes(self) -> int:
        """What is in the directory, in bytes."""
        return sum(path.stat().st_size for path in self.path.iterdir())

    def drop_other_types(self, nbytes: Mapping[str, int]) -> None:
        """Remove all finished tensors if one has not so many bytes: it gets another type now, and what comes
        behind it was fitted to its errors.
        """
        sizes = {name: self._file(name).stat().st_size - LOSS_BYTES for name in nbytes if name in self}
        if any(size != nbytes[name] for name, size in sizes.items()):
            self.drop()

    def drop(self) -> None:
        """Remove all finished tensors."""
        for path in self.done():
            path.unlink()

    def load(self, name: str) -> tuple[NDArray[np.uint8], float]:
        """The bytes of a finished tensor (mapped from the file) and its loss."""
        data = np.memmap(self._file(name), np.uint8, "r")
        return data[:-LOSS_BYTES], float(data[-LOSS_BYTES:].view("<f8")[0])

    @property
    def tokens(self) -> int | None:
        """With how many tokens the tensors are calibrated, if they are."""
        path = self.path / TOKENS
        return int(path.read_text()) if path.exists() else None

    @tokens.setter
    def tokens(self, number: int) -> None:
        (self.path / TOKENS).write_text(str(number))

    def _file(self, name: str) -> Path:
        return self.path / f"{quote(name, safe='')}.tensor"

    def _begin(self) -> None:
        """Go on with what is there, or empty the directory and sign it."""
        signature = self.path / SIGNATURE
        try:
            before = json.loads(signature.read_text())
        except (OSError, ValueError):
            before = {}
        if before == self._fingerprint:
            if done := len(self.done()):
                print(f"lutra: going on: {done} tensors were finished before", file=sys.stderr)
            return
        if before and (self.done() or self._measured()):
            changed = [key for key, value in self._fingerprint.items() if before.get(key) != value]
            warn(f"starting anew, another conversion's work is in {self.path}: not the same {changed[0]}")
        for path in self.path.iterdir():
            path.unlink()
        partial = signature.with_suffix(".partial")
        partial.write_text(json.dumps(self._fingerprint))
        partial.replace(signature)


# ---- fingerprints --------------------------------------------------------------------------


def source_files(source: Source) -> list[tuple[str, int, int]]:
    """Name, size and time of change (ns) of every file that a model comes from."""
    weights = {tensor.path for tensor in source.tensors}
    if source.path.is_dir():  # the weights of a temporary file have no other source than the directory
        weights = {path for path in weights if path.parent == source.path}
    stats = [(path.name, path.stat()) for path in sorted({*source.files, *weights}) if path.is_file()]
    return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]


def file_digest(path: Path | None) -> str | None:
    """SHA-256 of a file's content."""
    if path is None:
        return None
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise LutraError(f"{path}: cannot be read: {error.strerror}") from None


def software() -> list[Any]:
    """What computes: our own Python and libraries by content, numpy and its BLAS by version."""
    digest = hashlib.sha256()
    # Where they are installed, one of them holds the others.
    packages = (Path(module.__path__[0]) for module in (gguf_tools, lutra, pyquant))
    for path in sorted({*lib_dir().glob("*.so"), *(file for p in packages for file in p.rglob("*.py"))}):
        digest.update(path.read_bytes())
    loaded = [info for info in threadpool_info() if info["user_api"] == "blas"]
    # numpy's own lies in numpy.libs; other packages of this process may have brought theirs.
    own = [info for info in loaded if info["filepath"].startswith(str(Path(np.__file__).parent))]
    blas = sorted((info["internal_api"], info["version"], info.get("architecture")) for info in own or loaded)
    return [digest.hexdigest(), np.__version__, blas]


def cpu() -> list[str]:
    """The kind of CPU, which decides in what order sums are taken."""
    lines = read(Path("/proc/cpuinfo")).partition("\n\n")[0].splitlines()
    if brand := sysctl("machdep.cpu.brand_string"):
        lines = [f"model name: {brand}"]
    kinds = ("model name", "flags", "Features", "CPU implementer", "CPU part")
    return [platform.machine(), *(line for line in lines if line.startswith(kinds))]
