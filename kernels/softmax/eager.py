"""PyTorch as it is, writing into the given output."""

from __future__ import annotations

from collections.abc import Callable

import torch

from perfsuite.kernel import Config, Kernel, Run, Tensors
from perfsuite.op import Op, Workload


def _softmax(x: torch.Tensor, y: torch.Tensor) -> None:
    torch.softmax(x, -1, out=y)


def _masked_softmax(x: torch.Tensor, mask: torch.Tensor, y: torch.Tensor, scale: float) -> None:
    """In f32, as models do it: 16 bits would round scale * x + mask before the exponential."""
    y.copy_(torch.add(mask.float(), x.float(), alpha=scale).softmax(-1))


def _log_softmax(x: torch.Tensor, y: torch.Tensor) -> None:
    torch.log_softmax(x, -1, out=y)


def _softmax_backward(y: torch.Tensor, dy: torch.Tensor, dx: torch.Tensor) -> None:
    torch.ops.aten._softmax_backward_data.out(dy, y, -1, y.dtype, grad_input=dx)


def _masked_softmax_backward(y: torch.Tensor, dy: torch.Tensor, dx: torch.Tensor, scale: float) -> None:
    _softmax_backward(y, dy, dx)
    dx.mul_(scale)


def _cross_entropy(
    logits: torch.Tensor,
    labels: torch.Tensor,
    loss: torch.Tensor,
    lse: torch.Tensor,
    *,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
) -> None:
    """As F.cross_entropy, through log_softmax, which gives the log-sum-exp as well.

    At 256x50257 f32 that takes 8.1 times a copy, by logsumexp 10.8; F.cross_entropy, which has no such output, 5.9.
    """
    kept, logits = labels != ignore_index, logits.float()
    shares = logits.log_softmax(-1)
    lse.copy_(torch.where(kept, logits.amax(-1) - shares.amax(-1), 0.0))
    row = shares.gather(-1, torch.where(kept, labels, 0).unsqueeze(-1)).squeeze(-1).mul_(label_smoothing - 1.0)
    if label_smoothing:
        row.sub_(shares.mean(-1), alpha=label_smoothing)
    if z_loss:
        row.add_(lse.square(), alpha=z_loss)
    loss.copy_(torch.where(kept, row, 0.0).sum() / kept.sum())


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
    weight, lse = (dloss / kept.sum()).expand(len(labels), 1), lse.unsqueeze(-1)
    gradient = dlogits if dlogits.dtype == torch.float32 else torch.empty_like(dlogits, dtype=torch.float32)
    torch.sub(logits, lse, out=gradient).exp_().mul_(weight * (1.0 + 2.0 * z_loss * lse))
    if label_smoothing:
        gradient.sub_(weight * (label_smoothing / logits.shape[-1]))
    gradient.scatter_add_(-1, torch.where(kept, labels, 0).unsqueeze(-1), weight * (label_smoothing - 1.0))
    gradient[~kept] = 0.0
    if gradient is not dlogits:
        dlogits.copy_(gradient)


def _log_softmax_backward(y: torch.Tensor, dy: torch.Tensor, dx: torch.Tensor) -> None:
    torch.ops.aten._log_softmax_backward_data.out(dy, y, -1, y.dtype, out=dx)


_COMPUTE: dict[str, Callable[..., None]] = {
    "softmax": _softmax,
    "log_softmax": _log_softmax,
    "masked_softmax": _masked_softmax,
    "softmax_backward": _softmax_backward,
    "masked_softmax_backward": _masked_softmax_backward,
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
