# SPDX-License-Identifier: MIT
"""Tensor jobs through joblib: in this process, or on a cluster that runs already."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from joblib import Parallel, delayed, parallel_config
from threadpoolctl import threadpool_limits

from gguf_tools.errors import LutraError
from lutra.conversion.workdir import cpu, software

CONNECT_SECONDS = 30


class Jobs:
    """Where the work on tensors is done.

    Without ``cluster`` in this process, on ``threads`` threads in all. ``cluster`` is the address of a Dask
    scheduler (tcp://host:8786); each job of its workers takes ``threads`` threads. They give the same bytes
    as here, for they need the same lutra, numpy, BLAS and kind of CPU: raises LutraError for a worker that
    has another, before it gets any work, and when nobody answers there.
    """

    def __init__(self, threads: int, cluster: str | None = None) -> None:
        _one_blas_thread()  # for what is computed between jobs, too
        self._threads = threads
        self._backend = _connect(cluster) if cluster else None

    def run(
        self, job: Callable[..., Any], arguments: Iterable[tuple[Any, ...]], at_once: int = 1
    ) -> Iterator[Any]:
        """``job(*a, threads=n)`` for all ``a`` of ``arguments``: the results in the same order.

        ``at_once`` bounds the jobs that this process works on together; a cluster takes what it has room
        for. Jobs with their arguments and results can be pickled. Raises LutraError when a worker that came
        after the others is not like them.
        """
        kind = None
        if self._backend:
            threads, config = self._threads, self._backend | {"n_jobs": -1}
            kind = _kind()
        else:
            jobs = max(1, min(at_once, self._threads))
            threads, config = self._threads // jobs, {"backend": "threading", "n_jobs": jobs}
        with parallel_config(**config):
            parallel = Parallel(return_as="generator")
        yield from parallel(delayed(_run)(job, a, threads, kind) for a in arguments)


def _run(
    job: Callable[..., Any], arguments: tuple[Any, ...], threads: int, kind: Mapping[str, str] | None
) -> Any:
    """The job, on a worker too; ``kind``: what a worker has to be."""
    if kind:
        import distributed

        _require_same(distributed.get_worker().address, _kind(), kind)
    _one_blas_thread()
    return job(*arguments, threads=threads)


@functools.cache
def _one_blas_thread() -> None:
    """For the rest of this process: the order of BLAS's sums depends on its threads, and we have our own."""
    threadpool_limits(1, user_api="blas")


@functools.cache
def _kind() -> dict[str, str]:
    """What the bytes of a tensor depend on, beside the job."""
    code, numpy, blas = software()
    machine, *about = cpu()
    lines = (line.partition(":") for line in about)
    return {
        "lutra": code,
        "numpy": numpy,
        "BLAS": str(blas),
        "CPU": machine,
        **{f"CPU ({name.strip()})": value.strip() for name, _, value in lines},
    }


def _require_same(worker: str, theirs: Mapping[str, str] | Exception, ours: Mapping[str, str]) -> None:
    """Raise LutraError unless a worker is what this process is."""
    if isinstance(theirs, Exception):
        raise LutraError(
            f"--cluster: worker {worker} cannot say which lutra it has ({theirs}); install this one there"
        )
    for what in sorted(ours.keys() | theirs.keys()):
        here, there = (str(kind.get(what, "none"))[:40] for kind in (ours, theirs))
        if ours.get(what) != theirs.get(what):
            raise LutraError(
                f"--cluster: worker {worker} has another {what} than this process, {there}, not {here}; "
                "its bytes would differ: install the same there, or take it away"
            )


def _connect(cluster: str) -> dict[str, Any]:
    """The joblib configuration of a Dask cluster."""
    try:
        import distributed

        client = distributed.Client(cluster, timeout=CONNECT_SECONDS, set_as_default=False)
    except ImportError:
        raise LutraError(
            "--cluster: Dask is missing; run pip install distributed, on the workers too"
        ) from None
    except (OSError, ValueError) as error:
        raise LutraError(f"--cluster {cluster}: no Dask scheduler answers there: {error}") from None
    try:
        client.wait_for_workers(1, timeout=CONNECT_SECONDS)
        for worker, kind in sorted(client.run(_kind, on_error="return").items()):
            _require_same(worker, kind, _kind())
    except (TimeoutError, asyncio.TimeoutError):
        client.close()
        raise LutraError(
            f"--cluster {cluster}: the scheduler has no workers; start some with 'dask worker {cluster}'"
        ) from None
    except LutraError:
        client.close()
        raise
    return {"backend": "dask", "client": client}
