"""The row norms as formulas: called with float64 tensors they define the ops."""

from __future__ import annotations

import torch


def layer_norm(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float) -> torch.Tensor:
    """y = weight (x - mean) / sqrt(var + eps) + bias, var without Bessel's correction (Ba et al. 2016)."""
    centred = x - x.mean(-1, keepdim=True)
    return weight * centred * (centred.square().mean(-1, keepdim=True) + eps).rsqrt() + bias


def simple_rms_norm(x: torch.Tensor, eps: float) -> torch.Tensor:
    """y = x / sqrt(mean(x^2) + eps): RMSNorm without a gain (TransNormerLLM, Qin et al. 2023)."""
    return x * (x.square().mean(-1, keepdim=True) + eps).rsqrt()


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """y = weight x / sqrt(mean(x^2) + eps): Zhang and Sennrich 2019, eps inside the root as in Llama."""
    return weight * simple_rms_norm(x, eps)


def crms_norm(x: torch.Tensor, eps: float) -> torch.Tensor:
    """y = x / sqrt((sum(x^2) + sum(x)^2) / (cols + 1) + eps): compressed RMSNorm (Jiang et al. 2023).

    That is the RMSNorm of a row with one more element, which makes the sum zero; it need not be stored.
    """
    square = x.square().sum(-1, keepdim=True) + x.sum(-1, keepdim=True).square()
    return x * (square / (x.shape[-1] + 1) + eps).rsqrt()


def l1_norm(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float, kappa: float) -> torch.Tensor:
    """y = weight (x - mean) / (kappa mean|x - mean| + eps) + bias (Hoffer et al. 2018; ShiftQuant, Guo et al. 2024).

    kappa = sqrt(pi/2) makes the divisor the standard deviation where the row is Gaussian.
    """
    centred = x - x.mean(-1, keepdim=True)
    return weight * centred / (kappa * centred.abs().mean(-1, keepdim=True) + eps) + bias


def add_layer_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """h = x + residual, y = layer_norm(h): y is of the unrounded sum, h is rounded only where it is stored."""
    h = x + residual
    return layer_norm(h, weight, bias, eps), h


def add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """h = x + residual, y = rms_norm(h): y is of the unrounded sum, h is rounded only where it is stored."""
    h = x + residual
    return rms_norm(h, weight, eps), h


def rms_norm_int8(x: torch.Tensor, weight: torch.Tensor, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    """q = round(y / scale), half to even, of y = rms_norm(x), and scale[rows] = max|y| / 127, 2^-23 at least.

    Dynamic quantisation per token, as in W8A8 serving. A row with NaN or infinity has q = 0 and the scale NaN.
    """
    y = rms_norm(x, weight, eps)
    scale = (y.abs().amax(-1, keepdim=True) / 127.0).clamp_min(2.0**-23)
    return (y / scale).round().nan_to_num(0.0), scale.squeeze(-1)


def rms_norm_fp8(x: torch.Tensor, weight: torch.Tensor, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    """q = y / scale of y = rms_norm(x), as yet unrounded, and scale[rows] = max|y| / 448, 2^-9 / 448 at least.

    448 is the largest number of e4m3 (Micikevicius et al. 2022), 2^-9 the least. A row with NaN or infinity is NaN.
    """
    y = rms_norm(x, weight, eps)
    scale = (y.abs().amax(-1, keepdim=True) / 448.0).clamp_min(2.0**-9 / 448.0)
    return y / scale, scale.squeeze(-1)


def scaled_layer_norm(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, layer: torch.Tensor, eps: float
) -> torch.Tensor:
    """y = layer_norm(x) / sqrt(layer), layers being counted from 1: LayerNorm Scaling (Sun et al. 2025)."""
    return layer_norm(x, weight, bias, eps) * layer.to(x.dtype).rsqrt()


def time_layer_norm(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float) -> torch.Tensor:
    """LayerNorm of x[samples, rows, cols] with a weight and a bias of each sample's time (TD-LN, Liu et al. 2024)."""
    return layer_norm(x, weight.unsqueeze(-2), bias.unsqueeze(-2), eps)


def layer_norm_backward(
    dy: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The gradients of x, weight and bias: with g = dy weight, r = 1 / sqrt(var + eps) and n = (x - mean) r,
    dx = r (g - mean(g) - n mean(g n)), dweight = sum(dy n), dbias = sum(dy) over the rows.
    """
    centred = x - x.mean(-1, keepdim=True)
    scale = (centred.square().mean(-1, keepdim=True) + eps).rsqrt()
    g, normal = dy * weight, centred * scale
    dx = scale * (g - g.mean(-1, keepdim=True) - normal * (g * normal).mean(-1, keepdim=True))
    return dx, (dy * normal).sum(-2), dy.sum(-2)


def simple_rms_norm_backward(dy: torch.Tensor, x: torch.Tensor, eps: float) -> torch.Tensor:
    """The gradient of x: with r = 1 / sqrt(mean(x^2) + eps) and n = x r, dx = r (dy - n mean(dy n))."""
    scale = (x.square().mean(-1, keepdim=True) + eps).rsqrt()
    normal = x * scale
    return scale * (dy - normal * (dy * normal).mean(-1, keepdim=True))


def rms_norm_backward(
    dy: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradients of x and weight: dx that of simple_rms_norm for dy weight, dweight = sum(dy n) over the rows."""
    return simple_rms_norm_backward(dy * weight, x, eps), (dy * simple_rms_norm(x, eps)).sum(-2)


def crms_norm_backward(dy: torch.Tensor, x: torch.Tensor, eps: float) -> torch.Tensor:
    """The gradient of x: dx = r dy - r^3 (x + sum(x)) sum(dy x) / (cols + 1), with y = x r."""
    total, length = x.sum(-1, keepdim=True), x.shape[-1] + 1
    scale = ((x.square().sum(-1, keepdim=True) + total.square()) / length + eps).rsqrt()
    return scale * dy - scale**3 / length * (x + total) * (dy * x).sum(-1, keepdim=True)


def l1_norm_backward(
    dy: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, eps: float, kappa: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The gradients of x, weight and bias: with g = dy weight, d = kappa mean|x - mean| + eps, n = (x - mean) / d and
    q = sign(x - mean), dx = (g - mean(g) - kappa (q - mean(q)) mean(g n)) / d, dweight and dbias as of layer_norm.
    """
    centred = x - x.mean(-1, keepdim=True)
    divisor = kappa * centred.abs().mean(-1, keepdim=True) + eps
    g, normal, side = dy * weight, centred / divisor, centred.sign()
    bend = kappa * (g * normal).mean(-1, keepdim=True)
    dx = (g - g.mean(-1, keepdim=True) - bend * (side - side.mean(-1, keepdim=True))) / divisor
    return dx, (dy * normal).sum(-2), dy.sum(-2)


def add_layer_norm_backward(
    dy: torch.Tensor, dh: torch.Tensor, h: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The gradients of x (which is that of the residual too), weight and bias, from those of both outputs."""
    dx, dweight, dbias = layer_norm_backward(dy, h, weight, eps)
    return dx + dh, dweight, dbias


def add_rms_norm_backward(
    dy: torch.Tensor, dh: torch.Tensor, h: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradients of x (which is that of the residual too) and weight, from those of both outputs."""
    dx, dweight = rms_norm_backward(dy, h, weight, eps)
    return dx + dh, dweight


def scaled_layer_norm_backward(
    dy: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, layer: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The gradients of x, weight and bias: those of layer_norm for dy / sqrt(layer)."""
    return layer_norm_backward(dy * layer.to(dy.dtype).rsqrt(), x, weight, eps)


def time_layer_norm_backward(
    dy: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The gradients of x, weight[samples, cols] and bias[samples, cols]: those of layer_norm, sample by sample."""
    return layer_norm_backward(dy, x, weight.unsqueeze(-2), eps)
