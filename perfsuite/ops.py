"""The ops as functions: the fastest kernel that is known for these shapes on this machine, or eager where none is.

All run without gradients. `out` takes tensors to write into.
"""

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


def layer_norm(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, *, out: torch.Tensor | None = None
) -> torch.Tensor:
    """Layer normalisation of x[..., cols] over its last dimension with eps 1e-5; weight and bias have shape [cols]."""
    answer: torch.Tensor = fastest("layer_norm")(x.contiguous(), weight, bias, out=out)
    return answer


def rms_norm(x: torch.Tensor, weight: torch.Tensor, *, out: torch.Tensor | None = None) -> torch.Tensor:
    """Root-mean-square normalisation of x[..., cols] over its last dimension; weight has shape [cols]."""
    answer: torch.Tensor = fastest("rms_norm")(x.contiguous(), weight, out=out)
    return answer


def add_rms_norm(
    x: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    *,
    out: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(rms_norm(x + residual) * weight, x + residual) of [..., cols] tensors, in one pass where a kernel fuses it."""
    y, summed = fastest("add_rms_norm")(x.contiguous(), residual.contiguous(), weight, out=out)
    return y, summed


def int8_linear(
    x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, *, out: torch.Tensor | None = None
) -> torch.Tensor:
    """x[..., k] times weight[n, k] (int8, scaled by scale[n]) with x quantised row by row to int8."""
    answer: torch.Tensor = fastest("int8_linear")(x.contiguous(), weight, scale, out=out)
    return answer
