"""PyTorch as it is, writing into the given output; the cross-entropy from its log-sum-exp, which is an output too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from perfsuite.kernel import Config, Kernel, Run, Tensors
from perfsuite.op import Op, Workload

from .losses import cross_entropy


def _softmax(x: torch.Tensor, y: torch.Tensor) -> None:
    torch.softmax(x, -1, out=y)


def _masked_softmax(x: torch.Tensor, mask: torch.Tensor, y: torch.Tensor, scale: float) -> None:
    """In f32, as models do it: 16 bits would round scale * x + mask before the exponential."""
    y.copy_(torch.add(mask.float(), x.float(), alpha=scale).softmax(-1))


def _log_softmax(x: torch.Tensor, y: torch.Tensor) -> None:
    torch.log_softmax(x, -1, out=y)


def _softmax_backward(y: torch.Tensor, dy: torch.Tensor, dx: torch.Tensor) -> None:
    torch.ops.aten._softmax_backward_data.out(dy, y, -1, y.dtype, grad_input=dx)


def _cross_entropy(
    logits: torch.Tensor, labels: torch.Tensor, loss: torch.Tensor, lse: torch.Tensor, **attributes: Any
) -> None:
    for output, answer in zip((loss, lse), cross_entropy(logits.float(), labels, **attributes)):
        output.copy_(answer)


def _cross_entropy_backward(
    logits: torch.Tensor,
    labels: torch.Tensor,
    lse: torch.Tensor,
    dloss: torch.Tensor,
    dlogits: torch.Tensor,
    *,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
) -> None:
    kept = labels != ignore_index
    weight = (dloss / kept.sum()).expand(len(labels), 1)
    gradient = logits.float().sub(lse.unsqueeze(-1)).exp_().mul_(weight * (1.0 + 2.0 * z_loss * lse.unsqueeze(-1)))
    if label_smoothing:
        gradient.sub_(weight * (label_smoothing / logits.shape[-1]))
    gradient.scatter_add_(-1, torch.where(kept, labels, 0).unsqueeze(-1), weight * (label_smoothing - 1.0))
    gradient[~kept] = 0.0
    dlogits.copy_(gradient)


def _log_softmax_backward(y: torch.Tensor, dy: torch.Tensor, dx: torch.Tensor) -> None:
    torch.ops.aten._log_softmax_backward_data.out(dy, y, -1, y.dtype, out=dx)


_COMPUTE: dict[str, Callable[..., None]] = {
    "softmax": _softmax,
    "log_softmax": _log_softmax,
    "masked_softmax": _masked_softmax,
    "softmax_backward": _softmax_backward,
    "log_softmax_backward": _log_softmax_backward,
    "cross_entropy": _cross_entropy,
    "cross_entropy_backward": _cross_entropy_backward,
    "cross_entropy_smoothed": _cross_entropy,
    "cross_entropy_smoothed_backward": _cross_entropy_backward,
}


def build(op: Op, workload: Workload, config: Config) -> Run:
    compute, attributes = _COMPUTE[op.name], dict(op.attributes)

    def run(inputs: Tensors, outputs: Tensors) -> Tensors:
        compute(*inputs, *outputs, **attributes)
        return outputs

    return run


KERNEL = Kernel(ops=tuple(_COMPUTE), build=build, device="any", default=True)
