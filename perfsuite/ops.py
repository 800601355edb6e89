"""The ops as functions: the fastest kernel that is known for these shapes on this machine, or eager where none is.

All run without gradients. `out` takes tensors to write into.
"""

from __future__ import annotations

from typing import Any

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


def simple_rms_norm(x: torch.Tensor, *, out: torch.Tensor | None = None) -> torch.Tensor:
    """Root-mean-square normalisation of x[..., cols] over its last dimension, without a gain."""
    answer: torch.Tensor = fastest("simple_rms_norm")(x.contiguous(), out=out)
    return answer


def crms_norm(x: torch.Tensor, *, out: torch.Tensor | None = None) -> torch.Tensor:
    """Compressed RMSNorm (Jiang et al. 2023) of x[..., cols], whose rows lack an element that makes the sum zero."""
    answer: torch.Tensor = fastest("crms_norm")(x.contiguous(), out=out)
    return answer


def l1_norm(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, *, out: torch.Tensor | None = None
) -> torch.Tensor:
    """LayerNorm of x[..., cols] with sqrt(pi/2) times the mean distance from the mean for the standard deviation."""
    answer: torch.Tensor = fastest("l1_norm")(x.contiguous(), weight, bias, out=out)
    return answer


def scaled_layer_norm(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, layer: int, *, out: torch.Tensor | None = None
) -> torch.Tensor:
    """layer_norm(x[..., cols]) / sqrt(layer): LayerNorm Scaling, layers being counted from 1.

    ValueError for a layer below 1.
    """
    number = _layer(layer, x)
    answer: torch.Tensor = fastest("scaled_layer_norm")(x.contiguous(), weight, bias, number, out=out)
    return answer


def _layer(number: int, x: torch.Tensor) -> torch.Tensor:
    if number < 1:
        raise ValueError(f"layer={number}, but layers are counted from 1")
    return torch.tensor(number, device=x.device)


def time_layer_norm(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, *, out: torch.Tensor | None = None
) -> torch.Tensor:
    """LayerNorm of x[samples, rows, cols] whose weight[samples, cols] and bias[samples, cols] belong to times.

    Either is s p + (1 - s) q of two learnt vectors p and q with s = sigmoid(t (w + 1) + b), t being a sample's time
    (TD-LN of DiMR, Liu et al. 2024): a few elements, which a step computes once for all layers.
    """
    answer: torch.Tensor = fastest("time_layer_norm")(x.contiguous(), weight, bias, out=out)
    return answer


def add_layer_norm(
    x: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    *,
    out: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(layer_norm(x + residual), x + residual) of [..., cols] tensors, in one pass where a kernel fuses it."""
    y, summed = fastest("add_layer_norm")(x.contiguous(), residual.contiguous(), weight, bias, out=out)
    return y, summed


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


def rms_norm_int8(
    x: torch.Tensor, weight: torch.Tensor, *, out: tuple[torch.Tensor, torch.Tensor] | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """(q, scale): rms_norm(x[..., cols], weight) as int8 with a scale for each row, scale[...] in f32.

    A row with NaN or infinity has the scale NaN and zeros.
    """
    q, scale = fastest("rms_norm_int8")(x.contiguous(), weight, out=out)
    return q, scale


def rms_norm_fp8(
    x: torch.Tensor, weight: torch.Tensor, *, out: tuple[torch.Tensor, torch.Tensor] | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """(q, scale): rms_norm(x[..., cols], weight) as float8_e4m3fn with a scale for each row, scale[...] in f32.

    The largest magnitude of a row becomes 448. A row with NaN or infinity is NaN, and so is its scale.
    """
    q, scale = fastest("rms_norm_fp8")(x.contiguous(), weight, out=out)
    return q, scale


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
    dx, dweight, dbias = kernel(dy.contiguous(), x.contiguous(), weight, _layer(layer, x), out=out)
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


def int8_linear(
    x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, *, out: torch.Tensor | None = None
) -> torch.Tensor:
    """x[..., k] times weight[n, k] (int8, scaled by scale[n]) with x quantised row by row to int8."""
    answer: torch.Tensor = fastest("int8_linear")(x.contiguous(), weight, scale, out=out)
    return answer
