# SPDX-License-Identifier: MIT
"""The page to chat in: one file, made of the parts in ``lutra/page``.

One file, because llama-server gives a browser without the key nothing but "/". Its policy names the hashes
of its own script and style, so that a browser runs and loads nothing else.
"""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path

_PARTS = Path(__file__).parents[1] / "page"
_LINK = re.compile(r'<link rel="stylesheet" href="([\w.]+)">|<script src="([\w.]+)"></script>')


def write_page(directory: Path) -> None:
    """Write ``index.html`` into ``directory``."""
    hashes: dict[str, list[str]] = {"style": [], "script": []}

    def put_in(link: re.Match[str]) -> str:
        tag = "style" if link[1] else "script"
        text = (_PARTS / (link[1] or link[2])).read_text("utf-8")
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        hashes[tag].append(f"'sha256-{digest}'")
        return f"<{tag}>{text}</{tag}>"

    page = _LINK.sub(put_in, (_PARTS / "page.html").read_text("utf-8"))
    sources = "; ".join(f"{tag}-src {' '.join(own)}" for tag, own in hashes.items())
    (directory / "index.html").write_text(page.replace("OWN_SOURCES", sources), "utf-8")
