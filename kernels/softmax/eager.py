"""PyTorch as it is, writing into the given output."""

from __future__ import annotations

from collections.abc import Callable

import torch

from perfsuite.kernel import Config, Kernel, Run, Tensors
from perfsuite.op import Op, Workload


def _softmax(x: torch.Tensor, y: torch.Tensor) -> None:
    torch.softmax(x, -1, out=y)


def _log_softmax(x: torch.Tensor, y: torch.Tensor) -> None:
    torch.log_softmax(x, -1, out=y)


def _softmax_backward(y: torch.Tensor, dy: torch.Tensor, dx: torch.Tensor) -> None:
    torch.ops.aten._softmax_backward_data.out(dy, y, -1, y.dtype, grad_input=dx)


def _log_softmax_backward(y: torch.Tensor, dy: torch.Tensor, dx: torch.Tensor) -> None:
    torch.ops.aten._log_softmax_backward_data.out(dy, y, -1, y.dtype, out=dx)


_COMPUTE: dict[str, Callable[..., None]] = {
    "softmax": _softmax,
    "log_softmax": _log_softmax,
    "softmax_backward": _softmax_backward,
    "log_softmax_backward": _log_softmax_backward,
}


def build(op: Op, workload: Workload, config: Config) -> Run:
    compute = _COMPUTE[op.name]

    def run(inputs: Tensors, outputs: Tensors) -> Tensors:
        compute(*inputs, *outputs)
        return outputs

    return run


KERNEL = Kernel(ops=tuple(_COMPUTE), build=build, device="any", default=True)
