# SPDX-License-Identifier: MIT
"""A computation of torch on a GPU, launched as a whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Results = TypeVar("Results")


class Recorded(Generic[Results]):
    """``compute`` of tokens on a GPU, recorded the first time (a CUDA graph) and replayed for the same shape.

    A step of a small network is thousands of kernels of some microseconds each: to launch them one by one
    takes several times as long as they do. Tensors that ``compute`` reads are read anew at each replay, and
    its results are the same tensors each time, with new values. What cannot be recorded, as mixtures whose
    router decides on the CPU which experts compute, is computed as it is.
    """

    def __init__(self, compute: Callable[[Tensor], Results]) -> None:
        self._compute = compute
        self._is_new = True
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, tokens: Tensor) -> Results:
        """What ``compute`` gives for ``tokens``."""
        if self._is_new:
            self._record(tokens)
        if self._graph is None or tokens.shape != self._tokens.shape:
            return self._compute(tokens)
        self._tokens.copy_(tokens)
        self._graph.replay()
        return self._results

    def _record(self, tokens: Tensor) -> None:
        import torch

        self._is_new = False
        self._tokens = tokens.clone()
        here, aside = torch.cuda.current_stream(), torch.cuda.Stream()
        aside.wait_stream(here)
        with torch.cuda.stream(aside):  # what libraries do once only does not belong into the recording
            self._compute(self._tokens)
        here.wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                self._results = self._compute(self._tokens)
        except torch.cuda.OutOfMemoryError:
            raise
        except RuntimeError:  # it asks the GPU for a number on the way
            return
        self._graph = graph
