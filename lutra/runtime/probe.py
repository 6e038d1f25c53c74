"""Try a model in a child process first: some damaged files end the process that loads them."""

from __future__ import annotations

import os
from pathlib import Path

from gguf_tools.errors import LutraError

# Text with every byte that UTF-8 has, so that a vocabulary without some of them shows.
_BYTES = "".join(map(chr, (*range(1, 0x800), *range(0x800, 0xD800, 0x80), *range(0x10000, 0x110000, 0x1000))))


def require_loadable(path: str | Path) -> Path:
    """``path``, when llama.cpp can load it; raises LutraError with its reason otherwise.

    llama.cpp checks most of a file and says what is wrong, but some damage (a vocabulary without a byte,
    impossible numbers of heads) makes it abort. That must not be the end of ``lutra``. The child reads the
    header only, not the weights.
    """
    path = Path(path)
    if not path.is_file():
        raise LutraError(f"{path}: no such file")
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        _load(path, writing)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        message = pipe.read().decode()
    _, status = os.waitpid(child, 0)
    if message:
        raise LutraError(message)
    if status:
        raise LutraError(f"{path}: llama.cpp crashes on this file; 'lutra verify {path}' checks it")
    return path


def _load(path: Path, writing: int) -> None:
    """The child: silent, says on the pipe what is wrong, and ends."""
    code = 1
    try:
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        os.dup2(silence, 2)
        os.environ["GGML_NO_BACKTRACE"] = "1"
        from lutra.runtime.model import Model

        Model(path, threads=1, n_ctx=32, weights=False).tokenize(_BYTES)
        code = 0
    except LutraError as error:
        os.write(writing, str(error).encode())
    finally:
        os._exit(code)
