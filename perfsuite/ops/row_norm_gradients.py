"""Gradients of the norms of rows as functions."""

from __future__ import annotations

import torch

from perfsuite.dispatch import fastest
from perfsuite.ops.row_norms import layer_number


def layer_norm_backward(
    dy: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    *,
    out: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(dx, dweight, dbias) of layer_norm(x, weight, bias) for the gradient dy[..., cols] of its output."""
    dx, dweight, dbias = fastest("layer_norm_backward")(dy.contiguous(), x.contiguous(), weight, out=out)
    return dx, dweight, dbias


def rms_norm_backward(
    dy: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, *, out: tuple[torch.Tensor, torch.Tensor] | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """(dx, dweight) of rms_norm(x, weight) for the gradient dy[..., cols] of its output."""
    dx, dweight = fastest("rms_norm_backward")(dy.contiguous(), x.contiguous(), weight, out=out)
    return dx, dweight


def simple_rms_norm_backward(dy: torch.Tensor, x: torch.Tensor, *, out: torch.Tensor | None = None) -> torch.Tensor:
    """The gradient of simple_rms_norm(x) for the gradient dy[..., cols] of its output."""
    answer: torch.Tensor = fastest("simple_rms_norm_backward")(dy.contiguous(), x.contiguous(), out=out)
    return answer


def crms_norm_backward(dy: torch.Tensor, x: torch.Tensor, *, out: torch.Tensor | None = None) -> torch.Tensor:
    """The gradient of crms_norm(x) for the gradient dy[..., cols] of its output."""
    answer: torch.Tensor = fastest("crms_norm_backward")(dy.contiguous(), x.contiguous(), out=out)
    return answer


def l1_norm_backward(
    dy: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    *,
    out: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(dx, dweight, dbias) of l1_norm(x, weight, bias) for the gradient dy[..., cols] of its output."""
    dx, dweight, dbias = fastest("l1_norm_backward")(dy.contiguous(), x.contiguous(), weight, out=out)
    return dx, dweight, dbias


def scaled_layer_norm_backward(
    dy: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    layer: int,
    *,
    out: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(dx, dweight, dbias) of scaled_layer_norm(x, weight, bias, layer) for the gradient dy of its output."""
    kernel = fastest("scaled_layer_norm_backward")
    dx, dweight, dbias = kernel(dy.contiguous(), x.contiguous(), weight, layer_number(layer, x), out=out)
    return dx, dweight, dbias


def time_layer_norm_backward(
    dy: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    *,
    out: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(dx, dweight, dbias) of time_layer_norm(x, weight, bias) for the gradient dy[samples, rows, cols] of its output.

    dweight and dbias are those of every sample, [samples, cols].
    """
    dx, dweight, dbias = fastest("time_layer_norm_backward")(dy.contiguous(), x.contiguous(), weight, out=out)
    return dx, dweight, dbias


def add_layer_norm_backward(
    dy: torch.Tensor,
    dh: torch.Tensor,
    h: torch.Tensor,
    weight: torch.Tensor,
    *,
    out: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(dx, dweight, dbias) of (y, h) = add_layer_norm(x, residual, weight, bias) for the gradients of y and h.

    The residual's gradient is dx too.
    """
    kernel = fastest("add_layer_norm_backward")
    dx, dweight, dbias = kernel(dy.contiguous(), dh.contiguous(), h.contiguous(), weight, out=out)
    return dx, dweight, dbias


def add_rms_norm_backward(
    dy: torch.Tensor,
    dh: torch.Tensor,
    h: torch.Tensor,
    weight: torch.Tensor,
    *,
    out: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(dx, dweight) of (y, h) = add_rms_norm(x, residual, weight) for the gradients of y and h.

    The residual's gradient is dx too.
    """
    dx, dweight = fastest("add_rms_norm_backward")(dy.contiguous(), dh.contiguous(), h.contiguous(), weight, out=out)
    return dx, dweight
