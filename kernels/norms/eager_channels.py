"""The norms of images in PyTorch, eagerly: the functions that its own modules and autograd call."""

from __future__ import annotations

from collections.abc import Callable

import torch

from perfsuite.kernel import Config, Kernel, Run, Tensors
from perfsuite.op import Op, Workload

from .channel_formulas import groups

_aten = torch.ops.aten
_WANTED = [True, True, True]


def _batch_norm(inputs: Tensors, op: Op, workload: Workload) -> Tensors:
    y, mean, rstd, *following = _aten._native_batch_norm_legit_functional(
        *inputs, True, op.attribute("momentum"), op.attribute("eps")
    )
    return y, mean, rstd, *following


def _batch_norm_inference(inputs: Tensors, op: Op, workload: Workload) -> Tensors:
    x, weight, bias, mean, var = inputs
    return (torch.nn.functional.batch_norm(x, mean, var, weight, bias, eps=op.attribute("eps")),)


def _group_norm(inputs: Tensors, op: Op, workload: Workload) -> Tensors:
    answer: Tensors = _aten.native_group_norm(*inputs, *_image(workload), groups(workload), op.attribute("eps"))
    return answer


def _batch_norm_backward(inputs: Tensors, op: Op, workload: Workload) -> Tensors:
    dy, x, mean, rstd, weight = inputs
    gradients: Tensors = _aten.native_batch_norm_backward(dy, x, weight, None, None, mean, rstd, True, 0.0, _WANTED)
    return gradients


def _batch_norm_inference_backward(inputs: Tensors, op: Op, workload: Workload) -> Tensors:
    dy, x, mean, var, weight = inputs
    gradients: Tensors = _aten.native_batch_norm_backward(
        dy, x, weight, mean, var, None, None, False, op.attribute("eps"), _WANTED
    )
    return gradients


def _group_norm_backward(inputs: Tensors, op: Op, workload: Workload) -> Tensors:
    gradients: Tensors = _aten.native_group_norm_backward(*inputs, *_image(workload), groups(workload), _WANTED)
    return gradients


def _image(workload: Workload) -> tuple[int, int, int]:
    return workload["n"], workload["c"], workload["h"] * workload["w"]


_COMPUTE: dict[str, Callable[[Tensors, Op, Workload], Tensors]] = {
    "batch_norm": _batch_norm,
    "batch_norm_inference": _batch_norm_inference,
    "group_norm": _group_norm,
    "instance_norm": _group_norm,
    "batch_norm_backward": _batch_norm_backward,
    "batch_norm_inference_backward": _batch_norm_inference_backward,
    "group_norm_backward": _group_norm_backward,
    "instance_norm_backward": _group_norm_backward,
}


def build(op: Op, workload: Workload, config: Config) -> Run:
    compute = _COMPUTE[op.name.removesuffix("_nhwc")]

    def run(inputs: Tensors, outputs: Tensors) -> Tensors:
        with torch.no_grad():
            return compute(inputs, op, workload)

    return run


KERNEL = Kernel(
    ops=tuple(name + suffix for suffix in ("", "_nhwc") for name in _COMPUTE), build=build, device="any", default=True
)
