"""Tensor jobs through joblib: in this process, or on a cluster that runs already."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from joblib import Parallel, delayed, parallel_config
from threadpoolctl import threadpool_limits

from gguf_tools.errors import LutraError

CONNECT_SECONDS = 10


class Jobs:
    """Where the work on tensors is done.

    Without ``cluster`` in this process, on ``threads`` threads in all. ``cluster`` is the address of a Dask
    scheduler (tcp://host:8786) whose workers have lutra installed; each of their jobs takes ``threads``
    threads, and gives the same bytes as here on a CPU of the same kind. Raises LutraError when nobody
    answers there.
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
        for. Jobs with their arguments and results can be pickled.
        """
        if self._backend:
            threads, config = self._threads, self._backend | {"n_jobs": -1}
        else:
            jobs = max(1, min(at_once, self._threads))
            threads, config = self._threads // jobs, {"backend": "threading", "n_jobs": jobs}
        with parallel_config(**config):
            parallel = Parallel(return_as="generator")
        yield from parallel(delayed(_run)(job, a, threads) for a in arguments)


def _run(job: Callable[..., Any], arguments: tuple[Any, ...], threads: int) -> Any:
    _one_blas_thread()
    return job(*arguments, threads=threads)


@functools.cache
def _one_blas_thread() -> None:
    """For the rest of this process: the order of BLAS's sums depends on its threads, and we have our own."""
    threadpool_limits(1, user_api="blas")


def _connect(cluster: str) -> dict[str, Any]:
    """The joblib configuration of a Dask cluster."""
    try:
        from distributed import Client

        client = Client(cluster, timeout=CONNECT_SECONDS, set_as_default=False)
    except ImportError:
        raise LutraError(
            "--cluster: Dask is missing; run pip install distributed, on the workers too"
        ) from None
    except (OSError, ValueError) as error:
        raise LutraError(f"--cluster {cluster}: no Dask scheduler answers there: {error}") from None
    return {"backend": "dask", "client": client}
