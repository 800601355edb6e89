"""`torch.compile`: Inductor's C++ code, which writes straight into the given output.

Each formula becomes one loop over the rows with a buffer of one row; only the maximum and the sum of each row are
allocated besides. The copy into the output is part of its last pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from perfsuite.kernel import Config, Dimension, Kernel, Run, Scale, Space, Tensors
from perfsuite.machine import Machine
from perfsuite.op import Op, Workload
from perfsuite.toolchain.inductor import compiled, simd_widths
from perfsuite.toolchain.native import missing_compiler

from .losses import cross_entropy, cross_entropy_backward

_Formula = Callable[..., None]


def _library(x: torch.Tensor, y: torch.Tensor) -> None:
    y.copy_(torch.softmax(x, -1))


def _reciprocal(x: torch.Tensor, y: torch.Tensor) -> None:
    wide = x.float()
    e = (wide - wide.amax(-1, keepdim=True)).exp()
    y.copy_(e * e.sum(-1, keepdim=True).reciprocal())


def _base_two(x: torch.Tensor, y: torch.Tensor) -> None:
    wide = x.float()
    e = ((wide - wide.amax(-1, keepdim=True)) * math.log2(math.e)).exp2()
    y.copy_(e * e.sum(-1, keepdim=True).reciprocal())


def _log_library(x: torch.Tensor, y: torch.Tensor) -> None:
    y.copy_(torch.log_softmax(x, -1))


def _masked_reciprocal(x: torch.Tensor, mask: torch.Tensor, y: torch.Tensor, scale: float) -> None:
    _reciprocal(x.float() * scale + mask.float(), y)


def _masked_library(x: torch.Tensor, mask: torch.Tensor, y: torch.Tensor, scale: float) -> None:
    _library(x.float() * scale + mask.float(), y)


def _backward(y: torch.Tensor, dy: torch.Tensor, dx: torch.Tensor, scale: float = 1.0) -> None:
    y, dy = y.float(), dy.float()
    dx.copy_(scale * y * (dy - (y * dy).sum(-1, keepdim=True)))


def _log_backward(y: torch.Tensor, dy: torch.Tensor, dx: torch.Tensor) -> None:
    y, dy = y.float(), dy.float()
    dx.copy_(dy - y.exp() * dy.sum(-1, keepdim=True))


def _cross_entropy(
    logits: torch.Tensor, labels: torch.Tensor, loss: torch.Tensor, lse: torch.Tensor, **attributes: Any
) -> None:
    for output, answer in zip((loss, lse), cross_entropy(logits.float(), labels, **attributes)):
        output.copy_(answer)


def _cross_entropy_backward(
    logits: torch.Tensor,
    labels: torch.Tensor,
    lse: torch.Tensor,
    dloss: torch.Tensor,
    dlogits: torch.Tensor,
    **attributes: Any,
) -> None:
    dlogits.copy_(cross_entropy_backward(logits.float(), labels, lse, dloss, **attributes))


# The library's softmax divides every element by the sum: a product with its reciprocal took 0.88 of the time at
# 1024x1024 f32; 2^x instead of e^x 1.2 at that shape, but down to 0.4 at 64x50257 (torch 2.13, one AVX-512 core).
FORMULAS: dict[str, dict[str, _Formula]] = {
    "softmax": {"reciprocal": _reciprocal, "base_two": _base_two, "library": _library},
    "log_softmax": {"library": _log_library},
    "masked_softmax": {"reciprocal": _masked_reciprocal, "library": _masked_library},
    "softmax_backward": {"library": _backward},
    "masked_softmax_backward": {"library": _backward},
    "log_softmax_backward": {"library": _log_backward},
    "cross_entropy": {"library": _cross_entropy},
    "cross_entropy_backward": {"library": _cross_entropy_backward},
    "cross_entropy_smoothed": {"library": _cross_entropy},
    "cross_entropy_smoothed_backward": {"library": _cross_entropy_backward},
}


def supports(workload: Workload, machine: Machine) -> str | None:
    return missing_compiler()


def space(workload: Workload, machine: Machine) -> Space:
    widths = Dimension("simdlen", simd_widths(machine), Scale.CATEGORICAL)
    return Space((widths, Dimension("formula", tuple(FORMULAS[workload.op]), Scale.CATEGORICAL)))


def build(op: Op, workload: Workload, config: Config) -> Run:
    call = compiled(FORMULAS[op.name][config["formula"]], {"cpp.simdlen": config["simdlen"]})

    attributes = dict(op.attributes)

    def run(inputs: Tensors, outputs: Tensors) -> Tensors:
        with torch.no_grad():
            call(*inputs, *outputs, **attributes)
        return outputs

    return run


KERNEL = Kernel(ops=tuple(FORMULAS), build=build, space=space, supports=supports)
