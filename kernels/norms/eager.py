"""The row norms in PyTorch, eagerly: its own functions where it has them, else the formula in f32."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from perfsuite.kernel import Config, Kernel, Run, Tensors
from perfsuite.op import Op, Workload

from . import formulas


def _layer_norm(inputs: Tensors, eps: float) -> Tensors:
    x, weight, bias = inputs
    return (F.layer_norm(x, weight.shape, weight, bias, eps),)


def _rms_norm(inputs: Tensors, eps: float) -> Tensors:
    x, weight = inputs
    return (F.rms_norm(x, weight.shape, weight, eps),)


def _simple_rms_norm(inputs: Tensors, eps: float) -> Tensors:
    (x,) = inputs
    return (F.rms_norm(x, x.shape[-1:], None, eps),)


def _crms_norm(inputs: Tensors, eps: float) -> Tensors:
    (x,) = inputs
    return (formulas.crms_norm(x.float(), eps).to(x.dtype),)


def _l1_norm(inputs: Tensors, eps: float, kappa: float) -> Tensors:
    x, weight, bias = inputs
    return (formulas.l1_norm(x.float(), weight, bias, eps, kappa).to(x.dtype),)


def _add_layer_norm(inputs: Tensors, eps: float) -> Tensors:
    """In f32: what a sum that is rounded first has lost, an element near the mean cannot spare."""
    x, residual, weight, bias = inputs
    h = x.float() + residual.float()
    return F.layer_norm(h, weight.shape, weight.float(), bias.float(), eps).to(x.dtype), h.to(x.dtype)


def _add_rms_norm(inputs: Tensors, eps: float) -> Tensors:
    """As models write it: the sum is rounded to its dtype before the norm, one more rounding than the op asks for."""
    x, residual, weight = inputs
    h = x + residual
    return F.rms_norm(h, weight.shape, weight, eps), h


def _rms_norm_int8(inputs: Tensors, eps: float) -> Tensors:
    """As models write it: the norm is rounded to the dtype of x before it is quantised."""
    x, weight = inputs
    y = F.rms_norm(x, weight.shape, weight, eps).float()
    scale = (y.abs().amax(-1, keepdim=True) / 127.0).clamp_min(2.0**-23)
    return (y / scale).round().nan_to_num(0.0).to(torch.int8), scale.squeeze(-1)


def _rms_norm_fp8(inputs: Tensors, eps: float) -> Tensors:
    """As models write it; the cast rounds what the division left above 448 back to it."""
    x, weight = inputs
    y = F.rms_norm(x, weight.shape, weight, eps).float()
    scale = (y.abs().amax(-1, keepdim=True) / 448.0).clamp_min(2.0**-9 / 448.0)
    return (y / scale).to(torch.float8_e4m3fn), scale.squeeze(-1)


def _scaled_layer_norm(inputs: Tensors, eps: float) -> Tensors:
    """In f32, as the output is rounded once."""
    *wide, layer = inputs[0].float(), inputs[1].float(), inputs[2].float(), inputs[3]
    (y,) = _layer_norm(wide, eps)
    return (y.mul_(layer.rsqrt()).to(inputs[0].dtype),)


def _time_layer_norm(inputs: Tensors, eps: float) -> Tensors:
    x, weight, bias = inputs
    normal = F.layer_norm(x.float(), x.shape[-1:], None, None, eps)
    return (torch.addcmul(bias.unsqueeze(1), normal, weight.unsqueeze(1)).to(x.dtype),)


def _layer_norm_backward(inputs: Tensors, eps: float) -> Tensors:
    """Autograd's own function on f32: of 16-bit rows it gives dweight with errors beyond the op's tolerance.

    It wants the statistics, which a training step's forward has saved. Here the forward is called to find them: half of
    the time at 1576x768 f32. torch.var_mean takes several times as long.
    """
    dy, x, weight = (t.float() for t in inputs)
    bias = torch.empty_like(weight)
    _, mean, scale = torch.native_layer_norm(x, weight.shape, None, None, eps)
    gradients = torch.ops.aten.native_layer_norm_backward(
        dy, x, weight.shape, mean, scale, weight, bias, [True, True, True]
    )
    return [gradient.to(inputs[0].dtype) for gradient in gradients]


def _add_layer_norm_backward(inputs: Tensors, eps: float) -> Tensors:
    dy, dh, h, weight = inputs
    dx, dweight, dbias = _layer_norm_backward([dy.float(), h, weight], eps)
    return [gradient.to(dy.dtype) for gradient in (dx.add_(dh), dweight, dbias)]


def _scaled_layer_norm_backward(inputs: Tensors, eps: float) -> Tensors:
    dy, x, weight, layer = inputs
    return [g.to(dy.dtype) for g in _layer_norm_backward([dy.float() * layer.rsqrt(), x, weight], eps)]


def _written_out(formula: Callable[..., Any]) -> Callable[..., Tensors]:
    """The formula in f32: there is no function, and autograd takes as long for the steps of the forward."""

    def compute(inputs: Tensors, **attributes: float) -> Tensors:
        answer = formula(*(t.float() for t in inputs), **attributes)
        return [t.to(inputs[0].dtype) for t in (answer if isinstance(answer, tuple) else (answer,))]

    return compute


_COMPUTE: dict[str, Callable[..., Tensors]] = {
    "layer_norm": _layer_norm,
    "rms_norm": _rms_norm,
    "simple_rms_norm": _simple_rms_norm,
    "crms_norm": _crms_norm,
    "l1_norm": _l1_norm,
    "add_layer_norm": _add_layer_norm,
    "add_rms_norm": _add_rms_norm,
    "rms_norm_int8": _rms_norm_int8,
    "rms_norm_fp8": _rms_norm_fp8,
    "scaled_layer_norm": _scaled_layer_norm,
    "time_layer_norm": _time_layer_norm,
    "layer_norm_backward": _layer_norm_backward,
    "rms_norm_backward": _written_out(formulas.rms_norm_backward),
    "simple_rms_norm_backward": _written_out(formulas.simple_rms_norm_backward),
    "crms_norm_backward": _written_out(formulas.crms_norm_backward),
    "l1_norm_backward": _written_out(formulas.l1_norm_backward),
    "add_layer_norm_backward": _add_layer_norm_backward,
    "add_rms_norm_backward": _written_out(formulas.add_rms_norm_backward),
    "scaled_layer_norm_backward": _scaled_layer_norm_backward,
    "time_layer_norm_backward": _written_out(formulas.time_layer_norm_backward),
}


def build(op: Op, workload: Workload, config: Config) -> Run:
    compute: Callable[..., Tensors] = _COMPUTE[op.name]
    attributes: dict[str, Any] = dict(op.attributes)

    def run(inputs: Tensors, outputs: Tensors) -> Tensors:
        with torch.no_grad():
            return compute(inputs, **attributes)

    return run


KERNEL = Kernel(ops=tuple(_COMPUTE), build=build, device="any", default=True)
