"""Convolution and batch norm with frozen statistics as plain PyTorch: the modes of training, and inference.

y = s * (W x - mean) + beta with s = gamma / sqrt(var + eps), per output channel. The references are these functions in
float64, the eager kernel is them in the workload's dtype.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from perfsuite.op import Scalar


def conv_bn(
    x: Tensor, weight: Tensor, gamma: Tensor, beta: Tensor, mean: Tensor, var: Tensor, *, eps: float, stride: int
) -> Tensor:
    z = F.conv2d(x, weight, None, stride, weight.shape[-1] // 2)
    return F.batch_norm(z, mean, var, gamma, beta, False, 0.0, eps)


def folded(
    weight: Tensor, gamma: Tensor, beta: Tensor, mean: Tensor, var: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Weight and bias of the convolution that is equal to convolution and batch norm, and the scale s, in f32 or f64.

    Exact with zero padding, because the batch norm comes after the convolution.
    """
    scale = gamma * torch.rsqrt(var + eps)
    return weight * scale.view(-1, 1, 1, 1), beta - scale * mean, scale


def tune(
    x: Tensor, weight: Tensor, gamma: Tensor, beta: Tensor, mean: Tensor, var: Tensor, *, eps: float, stride: int
) -> Tensor:
    """Tune mode (You et al. 2023, arXiv 2305.11624): the folded convolution, folded anew in every forward pass.

    Autograd saves x and weight-sized tensors only; Eval mode (`conv_bn`) saves the convolution's output as well.
    """
    scaled, bias, _ = folded(weight, gamma, beta, mean, var, eps)
    return deploy(x, scaled.to(weight.dtype), bias.to(weight.dtype), stride=stride)


def deploy(x: Tensor, weight: Tensor, bias: Tensor, *, stride: int) -> Tensor:
    """Deploy mode: the folded weight and bias are the parameters."""
    return F.conv2d(x, weight, bias, stride, weight.shape[-1] // 2)


EPILOGUES: dict[str, Callable[..., Tensor]] = {
    "conv_bn": lambda y: y,
    "conv_bn_relu": lambda y: y.relu_(),
    "conv_bn_add_relu": lambda y, residual: y.add_(residual).relu_(),
}


def inference(name: str, forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The op `name` of (x, residual if any, *constants) with `forward` for its convolution and batch norm."""
    residuals = int(name == "conv_bn_add_relu")

    def run(x: Tensor, *others: Tensor, **constants: Scalar) -> Tensor:
        return EPILOGUES[name](forward(x, *others[residuals:], **constants), *others[:residuals])

    return run


def step(forward: Callable[..., Tensor], parameters: int) -> Callable[..., tuple[Tensor, ...]]:
    """A training step: y of the forward pass, and the gradients of <y, grad> in x and in the parameters after it."""

    def run(*inputs: Tensor, **constants: Scalar) -> tuple[Tensor, ...]:
        *arguments, grad = inputs
        leaves = [t.detach().requires_grad_() for t in arguments[: 1 + parameters]]
        with torch.enable_grad():
            y = forward(*leaves, *arguments[1 + parameters :], **constants)
        return (y.detach(), *torch.autograd.grad(y, leaves, grad))

    return run


# The forward pass of each mode, and how many parameters follow x: three ops, because what autograd saves differs.
MODES: dict[str, tuple[Callable[..., Tensor], int]] = {
    "conv_bn_eval_step": (conv_bn, 3),
    "conv_bn_tune_step": (tune, 3),
    "conv_bn_deploy_step": (deploy, 2),
}
