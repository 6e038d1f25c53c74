# SPDX-License-Identifier: MIT
"""Try a model in a child process first: some damaged files end the process that loads them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gguf_tools.errors import LutraError


@contextmanager
def trying(path: Path) -> Iterator[None]:
    """At its end, raise LutraError with llama.cpp's reason where it cannot load ``path``.

    llama.cpp checks most of a file and says what is wrong, but some damage (a vocabulary without a byte,
    impossible numbers of heads) makes it abort. That must not be the end of this process. The child reads
    the header only, not the weights; this process may do something else meanwhile.
    """
    if not path.is_file():
        raise LutraError(f"{path}: no such file")
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path)),  # this process's modules
        "PYTHONSAFEPATH": "1",  # and not those in the current directory
        "GGML_NO_BACKTRACE": "1",
    }
    with subprocess.Popen(
        [sys.executable, "-m", f"{__package__}.probe_child", os.fspath(path)],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as child:
        try:
            yield
            reason, said = child.communicate()
        except BaseException:
            child.kill()
            raise
    if reason:
        raise LutraError(os.fsdecode(reason))
    if child.returncode < 0:
        raise LutraError(f"{path}: llama.cpp crashes on this file; 'lutra verify {path}' checks it")
    if child.returncode:
        raise LutraError(f"{path}: cannot be tried in a child process: {said.decode(errors='replace')}")


def require_loadable(path: str | Path) -> Path:
    """``path``, when llama.cpp can load it; raises LutraError with its reason otherwise: see ``trying``."""
    with trying(Path(path)):
        return Path(path)
