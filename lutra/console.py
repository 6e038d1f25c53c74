# SPDX-License-Identifier: MIT
"""Numbers, lines and bars as people read them."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from tqdm import tqdm


def say(message: str) -> None:
    """One line of progress on standard error."""
    print(f"lutra: {message}", file=sys.stderr)


def warn(message: str) -> None:
    """One line on standard error."""
    print(f"lutra: warning: {message}", file=sys.stderr)


class _Handler(logging.Handler):
    """Shows what the packages below say and warn of."""

    def emit(self, record: logging.LogRecord) -> None:
        (warn if record.levelno >= logging.WARNING else say)(record.getMessage())


logging.getLogger("gguf_tools").addHandler(_Handler())
logging.getLogger("gguf_tools").setLevel(logging.INFO)


def progress(total: int, unit: str, title: str = "") -> tqdm[NoReturn]:
    """A bar with the time left, on standard error; it goes away when done."""
    from tqdm import tqdm

    return tqdm(
        desc=title,
        total=total,
        unit=unit,
        unit_scale=True,
        dynamic_ncols=True,
        leave=False,
        disable=None,
        file=sys.stderr,
    )


def mib(nbytes: float) -> str:
    """Bytes as "12.3 MiB"."""
    return f"{nbytes / 2**20:.1f} MiB"


def figure(value: float, decimals: int) -> str:
    """A number of so many decimals; a huge one in powers of ten."""
    return f"{value:.{decimals}f}" if abs(value) < 1e9 else f"{value:.3e}"


def decimal_size(nbytes: float | None) -> str:
    """Bytes as "1.2 GB" or "3 MB"; "unknown" for None."""
    if nbytes is None:
        return "unknown"
    return f"{nbytes / 1e9:.1f} GB" if nbytes >= 1e9 else f"{nbytes / 1e6:.0f} MB"


def table(rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    """Rows of cells as aligned columns; the columns in ``right`` are flush right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = (
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
