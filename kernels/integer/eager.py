"""Quantise, torch._int_mm and dequantise, eagerly."""

from __future__ import annotations

import torch

from perfsuite.kernel import Config, Kernel, Run, Tensors
from perfsuite.op import Op, Workload

from .linear import int8_linear, supports


def build(op: Op, workload: Workload, config: Config) -> Run:
    def run(inputs: Tensors, outputs: Tensors) -> Tensors:
        with torch.no_grad():
            return (int8_linear(*inputs),)

    return run


KERNEL = Kernel(ops=("int8_linear",), build=build, supports=supports, sources=("linear.py",), default=True)
