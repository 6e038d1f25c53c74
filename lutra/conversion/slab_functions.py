# SPDX-License-Identifier: MIT
"""What is computed with matrices in slabs, and its gradients."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

try:
    import torch
    from torch.autograd import Function
    from torch.nn.functional import linear
except ImportError:  # optional: the module can be imported, but is not used
    Function = object

if TYPE_CHECKING:
    from torch import Tensor

    from lutra.conversion.slabs import Matrix


class Product(Function):  # type: ignore[misc]
    """``Matrix.times``. Its parameters are given beside it, for autograd to see them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, matrix: Matrix, *parameters: Tensor) -> Tensor:
        """See ``Function``."""
        ctx.matrix = matrix
        ctx.save_for_backward(x)
        y = x.new_empty(*x.shape[:-1], len(matrix))
        for rows in matrix.slabs():
            y[..., rows] = linear(x, matrix.rows(rows))
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """See ``Function``."""
        (x,), matrix = ctx.saved_tensors, ctx.matrix
        of_x = torch.zeros_like(x)
        sums = matrix.no_gradients()
        for rows in matrix.slabs():
            weights, part = matrix.rows(rows), gradient[..., rows]
            of_x += part @ weights
            if sums:
                matrix.add_gradients(sums, rows, weights, part.flatten(0, -2).T @ x.flatten(0, -2))
        return of_x, None, *sums


class Chosen(Function):  # type: ignore[misc]
    """``Matrix.chosen``."""

    @staticmethod
    def forward(ctx: Any, numbers: Tensor, matrix: Matrix, *parameters: Tensor) -> Tensor:
        """See ``Function``."""
        ctx.matrix = matrix
        ctx.save_for_backward(numbers)
        return matrix.rows(numbers.flatten()).view(*numbers.shape, matrix.k)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """See ``Function``."""
        (numbers,), matrix = ctx.saved_tensors, ctx.matrix
        sums, which = matrix.no_gradients(), numbers.flatten()
        matrix.add_gradients(sums, which, matrix.rows(which), gradient.flatten(0, -2))
        return None, None, *sums


class Divergence(Function):  # type: ignore[misc]
    """KL divergence, summed over tokens, of a prediction from another, ``of``: softmax of matrix times ``x``.

    ``x``, ``of_x`` (tokens, k): what the output matrices of the two networks are multiplied by. Of logits
    there are never more than those of a slab of the vocabulary.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, matrix: Matrix, of_x: Tensor, of: Matrix, *parameters: Tensor) -> Tensor:
        """See ``Function``."""
        total = of_total = x.new_full((len(x),), -torch.inf)  # logarithms of the sums of exponentials
        apart = x.new_zeros(len(x))  # mean difference of the logits so far, by the probabilities of ``of``
        for rows in matrix.slabs():
            logits, of_logits = linear(x, matrix.rows(rows)), linear(of_x, of.rows(rows))
            total = total.logaddexp(logits.logsumexp(-1))
            before, of_total = of_total, of_total.logaddexp(of_logits.logsumexp(-1))
            p = (of_logits - of_total[:, None]).exp_()
            apart = apart * (before - of_total).exp() + (p * (of_logits - logits)).sum(-1)
        ctx.matrices = matrix, of
        ctx.save_for_backward(x, of_x, total, of_total)
        return (apart - of_total + total).sum()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """See ``Function``."""
        (x, of_x, total, of_total), (matrix, of) = ctx.saved_tensors, ctx.matrices
        gradient_of_x = torch.zeros_like(x)
        sums = matrix.no_gradients()
        for rows in matrix.slabs():
            weights = matrix.rows(rows)
            part = (linear(x, weights) - total[:, None]).exp_()
            part -= (linear(of_x, of.rows(rows)) - of_total[:, None]).exp_()
            part *= gradient
            gradient_of_x += part @ weights
            if sums:
                matrix.add_gradients(sums, rows, weights, part.T @ x)
        return gradient_of_x, None, None, None, *sums
