# SPDX-License-Identifier: MIT
"""Types for a target, one engine for ``--target-bpw``, ``--target-size``, ``--max-loss`` and ``--max-kld``.

1. ``losses``: what each type loses of each matrix, and ``sensitivity``: what that costs the predictions.
2. ``budget``: the types of least loss for a size, or of least size (or time, ``boards``) for a loss.
3. A rehearsal, errors of all matrices at once: losses add up to a little less than their sum. Inputs rounded
   to 8 bits cost something, too.
4. The conversion itself, and its loss on text that was kept aside from the calibration. Where the bound is
   overshot, or far from reached, the prediction is corrected by what was measured, and what changes is
   converted again, as in the precision search of arXiv 2411.15982.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from gguf_tools.errors import LutraError
from gguf_tools.formats.catalog import RECIPES, TYPES, Recipe
from gguf_tools.sources.tensors import EMBEDDING, Source, SourceTensor
from gguf_tools.writer import file_bytes, padded
from lutra.console import mib, table
from lutra.conversion.boards import Board
from lutra.conversion.budget import Step, cheapest, within
from lutra.conversion.divergence import Divergence, divergence
from lutra.conversion.jobs import Jobs
from lutra.conversion.losses import TOKENS, Losses, measure_losses
from lutra.conversion.options import ConversionOptions, Target
from lutra.conversion.output import metadata, tensor_specs, write, write_floats
from lutra.conversion.plan import Planned, Rules, fixed_type, give_planes, is_tied, plan, plan_as
from lutra.conversion.sensitivity import Errors, measure
from lutra.conversion.text import spread
from lutra.conversion.workdir import WorkDirectory

CANDIDATES = sorted((kind for kind in TYPES.values() if kind.snr), key=lambda kind: kind.snr or 0.0)
AIM, ENOUGH = 0.92, 0.75  # of the bound: what is planned for, and what needs no further round
ROUNDS = 6  # of conversions, at most
KEPT = 0.01  # of the time to read it: what a byte costs that a token does not read


@dataclass
class Search:
    """What was measured of a model, and the plan that follows.

    ``aside``: sequences that nothing is calibrated with. ``losses``: by matrix and type, nats per token, each
    alone; ``scale``: what their sum is multiplied by. ``rounds``: what the conversions so far have lost.
    """

    source: Source
    options: ConversionOptions
    board: Board | None = None
    aside: Sequence[Sequence[int]] = ()
    losses: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    scale: float = 1.0
    how: str = ""
    rounds: list[Divergence] = field(default_factory=list)

    @property
    def target(self) -> Target:
        """What is to be met."""
        assert self.options.target
        return self.options.target

    def planned(self) -> list[Planned]:
        """The type of every tensor. Raises LutraError when none meet the target."""
        parts = [self._steps(tensor) for tensor in self.source.tensors]
        if self.target.bound is None:
            chosen = within(parts, self._capacity())
        else:
            chosen = cheapest(parts, AIM * self.target.bound / self.scale)
        if chosen is None:
            raise LutraError(self._impossible(parts))
        names = (tensor.name for tensor in self.source.tensors)
        solved = {name: step.change for name, step in zip(names, chosen, strict=True)}
        return plan(self.source.tensors, replace(self.options.rules, solved=solved))

    def predicted(self, planned: Sequence[Planned]) -> float:
        """The KL divergence of a plan."""
        return self.scale * sum(self._loss(p) for p in planned)

    def met(self, planned: Sequence[Planned], measured: Divergence) -> bool:
        """Whether the file of a plan is what was asked for; if not, ``planned`` gives another one now.

        Raises LutraError when no plan came near the bound.
        """
        self.rounds.append(measured)
        bound, loss = self.target.bound, measured.loss
        if bound is None or ENOUGH * bound <= loss <= bound:
            return True
        if len(self.rounds) >= ROUNDS:  # more, if it was interrupted behind the last one
            if loss <= bound:
                return True
            raise LutraError(
                f"{self.target.option} {self.target.text}: not met in {ROUNDS} rounds, the last one lost "
                f"{loss:.5f} nats per token, not {bound:.5f}; allow more"
            )
        before, types = self.scale, [p.type for p in planned]
        self.scale *= max(loss, 1e-9) / self.predicted(planned) if self.predicted(planned) else 1.0
        while loss > bound and [p.type for p in self.planned()] == types:
            self.scale *= 1.05  # types are few: the next one up is a large step
        if loss <= bound and [p.type for p in self.planned()] == types:
            self.scale = before
            return True
        return False

    def refuse_what_cannot_be(self) -> None:
        """Raise LutraError when no file is as small as the target: nothing has to be measured to know."""
        if self.target.bound is None:
            self.planned()

    def measure(
        self,
        work: WorkDirectory,
        model: Path,
        pieces: Sequence[Sequence[int]],
        jobs: Jobs,
    ) -> None:
        """Measure ``model``, the F16 GGUF of the source; what ``work`` has is not measured again.

        ``pieces`` are what the conversion is calibrated with. Raises LutraError when the model cannot be
        computed.
        """
        known = work.cached("search", lambda: self._measured(work, model, pieces, jobs))
        self.losses, self.how = known["losses"], known["how"]

    def _measured(
        self,
        work: WorkDirectory,
        model: Path,
        pieces: Sequence[Sequence[int]],
        jobs: Jobs,
    ) -> dict[str, Any]:
        options, tensors, threads = self.options, self.source.tensors, self.options.threads
        losses = measure_losses(
            model,
            {t.name: (t, [p.type for p in possible(t, self)]) for t in tensors if not t.keeps_f32},
            spread(pieces, TOKENS // len(pieces[0])),
            jobs,
            tied=is_tied(tensors), calibrated=options.calibration_text is not None,
            seed=options.seed, threads=threads,
        )  # fmt: skip
        noisy = work.temporary("noisy.gguf")
        write_floats(noisy, self.source, "f16", threads, options.record())
        costs, how = measure(noisy, tensors, losses, pieces, threads)
        noise = {
            name: {k: costs[name] * loss for k, loss in own.by_type.items()} for name, own in losses.items()
        }
        rounding = self._rounding(work, model, losses, costs)
        share = 1.0
        for _ in range(1 if self.target.bound is None else 2):
            self.losses = _sum(noise, rounding, share)
            planned = self.planned()
            alone = sum(noise[p.name][p.type.name] for p in planned if p.name in noise)
            if self.aside and alone:
                share = self._rehearsed(planned, losses, noisy, model) / alone
        noisy.unlink()
        return {"losses": _sum(noise, rounding, share), "how": how}

    def _rounding(
        self, work: WorkDirectory, model: Path, losses: Mapping[str, Losses], costs: Mapping[str, float]
    ) -> dict[str, dict[str, float]]:
        """What it costs that inputs of quantized matrices are rounded to 8 bits, by matrix and type.

        The sum is measured with Q8_0, whose weights lose next to nothing.
        """
        relative = {
            name: {kind: costs[name] * r for kind, r in own.rounding.items()} for name, own in losses.items()
        }
        fine = [name for name in losses if "q8_0" in relative[name]]
        alone = sum(relative[name]["q8_0"] for name in fine)
        if not self.aside or not alone:
            return {name: dict.fromkeys(own, 0.0) for name, own in relative.items()}
        rounded = work.temporary("rounded.gguf")
        planned = plan(self.source.tensors, Rules(Recipe("q8_0", TYPES["q8_0"])))
        values = metadata(self.source, planned, self.options.record())
        write(rounded, self.source, planned, values, self.options.threads)
        found = divergence(model, rounded, self.aside, self.options.threads).kld
        rounded.unlink()
        weights = sum(costs[name] * losses[name].by_type["q8_0"] for name in fine)
        ratio = max(found - weights, 0.0) / alone
        return {name: {kind: ratio * r for kind, r in own.items()} for name, own in relative.items()}

    def _rehearsed(
        self, planned: Sequence[Planned], losses: Mapping[str, Losses], noisy: Path, model: Path
    ) -> float:
        """The divergence with errors as large as those of a plan in all matrices at once."""
        sizes = {
            p.name: own.by_type[p.type.name] / own.of_errors
            for p in planned
            if (own := losses.get(p.name)) and own.of_errors
        }
        errors = Errors(noisy, self.source.tensors, losses)
        errors.write(sizes)
        found = divergence(model, noisy, self.aside, self.options.threads)
        errors.remove(list(sizes))
        return max(found.kld, 1e-9)

    def _steps(self, tensor: SourceTensor) -> list[Step]:
        return [Step(p.type, self._cost(p), self._loss(p)) for p in possible(tensor, self)]

    def _cost(self, p: Planned) -> float:
        """Bytes, or seconds per token on the board."""
        if not self.board:
            return padded(p.nbytes)
        multiplied = self._multiplied(p)
        computing = multiplied * self.board.per_weight[p.type.name] if multiplied else 0.0
        return computing + KEPT * p.nbytes * self.board.per_byte

    def _multiplied(self, p: Planned) -> float:
        """Weights that a token is multiplied by: none of what is looked up, a part of stacked experts."""
        if p.source.keeps_f32 or (p.name == EMBEDDING and not is_tied(self.source.tensors)):
            return 0.0
        if len(p.source.shape) == 3 and "_exps" in p.name:
            used = self.source.metadata.get(f"{self.source.architecture}.expert_used_count")
            return p.weights * (int(used.value) / p.source.shape[0] if used else 1.0)
        return p.weights

    def _loss(self, p: Planned) -> float:
        return self.losses.get(p.name, {}).get(p.type.name, 0.0)

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
            least = self.scale * sum(min(step.loss for step in steps) for steps in parts)
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
        """The plan by kind of matrix: which layers have which type, with the loss predicted."""
        layers: dict[tuple[str, str], list[int]] = {}
        nbytes: Counter[tuple[str, str]] = Counter()
        lost: dict[tuple[str, str], float] = defaultdict(float)
        for p in planned:
            if p.name not in self.losses:
                continue
            place = re.fullmatch(r"blk\.(\d+)\.(.+)", p.name)
            key = place[2] if place else p.name, p.type_name
            layers.setdefault(key, []).extend([int(place[1])] if place else [])
            nbytes[key] += p.nbytes
            lost[key] += self.scale * self._loss(p)
        roles = list(dict.fromkeys(role for role, _ in layers))
        rows = [("matrix", "type", "layers", "MiB", "loss")]
        for key in sorted(layers, key=lambda key: (roles.index(key[0]), min(layers[key], default=0))):
            size, loss = f"{nbytes[key] / 2**20:.1f}", f"{lost[key]:.5f}"
            rows.append((*key, ranges(layers[key]), size, loss))
        total = sum(p.nbytes for p in planned)
        bpw = 8 * total / sum(p.weights for p in planned)
        facts = [f"{mib(total)}, {bpw:.3f} bits per weight"]
        facts += [f"predicted KL divergence {self.predicted(planned):.5f}"] if self.losses else []
        if self.board:
            seconds = sum(self._cost(p) for p in planned)
            facts.append(f"{1e3 * seconds:.3g} ms per token in matrices on {self.board.name}")
        return "\n".join([f"{self.how}", "", table(rows, right=(3, 4)), "", "; ".join(facts)])


def _sum(
    noise: Mapping[str, Mapping[str, float]], rounding: Mapping[str, Mapping[str, float]], share: float
) -> dict[str, dict[str, float]]:
    return {
        name: {kind: share * loss + rounding[name][kind] for kind, loss in own.items()}
        for name, own in noise.items()
    }


def possible(tensor: SourceTensor, search: Search) -> list[Planned]:
    """What a tensor can be under the rules of a search."""
    fixed = fixed_type(tensor, search.options.rules, is_tied(search.source.tensors))
    if fixed:
        return [plan_as(tensor, fixed)]
    return [p for p in (plan_as(tensor, kind) for kind in CANDIDATES) if not p.instead_of]


def ranges(numbers: Sequence[int]) -> str:
    """Sorted numbers as text: "0-3, 7"."""
    parts: list[list[int]] = []
    for n in numbers:
        if parts and n == parts[-1][-1] + 1:
            parts[-1][1:] = [n]
        else:
            parts.append([n])
    return ", ".join("-".join(map(str, part)) for part in parts)
