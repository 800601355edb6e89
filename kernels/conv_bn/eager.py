"""Plain PyTorch: convolution, batch norm, residual, ReLU, one call each; training steps by autograd."""

from __future__ import annotations

from perfsuite.kernel import Config, Kernel, Run, Tensors
from perfsuite.op import Op, Workload

from .modes import EPILOGUES, MODES


def build(op: Op, workload: Workload, config: Config) -> Run:
    constants = {**dict(op.attributes), "stride": workload["stride"]}

    def run(inputs: Tensors, outputs: Tensors) -> Tensors:
        answer = op.reference(*inputs, **constants)
        return answer if isinstance(answer, tuple) else (answer,)

    return run


KERNEL = Kernel(ops=(*EPILOGUES, *MODES), build=build, default=True)
