# SPDX-License-Identifier: MIT
"""Stacks of many experts: the same bytes however many are in work, within the memory that was announced."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from cli_runner import environment, require_built

from gguf_tools.errors import LutraError
from gguf_tools.formats.family import CB_FORMATS
from gguf_tools.sources.tensors import SourceTensor
from lutra.conversion import calibrate, footprint
from lutra.conversion.footprint import Footprint, require_memory
from lutra.conversion.jobs import Jobs
from lutra.conversion.output_gradients import OutputGradients
from lutra.runtime.matmul_inputs import MatmulInputs

CB3 = next(fmt for fmt in CB_FORMATS.values() if fmt.name == "CB3")


def stack(experts: int, rows: int, k: int) -> SimpleNamespace:
    """What ``Planned`` would be for random weights of this shape."""
    w = np.random.default_rng(0).standard_normal((experts * rows, k), dtype=np.float32)
    source = SourceTensor(
        "x", (experts, rows, k), "F32", Path("x"), lambda a, b: w[a:b].copy(), keeps_f32=False
    )
    nbytes = CB3.tensor_bytes(experts * rows, k)
    return SimpleNamespace(name="x", source=source, fmt=CB3, weights=w.size, nbytes=nbytes)


def shown(experts: int, tokens: int, k: int) -> tuple[MatmulInputs, MatmulInputs]:
    """Correlated inputs that two experts each meet, of the original model and behind quantized layers."""
    rng = np.random.default_rng(1)
    x = rng.standard_normal((tokens, k // 8)) @ rng.standard_normal((k // 8, k))
    x = (x + 0.3 * rng.standard_normal(x.shape)).astype(np.float32)
    asked = np.argsort(rng.random((tokens, experts)), axis=1)[:, :2].astype(np.int32)
    now = x + np.float32(0.05) * rng.standard_normal(x.shape, dtype=np.float32)
    return tuple(MatmulInputs("x", inputs, asked, 1, 0) for inputs in (x, now))


def encoded(p: SimpleNamespace, before: MatmulInputs, now: MatmulInputs, threads: int):
    """The bytes and the loss of a stack and of a second one with the same inputs, which is its double."""
    results = list(
        calibrate._encoded(
            before, now, [p, p], None, [], Jobs(threads), 1, 0, threads, None, OutputGradients()
        )
    )
    (first, loss), (second, _) = ((b"".join(part.tobytes() for part in parts), x) for parts, x in results)
    assert first == second
    assert len(first) == p.nbytes
    return first, loss


def test_bytes_do_not_depend_on_how_many_are_in_work(monkeypatch):
    require_built()
    p, inputs = stack(12, 64, 256), shown(12, 600, 256)
    whole, loss = encoded(p, *inputs, threads=1)
    monkeypatch.setattr(footprint, "WHOLE", 0)
    monkeypatch.setattr(footprint, "LEARNED", 4 * footprint.Footprint(p, 0).hessian)
    divided, divided_loss = encoded(p, *inputs, threads=1)
    assert divided != whole
    assert divided_loss == pytest.approx(loss, rel=0.05)
    assert encoded(p, *inputs, threads=3) == (divided, divided_loss)
    monkeypatch.setattr(footprint, "SMALL_HESSIAN", 0)  # one at a time
    assert encoded(p, *inputs, threads=3) == (divided, divided_loss)


def test_sizes_that_people_have_fit():
    """Mixtral 8x7B and Qwen3 30B A3B, beside 3 GiB for both copies' activations."""
    for shape, tokens, used, together in (
        ((8, 14336, 4096), 4096, 1, 2),
        ((8, 4096, 14336), 4096, 2, 1),
        ((128, 768, 2048), 16384, 1, 2),
        ((128, 2048, 768), 16384, 8, 1),
    ):
        source = SimpleNamespace(shape=shape, rows=shape[0] * shape[1], k=shape[2])
        weights = source.rows * source.k
        p = SimpleNamespace(
            source=source, fmt=CB3, weights=weights, nbytes=CB3.tensor_bytes(source.rows, source.k)
        )
        whole = Footprint(p, 4 * tokens * used * source.k)
        assert whole.is_divided
        assert footprint.PROGRAM + calibrate.MEMORY + whole.peak(together) < 8e9


def test_too_little_memory_is_said_before_work_starts(monkeypatch):
    p = stack(2, 8, 256)
    require_memory(1 << 20, [[p]], 256, 1)
    monkeypatch.setattr(footprint, "free_memory", lambda: 400 << 20)
    require_memory(1 << 20, [[p]], 256, 1)
    with pytest.raises(
        LutraError, match=r"takes about 4\.\d GB of memory, 0\.4 GB are free: .*--no-calibration"
    ):
        require_memory(4 << 30, [[p]], 256, 1)


def test_inputs_count_for_each_expert_only_where_each_has_its_own(monkeypatch):
    p, tokens = stack(2, 8, 256), 1 << 16
    once = footprint.PROGRAM + Footprint(p, 4 * tokens * 256).peak(1)
    monkeypatch.setattr(footprint, "free_memory", lambda: once)
    p.name = "blk.0.ffn_gate_exps.weight"
    require_memory(0, [[p]], tokens, 8)
    p.name = "blk.0.ffn_down_exps.weight"
    with pytest.raises(LutraError, match="of memory"):
        require_memory(0, [[p]], tokens, 8)


def test_a_hessian_of_outputs_takes_memory(monkeypatch):
    p = stack(1, 2048, 256)
    once = footprint.PROGRAM + Footprint(p, 4 * 256 * 256).peak(1)
    monkeypatch.setattr(footprint, "free_memory", lambda: once)
    require_memory(0, [[p]], 256, 1)
    with pytest.raises(LutraError, match="of memory"):
        require_memory(0, [[p]], 256, 1, [p.name])


LIMITED = """
import resource, sys
sys.path[:0] = {paths}
from lutra.conversion import footprint
from test_experts import encoded, shown, stack
footprint.WHOLE, footprint.LEARNED = {whole}, 16 << 20
p, inputs = stack(96, 8, 512), shown(96, 2000, 512)
encoded(stack(2, 8, 256), *shown(2, 64, 256), threads=1)  # loads what is loaded once
divided = footprint.Footprint(p, inputs[0].inputs.nbytes)
footprint.WHOLE = 0
with open("/proc/self/status") as status:
    taken = next(int(line.split()[1]) for line in status if line.startswith("VmData")) << 10
footprint.WHOLE, peak = {whole}, divided.peak(2)
resource.setrlimit(resource.RLIMIT_DATA, (taken + peak,) * 2)
print(len(encoded(p, *inputs, threads=1)[0]))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="this is no Linux, which limits RLIMIT_DATA")
def test_many_experts_take_no_more_than_was_announced():
    """Undivided, as all stacks once were, they do not fit."""
    require_built()
    for whole, fits in ((0, True), (1 << 40, False)):
        program = LIMITED.format(paths=[str(Path(__file__).parent)], whole=whole)
        done = subprocess.run(
            [sys.executable, "-c", program],
            env=environment({"OPENBLAS_NUM_THREADS": "1"}), capture_output=True, text=True,
        )  # fmt: skip
        assert (done.returncode == 0) is fits, done.stderr
        assert fits or "MemoryError" in done.stderr
