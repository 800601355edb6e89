"""PyTorch with the batch norm folded into the convolution's weight and bias.

The weight is folded once for given parameters, outside of the timed calls, as a deployed model would do it.
"""

from __future__ import annotations

import torch

from perfsuite.kernel import Config, Kernel, Run, Tensors
from perfsuite.op import Op, Workload
from perfsuite.toolchain.constants import PerConstants

from .modes import EPILOGUES, deploy, folded


def build(op: Op, workload: Workload, config: Config) -> Run:
    eps, stride, epilogue = op.attribute("eps"), workload["stride"], EPILOGUES[op.name]
    variables = len(op.inputs) - 5

    def fold(constants: Tensors) -> Tensors:
        weight, gamma, beta, mean, var = constants
        scaled, bias, _ = folded(weight, gamma, beta, mean, var, eps)
        return scaled.to(weight.dtype), bias.to(weight.dtype)

    per_constants = PerConstants(fold)

    def run(inputs: Tensors, outputs: Tensors) -> Tensors:
        weight, bias = per_constants(inputs[variables:])
        with torch.no_grad():
            return (epilogue(deploy(inputs[0], weight, bias, stride=stride), *inputs[1:variables]),)

    return run


KERNEL = Kernel(ops=tuple(EPILOGUES), build=build)
