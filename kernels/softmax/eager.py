"""PyTorch as it is: `torch.softmax`, which writes into the given output."""

from __future__ import annotations

from perfsuite.kernel import Config, Kernel, Run, Tensors
from perfsuite.op import Op, Workload


def build(op: Op, workload: Workload, config: Config) -> Run:
    import torch

    def run(inputs: Tensors, outputs: Tensors) -> Tensors:
        torch.softmax(inputs[0], -1, out=outputs[0])
        return outputs

    return run


KERNEL = Kernel(ops=("softmax",), build=build, device="any", default=True)
