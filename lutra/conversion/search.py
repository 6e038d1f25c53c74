# SPDX-License-Identifier: MIT
"""Types for a target, one engine for ``--target-bpw``, ``--target-size``, ``--max-loss`` and ``--max-kld``.

1. A first file, really converted: for a size the best recipe that is no larger, for a bound the type whose
   noise should be about that.
2. ``sensitivity``: what the rounding of each matrix costs in that file, and the rounding of their inputs.
   Another type costs as much more or less as its signal to noise says (``costs``).
3. ``budget``: the types of least loss for a size, or of least size (or time, ``boards``) for a loss.
4. The conversion itself, and its loss on text that was kept aside from the calibration. A size gets the
   better one of both files. Where a bound is overshot, or far from reached, ``costs`` are corrected, and
   the conversion is done again, as in the precision search of arXiv 2411.15982.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import log
from pathlib import Path

from gguf_tools.errors import LutraError
from gguf_tools.formats.catalog import RECIPES, TYPES
from gguf_tools.sources.tensors import EMBEDDING, Source, SourceTensor
from gguf_tools.writer import file_bytes, padded
from lutra.console import mib, table
from lutra.conversion.boards import Board
from lutra.conversion.budget import Step, cheapest, within
from lutra.conversion.costs import Costs, noise
from lutra.conversion.divergence import Divergence
from lutra.conversion.options import ConversionOptions, Target
from lutra.conversion.output import metadata, tensor_specs
from lutra.conversion.plan import Planned, Rules, fixed_type, give_planes, is_tied, plan, plan_as

CANDIDATES = sorted((kind for kind in TYPES.values() if kind.snr), key=lambda kind: kind.snr or 0.0)
LADDER = sorted(  # better and better
    (recipe for recipe in RECIPES.values() if recipe.base.is_codebook),
    key=lambda recipe: (recipe.base.snr or 0.0, recipe.is_mix),
)
LOSS = 8.0  # nats per token that noise as large as the weights would cost, if small errors did in proportion
AIM = 0.92  # of the bound: what is planned for; less, by as much, behind every file that overshot it
ENOUGH = 0.75  # of the bound: what needs no further round
ROUNDS = 6  # of conversions, at most
KEPT = 0.01  # of the time to read it: what a byte costs that a token does not read
PLANES = 1.25  # what two planes of activations cost, relative to one


@dataclass
class Search:
    """What was measured of a model, and the plan that follows.

    ``model``: the source in F16; ``pieces``: sequences to calibrate with, ``aside``: others. ``rounds``: what
    the conversions so far have lost, the first file's first. ``best``: the plan of the best of them;
    ``is_met``: whether it is what was asked for.
    """

    source: Source
    options: ConversionOptions
    board: Board | None = None
    model: Path = Path()
    pieces: Sequence[Sequence[int]] = ()
    aside: Sequence[Sequence[int]] = ()
    costs: Costs = field(default_factory=Costs)
    how: str = ""
    rounds: list[Divergence | None] = field(default_factory=list)
    is_met: bool = False
    best: Sequence[Planned] = ()
    _least: float = math.inf

    @property
    def target(self) -> Target:
        """What is to be met."""
        assert self.options.target
        return self.options.target

    def planned(self) -> list[Planned]:
        """The type of every tensor in the next file. Raises LutraError when none meet the target."""
        return self._solved() if self.rounds else self._first()

    def refuse_what_cannot_be(self) -> None:
        """Raise LutraError when no file is as small as the target: nothing has to be measured to know."""
        if self.target.bound is None:
            self._solved()

    def _first(self) -> list[Planned]:
        """The best recipe of the size, or the type that should lose about the bound."""
        tensors, rules = self.source.tensors, self.options.rules
        if self.target.bound is not None:
            loss = self.target.bound / LOSS
            near = min(
                filter(lambda kind: kind.is_codebook, CANDIDATES), key=lambda k: abs(log(noise(k) / loss))
            )
            made = plan(tensors, replace(rules, recipe=RECIPES[near.name]))
            return [replace(p, has_two_planes=False) for p in made]
        recipes = (plan(tensors, replace(rules, recipe=recipe)) for recipe in LADDER)
        fitting = [r for r in recipes if sum(padded(p.nbytes) for p in r) <= self._capacity()]
        return fitting[-1] if fitting else self._solved()

    def _solved(self) -> list[Planned]:
        if (planned := self._possible()) is None:
            raise LutraError(self._impossible([self._steps(tensor) for tensor in self.source.tensors]))
        return planned

    def _possible(self) -> list[Planned] | None:
        """The best plan; None if nothing meets the target."""
        parts = [self._steps(tensor) for tensor in self.source.tensors]
        if self.target.bound is None:
            chosen = within(parts, self._capacity())
        else:
            overshot = [r for r in self.rounds[1:] if r and r.loss > self.target.bound]
            chosen = cheapest(parts, AIM ** (1 + len(overshot)) * self.target.bound)
        return [step.change for step in chosen] if chosen else None

    def judge(self, planned: Sequence[Planned], measured: Divergence | None) -> bool:
        """Whether the file of ``planned`` is the best so far. If that is not what was asked for, ``planned``
        gives another one now. Where nothing could be measured, the last file is the best.

        Raises LutraError when no plan came near the bound.
        """
        self.rounds.append(measured)
        if measured:
            self.costs.see(planned, measured.loss)
        bound = self.target.bound
        if bound is None:
            value = measured.loss if measured else -len(self.rounds)
            self.is_met = len(self.rounds) > 1
        else:
            assert measured
            value = sum(map(self._cost, planned)) if measured.loss <= bound else math.inf
        is_best = value < self._least
        if is_best:
            self._least, self.best = value, planned
        if bound is not None and measured and len(self.rounds) > 1:
            self.is_met = self._is_near(measured.loss, bound)
        if not self.is_met and len(self.rounds) > ROUNDS:  # more, if it was interrupted behind the last one
            if measured and not self.best:
                raise LutraError(
                    f"{self.target.option} {self.target.text}: not met in {ROUNDS} rounds, the last one lost "
                    f"{measured.loss:.5f} nats per token, not {bound:.5f}; allow more"
                )
            self.is_met = True
        return is_best

    def _is_near(self, loss: float, bound: float) -> bool:
        """Whether a file uses the bound up, or the best one will not become cheaper."""
        if ENOUGH * bound <= loss <= bound:
            return True
        other = self._possible() if self.best else []
        return other is None or (bool(other) and sum(map(self._cost, other)) >= self._least)

    def _steps(self, tensor: SourceTensor) -> list[Step]:
        return [Step(p, self._cost(p), self.costs.loss(p)) for p in possible(tensor, self)]

    def _cost(self, p: Planned) -> float:
        """Bytes, or seconds per token on the board; with a bound two planes count as more."""
        planes = PLANES if p.has_two_planes and self.target.bound is not None else 1.0
        if not self.board:
            return planes * padded(p.nbytes)
        multiplied = self._multiplied(p)
        computing = multiplied * self.board.per_weight[p.type.name] if multiplied else 0.0
        return planes * computing + KEPT * p.nbytes * self.board.per_byte

    def _multiplied(self, p: Planned) -> float:
        """Weights that a token is multiplied by: none of what is looked up, a part of stacked experts."""
        if p.source.keeps_f32 or (p.name == EMBEDDING and not is_tied(self.source.tensors)):
            return 0.0
        if len(p.source.shape) == 3 and "_exps" in p.name:
            used = self.source.metadata.get(f"{self.source.architecture}.expert_used_count")
            return p.weights * (int(used.value) / p.source.shape[0] if used else 1.0)
        return p.weights

    def _capacity(self) -> int:
        weights = sum(t.rows * t.k for t in self.source.tensors)
        if self.target.nbytes is None:
            return int((self.target.bpw or 0.0) * weights / 8)
        return self.target.nbytes - self._header()

    def _header(self) -> int:
        """Bytes of the file before its data."""
        planned = give_planes(plan(self.source.tensors, Rules(RECIPES["cb4"])), self.options.rules)
        values = metadata(self.source, planned, self.options.record())
        return file_bytes(values, tensor_specs(planned)) - sum(padded(p.nbytes) for p in planned)

    def _impossible(self, parts: Sequence[Sequence[Step]]) -> str:
        option = f"{self.target.option} {self.target.text}"
        if self.target.bound is not None:
            least = sum(min(step.loss for step in steps) for steps in parts)
            return f"{option}: the types that are asked for lose {least:.5f} nats per token at least"
        least, most = (sum(limit(step.cost for step in steps) for steps in parts) for limit in (min, max))
        if self.target.nbytes:
            header = self._header()
            possible_ = f"{math.ceil((least + header) / 1e5) / 10}M to {(most + header) / 1e6:.1f}M"
        else:
            weights = sum(t.rows * t.k for t in self.source.tensors)
            possible_ = f"{math.ceil(800 * least / weights) / 100} to {8 * most / weights:.2f}"
        return f"{option}: too small for this model, possible are {possible_}"

    # ---- for people --------------------------------------------------------------------------

    def describe(self, planned: Sequence[Planned]) -> str:
        """The plan by kind of matrix: which layers have which type, with the loss predicted.

        Sensitivity is what the same relative error would cost per weight, relative to the mean.
        """
        layers: dict[tuple[str, str], list[int]] = {}
        nbytes: Counter[tuple[str, str]] = Counter()
        weights: Counter[tuple[str, str]] = Counter()
        units: dict[tuple[str, str], float] = defaultdict(float)
        lost: dict[tuple[str, str], float] = defaultdict(float)
        for p in planned:
            if p.source.keeps_f32:
                continue
            place = re.fullmatch(r"blk\.(\d+)\.(.+)", p.name)
            key = place[2] if place else p.name, p.type_name + (" x 2" if p.has_two_planes else "")
            layers.setdefault(key, []).extend([int(place[1])] if place else [])
            nbytes[key] += p.nbytes
            weights[key] += p.weights
            units[key] += self.costs.weights.get(p.name, 0.0)
            lost[key] += self.costs.loss(p)
        roles = list(dict.fromkeys(role for role, _ in layers))
        mean = sum(units.values()) / weights.total() or 1.0
        rows = [("matrix", "type", "layers", "MiB", "sensitivity", "loss")]
        for key in sorted(layers, key=lambda key: (roles.index(key[0]), min(layers[key], default=0))):
            row = (*key, ranges(sorted(layers[key])), f"{nbytes[key] / 2**20:.1f}")
            known = (f"{units[key] / weights[key] / mean:.2f}", f"{lost[key]:.5f}")
            rows.append((*row, *(known if self.costs.weights else ("", ""))))
        total = sum(p.nbytes for p in planned)
        bpw = 8 * total / sum(p.weights for p in planned)
        facts = [f"{mib(total)}, {bpw:.3f} bits per weight"]
        facts += [f"predicted KL divergence {self.costs.total(planned):.5f}"] if self.costs.weights else []
        if self.board:
            seconds = sum(self._cost(p) for p in planned)
            facts.append(f"{1e3 * seconds:.3g} ms per token in matrices on {self.board.name}")
        return "\n".join([f"{self.how}", "", table(rows, right=(3, 4, 5)), "", "; ".join(facts)])


def possible(tensor: SourceTensor, search: Search) -> list[Planned]:
    """What a tensor can be under the rules of a search."""
    fixed = fixed_type(tensor, search.options.rules, is_tied(search.source.tensors))
    if fixed:
        return [plan_as(tensor, fixed)]
    found = [p for p in (plan_as(tensor, kind) for kind in CANDIDATES) if not p.instead_of]
    if search.target.bound is None:  # more planes are no more bytes: types have theirs
        return found
    return [replace(p, has_two_planes=two) for p in found for two in ((False, True) if p.fmt else (False,))]


def ranges(numbers: Sequence[int]) -> str:
    """Sorted numbers as text: "0-3, 7"."""
    parts: list[list[int]] = []
    for n in numbers:
        if parts and n == parts[-1][-1] + 1:
            parts[-1][1:] = [n]
        else:
            parts.append([n])
    return ", ".join("-".join(map(str, part)) for part in parts)
