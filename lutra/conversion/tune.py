# SPDX-License-Identifier: MIT
"""Tuning what the codes leave open: libraries, scales and norms follow the original model's predictions.

The codes and selectors of a finished file stay as they are. The entries of the libraries, the scale d of
every super-block and the norms are continuous, and Adam takes them down the KL divergence from the original
model's predictions to those of the file: distillation (arXiv 1503.02531) into few parameters. torch computes
both networks from the tensors under their GGUF names, on a GPU where there is one; it is optional and
imported only where it is needed.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gguf_tools.errors import LutraError
from gguf_tools.formats.catalog import TYPES
from gguf_tools.formats.family import CB_FORMATS, CBFormat
from gguf_tools.reader import GGUFFile
from gguf_tools.sources.tensors import EMBEDDING, Source
from gguf_tools.writer import GGUFWriter, TensorSpec
from lutra.console import progress, say, warn
from lutra.conversion.llama_network import LlamaNetwork
from lutra.conversion.network import network_of
from lutra.conversion.recorded import Recorded
from lutra.conversion.slabs import Matrix, Stored
from lutra.conversion.tunable import Codebook, Norm, open_tensor, rate_share
from lutra.conversion.tuning_memory import Needs, available

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from lutra.conversion.network import Weights

DEVICES = ("auto", "cpu", "cuda")
MOST = 1 << 22  # tokens to tune with: minutes on a GPU
SHARE = 1  # of the calibration's time, which writing a text and tuning with it may take on CPUs
BATCH = {"cpu": 1024, "cuda": 2048}  # tokens of a step: on CPUs there is time for few of them
SHARDS = 4  # of a step on CPUs, side by side; fixed, so that sums do not depend on the number of threads
WARM_UP = 5  # steps
FEW = 64  # steps; of more, each is smaller
BETAS = 0.9, 0.95
HELD_OUT = 32  # sequences that only tell how far tuning has come, at most an eighth of all
LOOKS = 8  # at them, on the way
PATIENCE = 3  # looks without a gain, then it ends
SAVED_EVERY = 60  # seconds


def require_torch() -> None:
    """Raise LutraError when torch is missing."""
    if importlib.util.find_spec("torch") is None:
        raise LutraError("--tune needs torch: run pip install torch, or convert without it")


def require(source: Source, device: str = "auto") -> None:
    """Raise LutraError, before any work, when torch is missing, ``source`` is a network unknown here, or the
    device has too little memory even if all of it becomes CB2.
    """
    require_torch()
    is_frugal(source, smallest(source), device_of(device))


def smallest(source: Source) -> dict[str, CBFormat | None]:
    """The formats of the tensors that can become codebooks, as CB2."""
    return {
        t.name: CB_FORMATS.get(TYPES["cb2"].id_for(t.shape) or 0) for t in source.tensors if not t.keeps_f32
    }


def device_of(name: str) -> torch.device:
    """The device called "cpu" or "cuda", or with "auto" a GPU if there is one. Raises LutraError."""
    import torch

    there = torch.cuda.is_available()
    if name == "cuda" and not there:
        raise LutraError(
            "--device cuda: torch finds no GPU; take --device cpu, or a torch built for your GPU"
        )
    return torch.device("cuda" if there and name != "cpu" else "cpu")


def computed_by(device: torch.device) -> str:
    """The version of torch and the kind of GPU, if it is one: what the last bits of sums depend on."""
    import torch

    kind = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    return f"{torch.__version__} {kind}"


def load(source: Source, device: torch.device, *, frugal: bool = False) -> Weights:
    """The original's tensors by GGUF name, in single precision, on a GPU in the half precision they have.

    ``frugal``: in half precision on a CPU, too, and the matrices for what is computed in slabs.
    """
    import torch

    kinds = {"F16": torch.float16, "BF16": torch.bfloat16} if device.type == "cuda" or frugal else {}
    weights = {}
    for t in source.tensors:
        kind = kinds.get(t.dtype, torch.float32)
        if frugal and len(t.shape) == 2:
            matrix = torch.empty(t.shape, dtype=kind, device=device)
            stored = Stored(matrix)
            for rows in stored.slabs():
                matrix[rows] = torch.from_numpy(t.read(rows.start, rows.stop))
            weights[t.name] = stored
        else:
            weights[t.name] = torch.from_numpy(t.read().reshape(t.shape)).to(device, kind)
    return weights


def is_for_frugal(original: Weights) -> bool:
    """Whether ``load`` was told to be frugal."""
    return isinstance(original[EMBEDDING], Matrix)


def needs(source: Source, types: Mapping[str, CBFormat | None], device: torch.device) -> Needs:
    """Memory that tuning a file of these types of tensors takes."""
    return Needs(network_of(source), source.tensors, types, device.type, BATCH[device.type], SHARDS)


def is_frugal(
    source: Source, types: Mapping[str, CBFormat | None], device: torch.device, aloud: bool = False
) -> bool:
    """Whether tuning has to take the frugal way, which is slower, for lack of memory.

    It depends on the model, the types of the file's tensors (None: no codebook) and all memory of the device.
    Raises LutraError where neither way fits.
    """
    needed, there = needs(source, types, device), available(device)
    usual, frugal = needed.usual(), needed.frugal()
    on = "a GPU" if device.type == "cuda" else "this machine"
    if usual <= there:
        return False
    if frugal is not None and frugal <= there:
        if aloud:
            say(
                f"tuning frugally, in {frugal / 1e9:.1f} GB: the usual way, which is faster, takes "
                f"{usual / 1e9:.1f} GB, {on} has {there / 1e9:.1f} GB for it"
            )
        return True
    known = "" if frugal is not None else " (what transformers computes has no way in less)"
    advice = "take --device cpu" if device.type == "cuda" else "convert without it"
    least = usual if frugal is None else frugal
    raise LutraError(
        f"--tune: needs {least / 1e9:.1f} GB{known}, {on} has {there / 1e9:.1f} GB for it; {advice}"
    )


def affordable(
    path: Path,
    source: Source,
    original: Weights,
    seconds: float,
    *,
    length: int,
    writing: float,
    threads: int,
) -> int:
    """How many tokens to tune ``path`` with on CPUs, in sequences of ``length``, within ``seconds``.

    A step is taken and timed; nothing comes of it. ``writing``: seconds that each token takes before, when
    the model writes it. Other arguments, and errors, as for ``tune``.
    """
    size = max(1, BATCH["cpu"] // length), length
    tokens = np.random.default_rng(0).integers(len(original[EMBEDDING]), size=size)
    with GGUFFile(path) as file:
        per_token = writing + tuning_of(file, source, original, 0, threads).seconds_per_token(tokens)
    steps = int(seconds / (per_token * tokens.size))
    chosen = min(max(steps, 2 * LOOKS) * tokens.size, MOST)
    say(f"there is time to tune with {chosen} tokens: about {chosen * per_token / 60:.0f} minutes in all")
    return chosen


@contextlib.contextmanager
def reproducible(device: torch.device) -> Iterator[None]:
    """Within, the same steps give the same bits on the same GPU. Raises LutraError when that is too small."""
    import torch

    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it starts
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.get_float32_matmul_precision(),
        torch.utils.deterministic.fill_uninitialized_memory,
    )
    if device.type == "cuda":
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # a kernel more for every tensor
        torch.set_float32_matmul_precision("high")  # TF32
    try:
        yield
    except torch.cuda.OutOfMemoryError:
        raise LutraError("--tune: the GPU's memory is too small for this model; take --device cpu") from None
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.utils.deterministic.fill_uninitialized_memory = before[2]
        torch.set_float32_matmul_precision(before[1])


def tune(
    path: Path,
    source: Source,
    original: Weights,
    output: Path,
    pieces: Sequence[Sequence[int]],
    known: Sequence[Sequence[int]] = (),
    *,
    seed: int,
    threads: int,
    checkpoint: Path | None = None,
) -> None:
    """Write ``path``, a file made from ``source``, to ``output`` with other libraries, scales and norms.

    ``original``: what ``load`` gives, on the device that computes. ``pieces``: sequences of tokens, all of
    one length, to predict, and more that are ``known``: none of these is held out to tell how far tuning has
    come. Nothing else in the file changes. The same ``seed`` gives the same file for any
    number of ``threads``, on one kind of CPU or GPU and version of torch, and so does a tuning that was
    stopped and goes on from ``checkpoint``. Memory: see ``needs``; 12 bytes per weight, 18 on a GPU, and
    activations and logits of a step's tokens, or about 3 bytes in all if ``original`` was loaded for the
    frugal way, which gives other last bits. Raises LutraError as ``require``.
    """
    device = original[EMBEDDING].device
    with GGUFFile(path) as file, reproducible(device):
        tuning = tuning_of(file, source, original, seed, threads)
        tuning.run(np.array(pieces), np.array(known or pieces[:0]), checkpoint)
        tuning.write(output)


def tuning_of(file: GGUFFile, source: Source, original: Weights, seed: int, threads: int) -> _Tuning:
    """The way that ``original`` was loaded for."""
    kind = _FrugalTuning if is_for_frugal(original) else _Tuning
    return kind(file, source, original, seed, threads)


def pace(steps: int) -> float:
    """What the rates of so many steps are multiplied by: the longer the way, the smaller its steps may be."""
    return min(1.0, float((FEW / steps) ** 0.2))


class _Tuning:
    """A file's tensors, what can be tuned of them, and Adam."""

    is_frugal = False

    def __init__(self, file: GGUFFile, source: Source, original: Weights, seed: int, threads: int) -> None:
        import torch

        self._file, self._original, self._threads = file, original, threads
        self._rng = np.random.default_rng(seed)
        self._network = network_of(source)
        self._device = original[EMBEDDING].device
        self._batch = BATCH[self._device.type]
        tensors = {
            name: open_tensor(file, info, self._device, packed=self.is_frugal)
            for name, info in file.tensors.items()
        }
        self._tuned = {name: t for name, t in tensors.items() if isinstance(t, Codebook | Norm)}
        self._fixed = {name: t for name, t in tensors.items() if not isinstance(t, Codebook | Norm)}
        self._parameters: list[Tensor] = []
        alike: dict[float, list[Tensor]] = {}  # by their rate: a GPU takes all of them at once
        for parameter, rate in (p for t in self._tuned.values() for p in t.parameters()):
            self._parameters.append(parameter)
            alike.setdefault(rate, []).append(parameter)
        share = rate_share(file)
        groups = [{"params": parameters, "lr": rate * share} for rate, parameters in alike.items()]
        all_at_once = False if self.is_frugal else None  # None: as torch does by default, on a GPU
        self._adam = torch.optim.Adam(groups, betas=BETAS, foreach=all_at_once)
        self._best, self._best_at, self._untuned = self._copies(), float("nan"), float("nan")
        self._worse = self._step = 0
        self._recorded = Recorded(lambda tokens: self._gradients(self._weights(), tokens))

    def run(self, pieces: NDArray[np.int64], known: NDArray[np.int64], checkpoint: Path | None) -> None:
        """Tune with ``known`` and all of ``pieces`` but some, until these say that nothing is gained any
        more.
        """
        from torch.optim.lr_scheduler import LambdaLR

        pieces = self._rng.permutation(pieces)
        held = min(HELD_OUT, len(pieces) // 8)
        held_out, pieces = pieces[:held], pieces[held:]
        if len(known):
            pieces = self._rng.permutation(np.concatenate([pieces, known]))
        size = max(1, self._batch // pieces.shape[1])
        batches = [pieces[start : start + size] for start in range(0, len(pieces), size)]
        most = pace(len(batches))
        schedule = LambdaLR(
            self._adam, lambda step: most * min(1, (step + 1) / WARM_UP) * (1 - step / len(batches))
        )
        signature = self._signature(pieces)
        self._load(checkpoint, signature, schedule)
        looks = {round(len(batches) * i / LOOKS) for i in range(1, LOOKS + 1)}
        saved = time.monotonic()
        with self._computing(), progress(len(pieces) * pieces.shape[1], "tok", "tuning") as bar:
            bar.update(sum(b.size for b in batches[: self._step]))
            if self._step == 0 and held:
                self._untuned = self._best_at = self._divergence(held_out)
            for batch in batches[self._step :]:
                loss = self._descend(batch)
                schedule.step()
                self._step += 1
                if self._step in looks and held:
                    self._look(held_out)
                    if self._worse == PATIENCE:
                        break
                bar.set_postfix_str(f"divergence {loss:.3f}, held out {self._best_at:.4f}")
                bar.update(batch.size)
                if checkpoint and time.monotonic() - saved > SAVED_EVERY:
                    self._save(checkpoint, signature, schedule)
                    saved = time.monotonic()
        if held:
            self._restore(self._best)
            say(f"divergence on held-out text: {self._untuned:.4f}, tuned {self._best_at:.4f}")

    def seconds_per_token(self, tokens: NDArray[np.int64]) -> float:
        """Seconds that a step with ``tokens`` takes for each of them; it is taken."""
        with self._computing():
            started = time.monotonic()
            self._descend(tokens)
        return (time.monotonic() - started) / tokens.size

    def write(self, output: Path) -> None:
        """The file with what was tuned."""
        file, tuned = self._file, self._tuned
        specs = [TensorSpec(t.name, t.type, t.shape, t.nbytes) for t in file.tensors.values()]
        with GGUFWriter(output, file.metadata, specs) as writer:
            for name, info in file.tensors.items():
                writer.write(tuned[name].data() if name in tuned else file.data(info))

    # ---- a step ----------------------------------------------------------------------------

    @contextlib.contextmanager
    def _computing(self) -> Iterator[None]:
        """With threads for the shards."""
        import torch

        torch.set_num_threads(1)  # here and in every thread: sums in one order, no threads that spin
        with ThreadPoolExecutor(
            min(self._threads, SHARDS), initializer=torch.set_num_threads, initargs=(1,)
        ) as self._pool:
            yield

    def _descend(self, batch: NDArray[np.int64]) -> float:
        """One step of Adam; the divergence before it."""
        losses, sums = [], None
        for loss, gradients in self._map(self._of_shard(), batch):
            losses.append(loss)
            sums = [a + b for a, b in zip(sums, gradients, strict=True)] if sums else gradients
        for p, total in zip(self._parameters, sums or (), strict=True):
            p.grad = total / batch.size
        self._adam.step()
        return sum(map(float, losses)) / batch.size

    def _of_shard(self) -> Callable[[Tensor], tuple[Tensor, list[Tensor]]]:
        """What computes the divergence and gradients of the tokens of a shard."""
        if self._device.type == "cpu":
            return partial(self._gradients, self._weights())  # the same for all shards
        return self._recorded

    def _weights(self, rounded: bool = False) -> Weights:
        return self._fixed | {name: t.weights(rounded) for name, t in self._tuned.items()}

    def _map(self, what: Any, batch: NDArray[np.int64]) -> Iterator[Any]:
        """``what`` of the tokens of every shard of a batch."""
        import torch

        shards = SHARDS if self._device.type == "cpu" or self.is_frugal else 1
        tokens = [
            torch.from_numpy(part).to(self._device) for part in np.array_split(batch, min(shards, len(batch)))
        ]
        side_by_side = self._device.type == "cpu" and len(tokens) > 1
        return iter(self._pool.map(what, tokens)) if side_by_side else map(what, tokens)

    def _gradients(self, weights: Weights, tokens: Tensor) -> tuple[Tensor, list[Tensor]]:
        """KL divergence, summed over ``tokens``, and its gradients in the order of all parameters."""
        tuned, reduced = self._tuned, {}

        def watched(name: str) -> Tensor:
            leaf = weights[name].detach().requires_grad_()  # the same memory, a gradient of its own

            def reduce(leaf: Tensor) -> None:  # at once: gradients of all weights would take much more memory
                assert leaf.grad is not None  # it was just accumulated
                reduced[name] = tuned[name].reduce(leaf.grad)
                leaf.grad = None

            leaf.register_post_accumulate_grad_hook(reduce)
            return leaf

        leaves = {name: watched(name) if name in tuned else w for name, w in weights.items()}
        loss = self._loss(leaves, tokens)
        loss.backward()
        return loss.detach(), [gradient for name in tuned for gradient in reduced[name]]

    def _loss(self, weights: Weights, tokens: Tensor) -> Tensor:
        import torch
        from torch.nn.functional import kl_div

        with torch.no_grad():
            target = self._network.bound(self._original)(tokens).log_softmax(-1)
        prediction = self._network.bound(weights)(tokens).log_softmax(-1)
        return kl_div(prediction, target, log_target=True, reduction="sum")

    # ---- how far it has come ---------------------------------------------------------------

    def _divergence(self, pieces: NDArray[np.int64]) -> float:
        """Mean KL divergence, as the file would have it now."""
        import torch

        weights = self._weights(rounded=True)

        def shard(tokens: Tensor) -> float:
            with torch.no_grad():
                return float(self._loss(weights, tokens))

        size = max(1, self._batch // pieces.shape[1])
        parts = (pieces[start : start + size] for start in range(0, len(pieces), size))
        return float(sum(loss for part in parts for loss in self._map(shard, part)) / pieces.size)

    def _look(self, held_out: NDArray[np.int64]) -> None:
        """Keep the parameters if nothing was better on ``held_out``."""
        if (found := self._divergence(held_out)) < self._best_at:
            self._best, self._best_at, self._worse = self._copies(), found, 0
        else:
            self._worse += 1

    def _copies(self) -> list[Tensor]:
        return [p.clone() for p in self._parameters]

    def _restore(self, values: Sequence[Tensor]) -> None:
        for p, value in zip(self._parameters, values, strict=True):
            p.copy_(value)

    # ---- checkpoints -----------------------------------------------------------------------

    def _signature(self, pieces: NDArray[np.int64]) -> str:
        """What the steps depend on, beside the file."""
        fixed = f"{SHARDS} {WARM_UP} {FEW} {BETAS} {HELD_OUT} {LOOKS} {PATIENCE}"
        about = f"{computed_by(self._device)} {self._batch} {fixed}{' frugal' if self.is_frugal else ''}"
        return hashlib.sha256(about.encode() + np.ascontiguousarray(pieces).tobytes()).hexdigest()

    def _save(self, path: Path, signature: str, schedule: Any) -> None:
        import torch

        partial = path.with_suffix(".partial")
        state = {
            "signature": signature, "step": self._step, "worse": self._worse, "parameters": self._parameters,
            "best": self._best, "best at": self._best_at, "untuned": self._untuned,
            "adam": self._adam.state_dict(), "schedule": schedule.state_dict(),
        }  # fmt: skip
        try:
            torch.save(state, partial)
            partial.replace(path)
        except (OSError, RuntimeError) as error:  # a full disk is no reason to lose the tuning itself
            partial.unlink(missing_ok=True)
            warn(f"{path}: the tuning's state cannot be written, it would start anew: {error}")

    def _load(self, path: Path | None, signature: str, schedule: Any) -> None:
        """Go on from a checkpoint of the same tuning."""
        import torch

        if not path or not path.exists():
            return
        try:
            state = torch.load(path, map_location=self._device, weights_only=True)
            assert state["signature"] == signature
        except Exception:  # whatever is wrong with it
            warn(f"{path}: not of this tuning; it starts anew")
            return
        self._restore(state["parameters"])
        self._best, self._best_at, self._untuned = state["best"], state["best at"], state["untuned"]
        self._step, self._worse = state["step"], state["worse"]
        self._adam.load_state_dict(state["adam"])
        schedule.load_state_dict(state["schedule"])
        say(f"going on with the tuning after {self._step} steps")


class _FrugalTuning(_Tuning):
    """The same steps in little memory: a slab of a matrix and the activations of one block at a time."""

    is_frugal = True

    def _of_shard(self) -> Callable[[Tensor], tuple[Tensor, list[Tensor]]]:
        return partial(self._gradients, self._weights())

    def _weights(self, rounded: bool = False) -> Weights:
        fixed = {name: Stored(t) if t.dim() == 2 else t for name, t in self._fixed.items()}
        tuned = {name: t.bound((), rounded) for name, t in self._tuned.items()}
        return fixed | tuned

    def _gradients(self, weights: Weights, tokens: Tensor) -> tuple[Tensor, list[Tensor]]:
        leaves = {
            name: [p.detach().requires_grad_() for p, _ in t.parameters()] for name, t in self._tuned.items()
        }
        loss = self._loss({**weights, **{n: t.bound(leaves[n]) for n, t in self._tuned.items()}}, tokens)
        loss.backward()
        return loss.detach(), [leaf.grad for of_tensor in leaves.values() for leaf in of_tensor]

    def _loss(self, weights: Weights, tokens: Tensor) -> Tensor:
        import torch

        from lutra.conversion.slab_functions import Divergence

        network, original = self._network, self._original
        assert isinstance(network, LlamaNetwork)  # or it would not have been chosen
        output = network.output + ".weight"
        with torch.no_grad():
            target = network.hidden(original, tokens).flatten(0, 1)
        x = network.hidden(weights, tokens, recomputed=True).flatten(0, 1)
        matrix = weights[output]
        loss: Tensor = Divergence.apply(x, matrix, target, original[output], *matrix.parameters)
        return loss
