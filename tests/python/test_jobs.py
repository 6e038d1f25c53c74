# SPDX-License-Identifier: MIT
"""Jobs on a Dask cluster: only workers like this process get any."""

from __future__ import annotations

import sys

import pytest

from gguf_tools.errors import LutraError
from lutra.conversion import jobs
from lutra.conversion.jobs import Jobs
from lutra.conversion.workdir import software

distributed = pytest.importorskip("distributed", reason="no Dask here; pip install distributed")

CHANGES = {
    "lutra": lambda code, numpy, blas: ["f00", numpy, blas],
    "numpy": lambda code, numpy, blas: [code, "1.0", blas],
    "BLAS": lambda code, numpy, blas: [code, numpy, []],
}


def add(a: int, b: int, *, threads: int) -> int:
    return a + b + threads


def become_another(what: str) -> None:
    """For a worker: it has another ``what`` from now on."""
    software, cpu = jobs.software(), jobs.cpu()
    if what == "CPU":
        jobs.cpu = lambda: [*cpu, "flags\t: none"]
    else:
        jobs.software = lambda: CHANGES[what](*software)
    jobs._kind.cache_clear()


def lose_lutra() -> None:
    """For a worker: it cannot import what the jobs are made of."""
    sys.modules["lutra.conversion.jobs"] = None


@pytest.fixture
def cluster():
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=None, processes=True
    ) as cluster:
        yield cluster


def run_on_one(cluster, function, *arguments) -> str:
    """Its address."""
    with distributed.Client(cluster, set_as_default=False) as client:
        worker = sorted(client.scheduler_info()["workers"])[-1]
        client.run(function, *arguments, workers=[worker])
    return worker


def test_workers_like_this_process_work(cluster):
    assert list(Jobs(3, cluster.scheduler_address).run(add, [(1, 2), (3, 4)])) == [6, 10]


@pytest.mark.parametrize("what", [*CHANGES, "CPU"])
def test_a_worker_that_is_another_is_named_before_it_gets_work(cluster, what):
    worker = run_on_one(cluster, become_another, what)
    with pytest.raises(
        LutraError, match=rf"worker {worker} has another {what}( \(flags\))? than this process"
    ):
        Jobs(1, cluster.scheduler_address)


def test_a_worker_without_lutra_is_named(cluster):
    worker = run_on_one(cluster, lose_lutra)
    with pytest.raises(LutraError, match=rf"worker {worker} cannot say which lutra it has"):
        Jobs(1, cluster.scheduler_address)


def test_a_worker_that_comes_later_is_named(cluster):
    running = Jobs(1, cluster.scheduler_address)
    workers = {run_on_one(cluster, become_another, "lutra")}
    with pytest.raises(LutraError, match=rf"worker {workers.pop()} has another lutra"):
        list(running.run(add, [(i, i) for i in range(50)]))


def test_a_blas_that_another_package_brings_does_not_count():
    pytest.importorskip("scipy.linalg")
    assert len(software()[2]) == 1


def test_a_cluster_without_workers(monkeypatch):
    wait = distributed.Client.wait_for_workers
    monkeypatch.setattr(distributed.Client, "wait_for_workers", lambda self, n, timeout: wait(self, n, 0.1))
    with (
        distributed.LocalCluster(n_workers=0, dashboard_address=None) as cluster,
        pytest.raises(LutraError, match="has no workers"),
    ):
        Jobs(1, cluster.scheduler_address)
