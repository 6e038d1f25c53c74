# SPDX-License-Identifier: MIT
"""``python -m lutra.runtime.probe_child FILE``: load the header of a model and use its vocabulary.

The reason why that cannot be done goes to standard output, nothing else.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from gguf_tools.errors import LutraError
from lutra.runtime.model import Model

# Text with every byte that UTF-8 has, so that a vocabulary without some of them shows.
_BYTES = "".join(map(chr, (*range(1, 0x800), *range(0x800, 0xD800, 0x80), *range(0x10000, 0x110000, 0x1000))))


def main() -> int:
    """The exit code: 0 when the model can be loaded."""
    answer = os.dup(1)
    os.dup2(2, 1)  # llama.cpp may print, too
    try:
        with Model(Path(sys.argv[1]), threads=1, n_ctx=32, weights=False, probe=False) as model:
            model.tokenize(_BYTES)
    except LutraError as error:
        os.write(answer, os.fsencode(str(error)))
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
