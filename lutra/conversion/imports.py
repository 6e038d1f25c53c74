# SPDX-License-Identifier: MIT
"""Weights that lie on a grid are taken over as they are: models that were trained in few bits lose nothing.

Ternary models, MXFP4, and integers of 2 to 4 bits with a scale for a row or a matrix fit codebooks whose
tables are not learned. What fits none stays in the type of llama.cpp that it was published in.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

from gguf_tools.formats.catalog import PUBLISHED, TYPES, Type
from gguf_tools.formats.family import CB_FORMATS, CBFormat
from lutra.conversion.encode import Matrix, is_exact
from lutra.conversion.plan import Planned, Rules, fixed_type, is_tied
from pyquant.exact import has_grids

MARGIN = 0.25  # bits per weight that a type may have more than asked for, where it loses nothing


def take_over(
    planned: Sequence[Planned], rules: Rules, threads: int, *, may_grow: bool = True
) -> list[Planned]:
    """``planned`` with what can be taken over in at most the bits that it would get otherwise.

    Reads the first rows of each matrix, and all of one that looks as if it could be. Types that the user has
    named for a tensor stay. Not ``may_grow``: no tensor takes more bytes than planned, where a size is met.
    """
    tied = is_tied([p.source for p in planned])
    return [
        _as_published(p, fixed_type(p.source, rules, tied) is not None, threads, may_grow)
        if p.is_quantized
        else p
        for p in planned
    ]


def taken_over(planned: Sequence[Planned]) -> str:
    """A line about what was taken over; empty when nothing was."""
    exact = Counter(f"exactly, as {p.type_name}" for p in planned if p.exact)
    kept = Counter(f"as they are, in {p.type_name}" for p in planned if p.is_kept)
    parts = [f"{count} {how}" for how, count in (exact + kept).items()]
    return f"tensors taken over: {', '.join(parts)}" if parts else ""


def _as_published(p: Planned, is_fixed: bool, threads: int, may_grow: bool) -> Planned:
    for kind, fmt in _candidates(p, is_fixed):
        exact = Planned(p.source, kind, fmt.type, exact=True)
        if (may_grow or exact.nbytes <= p.nbytes) and is_exact(Matrix.of(p), fmt, threads):
            return exact
    published = PUBLISHED.get(p.source.dtype)
    if published and p.source.stored and not is_fixed and published.bpw <= p.type.bpw + MARGIN:
        number = published.id_for(p.source.shape)
        kept = p if number is None else Planned(p.source, published, number)
        return kept if may_grow or kept.nbytes <= p.nbytes else p
    return p


def _candidates(p: Planned, is_fixed: bool) -> Iterator[tuple[Type, CBFormat]]:
    """Types and members of the family that ``p`` may become, the smallest first."""
    kinds = [p.type] if is_fixed else [kind for kind in TYPES.values() if kind.bpw <= p.type.bpw]
    found = [
        (kind, CB_FORMATS[number])
        for kind in kinds
        if kind.is_codebook
        for block, number in kind.ids.items()
        if has_grids(CB_FORMATS[number]) and replace(kind, ids={block: number}).id_for(p.source.shape)
    ]
    yield from sorted(found, key=lambda pair: pair[1].tensor_bytes(p.source.rows, p.source.k))
