"""torch.compile of convolution, batch norm, residual and ReLU.

The batch norm is computed in the epilogue after the convolution, or folded into the weight in every call, or frozen:
folded and packed for oneDNN when compiled, once for given parameters, outside of the timed calls.
"""

from __future__ import annotations

from perfsuite.kernel import Config, Dimension, Kernel, Run, Scale, Space, Tensors
from perfsuite.machine import Machine
from perfsuite.op import Op, Workload
from perfsuite.toolchain import inductor
from perfsuite.toolchain.native import missing_compiler

from .modes import EPILOGUES, conv_bn, inference, tune


def build(op: Op, workload: Workload, config: Config) -> Run:
    eps, stride = op.attribute("eps"), workload["stride"]
    forward = inference(op.name, conv_bn if config["norm"] == "epilogue" else tune)

    def function(*inputs: Tensors) -> Tensors:
        return (forward(*inputs, eps=eps, stride=stride),)

    options = {"cpp.simdlen": config["simdlen"]}
    if config["norm"] == "frozen":
        call = inductor.frozen(function, len(op.inputs) - 5, options)
    else:
        call = inductor.compiled(function, options)
    return lambda inputs, outputs: call(*inputs)


def space(workload: Workload, machine: Machine) -> Space:
    return Space(
        (
            Dimension("norm", ("frozen", "epilogue", "folded"), Scale.CATEGORICAL),
            Dimension("simdlen", inductor.simd_widths(machine)),
        )
    )


KERNEL = Kernel(ops=tuple(EPILOGUES), build=build, space=space, supports=lambda workload, machine: missing_compiler())
