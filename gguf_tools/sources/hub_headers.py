# SPDX-License-Identifier: MIT
"""Weights on the hub without their numbers: files whose header alone is fetched, enough to plan with."""

from __future__ import annotations

from pathlib import Path

from gguf_tools.errors import LutraError
from gguf_tools.reader import GGUFFile

FIRST = 1 << 20  # bytes that are asked for first; most headers are shorter


def fetch_header(name: str, file: str, nbytes: int, path: Path) -> None:
    """Make ``path`` a file of ``nbytes``, as ``file`` of the model ``name`` is: its header, then a hole.

    Raises what huggingface_hub raises, and ``LutraError`` for a file that has no sound header.
    """
    wanted, have = min(FIRST, nbytes), 0
    with path.open("wb") as out:
        out.truncate(nbytes)
        while have < wanted:
            out.write(_bytes(name, file, have, wanted))
            out.flush()
            have, wanted = wanted, min(_header_bytes(path, wanted), nbytes)


def _header_bytes(path: Path, have: int) -> int:
    """How many bytes of a file are its header, of which ``have`` are there; a guess of a GGUF file's."""
    if path.suffix == ".safetensors":
        with path.open("rb") as file:
            return 8 + int.from_bytes(file.read(8), "little")
    try:
        GGUFFile(path).close()
        return have
    except LutraError:  # what is missing is zeros, which are no names of tensors
        return 2 * have


def _bytes(name: str, file: str, start: int, stop: int) -> bytes:
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    headers = build_hf_headers() | {"Range": f"bytes={start}-{stop - 1}"}
    response = get_session().get(hf_hub_url(name, file), headers=headers)
    hf_raise_for_status(response)
    return bytes(response.content[: stop - start])
