"""PyTorch's own layer_norm and rms_norm, eagerly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from perfsuite.kernel import Config, Kernel, Run, Tensors
from perfsuite.op import Op, Workload


def _layer_norm(inputs: Tensors, eps: float) -> Tensors:
    x, weight, bias = inputs
    return (F.layer_norm(x, weight.shape, weight, bias, eps),)


def _rms_norm(inputs: Tensors, eps: float) -> Tensors:
    x, weight = inputs
    return (F.rms_norm(x, weight.shape, weight, eps),)


def _add_rms_norm(inputs: Tensors, eps: float) -> Tensors:
    """As models write it: the sum is rounded to its dtype before the norm, one more rounding than the op asks for."""
    x, residual, weight = inputs
    h = x + residual
    return F.rms_norm(h, weight.shape, weight, eps), h


_COMPUTE: dict[str, Callable[[Tensors, Any], Tensors]] = {
    "layer_norm": _layer_norm,
    "rms_norm": _rms_norm,
    "add_rms_norm": _add_rms_norm,
}


def build(op: Op, workload: Workload, config: Config) -> Run:
    compute, eps = _COMPUTE[op.name], op.attribute("eps")

    def run(inputs: Tensors, outputs: Tensors) -> Tensors:
        with torch.no_grad():
            return compute(inputs, eps)

    return run


KERNEL = Kernel(ops=tuple(_COMPUTE), build=build, device="any", default=True)
