"""Norms of images as functions, and their gradients."""

from __future__ import annotations

from typing import Any

import torch

from perfsuite.dispatch import fastest


def batch_norm(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, running_mean: torch.Tensor, running_var: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """(y, mean, rstd, next_mean, next_var) of x[n, c, h, w], contiguous or channels-last, normalised over n, h and w.

    As torch.nn.BatchNorm2d in training, eps 1e-5 and momentum 0.1; what belongs to channels is f32[c]. The gradient,
    `batch_norm_backward`, needs mean and rstd. The running statistics given stay as they are, the next are returned.
    """
    answer: tuple[torch.Tensor, ...] = _of_images("batch_norm", (x,), (weight, bias, running_mean, running_var))
    return answer


def batch_norm_inference(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, mean: torch.Tensor, var: torch.Tensor
) -> torch.Tensor:
    """weight (x - mean) / sqrt(var + 1e-5) + bias of x[n, c, h, w]: `batch_norm` with frozen statistics f32[c]."""
    answer: torch.Tensor = _of_images("batch_norm_inference", (x,), (weight, bias, mean, var))
    return answer


def group_norm(
    x: torch.Tensor, groups: int, weight: torch.Tensor, bias: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(y, mean, rstd) of x[n, c, h, w], each image normalised over the pixels of c / groups channels; eps 1e-5.

    weight and bias are f32[c], mean and rstd f32[n, groups]. ValueError if the channels are not so many equal groups.
    """
    if groups < 1 or x.shape[1] % groups:
        raise ValueError(f"group_norm: {x.shape[1]} channels are not {groups} equal groups; choose a divisor")
    y, mean, rstd = _of_images("group_norm", (x,), (weight, bias), groups=groups)
    return y, mean, rstd


def instance_norm(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(y, mean, rstd) of x[n, c, h, w], each image's channels normalised on their own; mean and rstd are f32[n, c]."""
    y, mean, rstd = _of_images("instance_norm", (x,), (weight, bias))
    return y, mean, rstd


def batch_norm_backward(
    dy: torch.Tensor, x: torch.Tensor, mean: torch.Tensor, rstd: torch.Tensor, weight: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(dx, dweight, dbias) of `batch_norm` for the gradient dy of its y, with the mean and rstd that it returned."""
    dx, dweight, dbias = _of_images("batch_norm_backward", (dy, x), (mean, rstd, weight))
    return dx, dweight, dbias


def batch_norm_inference_backward(
    dy: torch.Tensor, x: torch.Tensor, mean: torch.Tensor, var: torch.Tensor, weight: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(dx, dweight, dbias) of `batch_norm_inference`, whose mean and var are constants."""
    dx, dweight, dbias = _of_images("batch_norm_inference_backward", (dy, x), (mean, var, weight))
    return dx, dweight, dbias


def group_norm_backward(
    dy: torch.Tensor, x: torch.Tensor, mean: torch.Tensor, rstd: torch.Tensor, weight: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(dx, dweight, dbias) of `group_norm`, with the mean and rstd that it returned."""
    dx, dweight, dbias = _of_images("group_norm_backward", (dy, x), (mean, rstd, weight))
    return dx, dweight, dbias


def instance_norm_backward(
    dy: torch.Tensor, x: torch.Tensor, mean: torch.Tensor, rstd: torch.Tensor, weight: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(dx, dweight, dbias) of `instance_norm`, with the mean and rstd that it returned."""
    dx, dweight, dbias = _of_images("instance_norm_backward", (dy, x), (mean, rstd, weight))
    return dx, dweight, dbias


def _of_images(op: str, images: tuple[torch.Tensor, ...], channels: tuple[torch.Tensor, ...], **sizes: Any) -> Any:
    """The op of the last image's layout: channels-last if it is that, and not contiguous as well."""
    last = images[-1].is_contiguous(memory_format=torch.channels_last) and not images[-1].is_contiguous()
    layout = torch.channels_last if last else torch.contiguous_format
    kernel = fastest(f"{op}_nhwc" if last else op)
    return kernel(*(t.contiguous(memory_format=layout) for t in images), *channels, **sizes)
