"""Norms of rows as functions; the last dimension is a row."""

from __future__ import annotations

import torch

from perfsuite.dispatch import fastest


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
    number = layer_number(layer, x)
    answer: torch.Tensor = fastest("scaled_layer_norm")(x.contiguous(), weight, bias, number, out=out)
    return answer


def layer_number(number: int, x: torch.Tensor) -> torch.Tensor:
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
