"""The blocks as plain PyTorch, batch norm folded into the weights: the references in float64, the eager kernel else.

x is (n, c, h, w) in channels_last memory. Weights of 1x1 convolutions are matrices (out, in), of depthwise ones
(channels, k, k). Padding keeps the size. Every function ends with the addition of x.
"""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor


def _pointwise(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.conv2d(x, weight[:, :, None, None], bias)


def _depthwise(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.conv2d(x, weight[:, None], bias, padding=weight.shape[-1] // 2, groups=weight.shape[0])


def mbconv(x: Tensor, expand: Tensor, b1: Tensor, depthwise: Tensor, b2: Tensor, project: Tensor, b3: Tensor) -> Tensor:
    """Inverted bottleneck (Sandler et al. 2018, arXiv 1801.04381) with ReLU and without squeeze-and-excitation."""
    hidden = _pointwise(x, expand, b1).relu_()
    hidden = _depthwise(hidden, depthwise, b2).relu_()
    return _pointwise(hidden, project, b3).add_(x)


def convnext(
    x: Tensor,
    depthwise: Tensor,
    b1: Tensor,
    gain: Tensor,
    shift: Tensor,
    expand: Tensor,
    b2: Tensor,
    project: Tensor,
    b3: Tensor,
    scale: Tensor,
    *,
    eps: float,
) -> Tensor:
    """ConvNeXt block (Liu et al. 2022, arXiv 2201.03545): depthwise, layer norm over channels, MLP, layer scale."""
    pixels = _depthwise(x, depthwise, b1).permute(0, 2, 3, 1)
    pixels = F.layer_norm(pixels, gain.shape, gain, shift, eps)
    pixels = F.linear(F.gelu(F.linear(pixels, expand, b2)), project, b3) * scale
    return pixels.permute(0, 3, 1, 2).add_(x)


def convfirst(
    x: Tensor, grouped: Tensor, b1: Tensor, expand: Tensor, b2: Tensor, project: Tensor, b3: Tensor
) -> Tensor:
    """ConvFirst block (Lavin 2024, arXiv 2404.03617): grouped convolution, then an MLP with SiLU."""
    k, width = grouped.shape[-1], grouped.shape[1]
    mixed = F.conv2d(x, grouped, b1, padding=k // 2, groups=grouped.shape[0] // width)
    return _pointwise(F.silu(_pointwise(mixed, expand, b2), inplace=True), project, b3).add_(x)


def basic_block(x: Tensor, weight1: Tensor, b1: Tensor, weight2: Tensor, b2: Tensor) -> Tensor:
    """Basic residual block (He et al. 2015, arXiv 1512.03385): two convolutions, ReLU after each."""
    padding = weight1.shape[-1] // 2
    hidden = F.conv2d(x, weight1, b1, padding=padding).relu_()
    return F.conv2d(hidden, weight2, b2, padding=padding).add_(x).relu_()


BLOCKS: dict[str, Callable[..., Tensor]] = {
    "mbconv": mbconv,
    "convnext": convnext,
    "convfirst": convfirst,
    "basic_block": basic_block,
}
