"""Softmax and the losses as functions."""

from __future__ import annotations

import torch

from perfsuite.dispatch import fastest


def softmax(x: torch.Tensor, dim: int = -1, *, out: torch.Tensor | None = None) -> torch.Tensor:
    """Softmax of x over one dimension; any shape, f32, bf16 or f16. ValueError for a dimension that x does not have."""
    return _along("softmax", x, dim, out)


def log_softmax(x: torch.Tensor, dim: int = -1, *, out: torch.Tensor | None = None) -> torch.Tensor:
    """The logarithm of the softmax of x over one dimension, taken as by `softmax`; exact also where that is 0."""
    return _along("log_softmax", x, dim, out)


def _along(op: str, x: torch.Tensor, dim: int, out: torch.Tensor | None) -> torch.Tensor:
    if not -x.dim() <= dim < x.dim():
        raise ValueError(f"{op}: dim={dim}, but x has {x.dim()} dimensions")
    kernel = fastest(op)
    if x.is_contiguous() and dim % x.dim() == x.dim() - 1:
        answer: torch.Tensor = kernel(x, out=out)
        return answer
    # The kernels run along contiguous rows: the dimension is moved to the end and back.
    answer = kernel(x.movedim(dim, -1).contiguous()).movedim(-1, dim)
    return answer.contiguous() if out is None else out.copy_(answer)


def masked_softmax(x: torch.Tensor, mask: torch.Tensor, *, out: torch.Tensor | None = None) -> torch.Tensor:
    """softmax(x / 8 + mask) over the last axis: scores x[..., rows, cols] of heads of 64 columns, mask[rows, cols].

    A row that is masked with -inf throughout becomes NaN, as in PyTorch.
    """
    scores, heads = x.contiguous(), (-1, *x.shape[-2:])
    target = None if out is None else out.view(heads)
    answer: torch.Tensor = fastest("masked_softmax")(scores.view(heads), mask.contiguous(), out=target)
    return answer.view(x.shape) if out is None else out


def masked_softmax_backward(y: torch.Tensor, dy: torch.Tensor, *, out: torch.Tensor | None = None) -> torch.Tensor:
    """The gradient of `masked_softmax` in x, from its output y[..., rows, cols] and the gradient of that."""
    heads = (-1, *y.shape[-2:])
    target = None if out is None else out.view(heads)
    kernel = fastest("masked_softmax_backward")
    answer: torch.Tensor = kernel(y.contiguous().view(heads), dy.contiguous().view(heads), out=target)
    return answer.view(y.shape) if out is None else out


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(loss, lse): the mean cross-entropy of logits[..., cols] with int64 labels[...], and every row's log-sum-exp.

    Both are f32. Rows with the label -100 do not count; their lse is 0. `cross_entropy_backward` needs lse[...].
    """
    loss, lse = fastest("cross_entropy")(logits.contiguous(), labels.contiguous())
    return loss, lse


def cross_entropy_backward(
    logits: torch.Tensor,
    labels: torch.Tensor,
    lse: torch.Tensor,
    dloss: torch.Tensor,
    *,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """The gradient of `cross_entropy` in the logits, given that of the loss: a tensor of shape () in f32."""
    kernel = fastest("cross_entropy_backward")
    answer: torch.Tensor = kernel(logits.contiguous(), labels.contiguous(), lse.contiguous(), dloss, out=out)
    return answer
