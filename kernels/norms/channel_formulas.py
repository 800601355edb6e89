"""The norms of images x[n, c, h, w] as formulas: called with float64 tensors they define the ops of both layouts."""

from __future__ import annotations

import torch

from perfsuite.op import Workload

_BATCH = (0, 2, 3)
_Triple = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def batch_norm(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    running_mean: torch.Tensor,
    running_var: torch.Tensor,
    eps: float,
    momentum: float,
) -> tuple[torch.Tensor, ...]:
    """Batch normalisation as in training (Ioffe and Szegedy 2015): (y, mean, rstd, next_mean, next_var).

    Each channel is normalised over n, h and w: y = weight (x - mean) rstd + bias with rstd = 1 / sqrt(var + eps), var
    without Bessel's correction. The next running statistics are (1 - momentum) times those given plus momentum times
    the batch's, whose variance is the unbiased one there, as in PyTorch.
    """
    mean = x.mean(_BATCH)
    centred = x - _over(mean)
    var = centred.square().mean(_BATCH)
    rstd = (var + eps).rsqrt()
    size = x.numel() // x.shape[1]
    unbiased = var * size / (size - 1)
    y = centred * _over(rstd * weight) + _over(bias)
    return y, mean, rstd, _moved(running_mean, mean, momentum), _moved(running_var, unbiased, momentum)


def batch_norm_inference(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, mean: torch.Tensor, var: torch.Tensor, eps: float
) -> torch.Tensor:
    """y = weight (x - mean) / sqrt(var + eps) + bias: batch normalisation with frozen statistics of the channels."""
    return (x - _over(mean)) * _over((var + eps).rsqrt() * weight) + _over(bias)


def group_norm(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float, groups: int) -> _Triple:
    """(y, mean, rstd) of each image's groups of c / groups channels (Wu and He 2018): mean and rstd are [n, groups]."""
    image = (x.shape[0], groups, -1)
    mean = x.reshape(image).mean(-1)
    centred = x.reshape(image) - mean.unsqueeze(-1)
    rstd = (centred.square().mean(-1) + eps).rsqrt()
    normal = (centred * rstd.unsqueeze(-1)).view(x.shape)
    return normal * _over(weight) + _over(bias), mean, rstd


def instance_norm(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float) -> _Triple:
    """(y, mean, rstd) of each image's channels (Ulyanov et al. 2016): group_norm with a channel for each group."""
    return group_norm(x, weight, bias, eps, x.shape[1])


def batch_norm_backward(
    dy: torch.Tensor, x: torch.Tensor, mean: torch.Tensor, rstd: torch.Tensor, weight: torch.Tensor
) -> _Triple:
    """The gradients of x, weight and bias: with g = dy weight and n = (x - mean) rstd,
    dx = rstd (g - mean(g) - n mean(g n)), dweight = sum(dy n), dbias = sum(dy), all over n, h and w.
    """
    normal = (x - _over(mean)) * _over(rstd)
    dweight, dbias = (dy * normal).sum(_BATCH), dy.sum(_BATCH)
    size = x.numel() // x.shape[1]
    dx = _over(rstd * weight) * (dy - _over(dbias / size) - normal * _over(dweight / size))
    return dx, dweight, dbias


def batch_norm_inference_backward(
    dy: torch.Tensor, x: torch.Tensor, mean: torch.Tensor, var: torch.Tensor, weight: torch.Tensor, eps: float
) -> _Triple:
    """The gradients of x, weight and bias with frozen statistics, which are constants: with rstd = 1 / sqrt(var + eps),
    dx = dy weight rstd, dweight = sum(dy (x - mean) rstd), dbias = sum(dy), the sums over n, h and w.
    """
    rstd = (var + eps).rsqrt()
    dweight = (dy * (x - _over(mean)) * _over(rstd)).sum(_BATCH)
    return dy * _over(rstd * weight), dweight, dy.sum(_BATCH)


def group_norm_backward(
    dy: torch.Tensor, x: torch.Tensor, mean: torch.Tensor, rstd: torch.Tensor, weight: torch.Tensor
) -> _Triple:
    """The gradients of x, weight and bias as `batch_norm_backward` has them, but dx from means over a group of channels
    of an image, given mean[n, groups] and rstd[n, groups]; dweight and dbias are sums over n, h and w.
    """
    image = (*mean.shape, -1)
    scale = rstd.unsqueeze(-1)
    normal = (x.reshape(image) - mean.unsqueeze(-1)) * scale
    g = (dy * _over(weight)).reshape(image)
    dx = scale * (g - g.mean(-1, keepdim=True) - normal * (g * normal).mean(-1, keepdim=True))
    return dx.view(x.shape), (dy * normal.view(x.shape)).sum(_BATCH), dy.sum(_BATCH)


def instance_norm_backward(
    dy: torch.Tensor, x: torch.Tensor, mean: torch.Tensor, rstd: torch.Tensor, weight: torch.Tensor
) -> _Triple:
    """`group_norm_backward` with a channel for each group: mean[n, c], rstd[n, c]."""
    return group_norm_backward(dy, x, mean, rstd, weight)


def groups(workload: Workload) -> int:
    """In how many groups an image's channels are normalised; 0 for batch norm."""
    if workload.op.startswith("group_norm"):
        return workload["groups"]
    return workload["c"] if workload.op.startswith("instance_norm") else 0


def undefined(workload: Workload) -> str | None:
    """Why images of such sizes have no norm, or None."""
    least = 2 if workload.op in ("batch_norm", "batch_norm_nhwc") else 1
    of_each = groups(workload)
    if of_each and workload["c"] % of_each:
        return f"{workload['c']} channels are not {of_each} equal groups: choose a divisor of the channels"
    size = workload["h"] * workload["w"] * (1 if of_each else workload["n"])
    if size * workload["c"] == 0 or size < least:
        return f"a channel of {size} elements has no {'variance' if least == 2 else 'mean'}: give it {least} or more"
    return None


def frozen(workload: Workload) -> bool:
    """Whether the statistics of the channels are given, and constants."""
    return workload.op.startswith("batch_norm_inference")


def _over(channels: torch.Tensor) -> torch.Tensor:
    """[c] as [c, 1, 1], to go with [n, c, h, w]."""
    return channels.unsqueeze(-1).unsqueeze(-1)


def _moved(running: torch.Tensor, batch: torch.Tensor, momentum: float) -> torch.Tensor:
    return (1.0 - momentum) * running + momentum * batch
