# SPDX-License-Identifier: MIT
"""Try a model in a child process first: some damaged files end the process that loads them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from gguf_tools.errors import LutraError


def require_loadable(path: str | Path) -> Path:
    """``path``, when llama.cpp can load it; raises LutraError with its reason otherwise.

    llama.cpp checks most of a file and says what is wrong, but some damage (a vocabulary without a byte,
    impossible numbers of heads) makes it abort. That must not be the end of this process. The child reads
    the header only, not the weights.
    """
    path = Path(path)
    if not path.is_file():
        raise LutraError(f"{path}: no such file")
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path)),  # this process's modules
        "PYTHONSAFEPATH": "1",  # and not those in the current directory
        "GGML_NO_BACKTRACE": "1",
    }
    child = subprocess.run(
        [sys.executable, "-m", f"{__package__}.probe_child", os.fspath(path)],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    if child.stdout:
        raise LutraError(os.fsdecode(child.stdout))
    if child.returncode < 0:
        raise LutraError(f"{path}: llama.cpp crashes on this file; 'lutra verify {path}' checks it")
    if child.returncode:
        raise LutraError(
            f"{path}: cannot be tried in a child process: {child.stderr.decode(errors='replace')}"
        )
    return path
