"""`torch.compile`: Inductor's C++ code, which writes into the given output.

The graph ends in a copy into the output, which Inductor fuses into the last loop of the softmax: its code has no buffer
of its own and no further pass.
"""

from __future__ import annotations

from perfsuite.kernel import Config, Dimension, Kernel, Run, Space, Tensors
from perfsuite.machine import Machine
from perfsuite.op import Op, Workload


def build(op: Op, workload: Workload, config: Config) -> Run:
    import torch

    def into(x: torch.Tensor, y: torch.Tensor) -> None:
        y.copy_(torch.softmax(x, -1))

    options = {"cpp.simdlen": config["simdlen"]}
    compiled = torch.compile(into, dynamic=False, fullgraph=True, options=options)

    def run(inputs: Tensors, outputs: Tensors) -> Tensors:
        with torch.no_grad():
            compiled(inputs[0], outputs[0])
        return outputs

    return run


def space(workload: Workload, machine: Machine) -> Space:
    return Space((Dimension("simdlen", (512, 256) if "avx512" in machine.isa else (256,)),))


KERNEL = Kernel(ops=("softmax",), build=build, space=space)
