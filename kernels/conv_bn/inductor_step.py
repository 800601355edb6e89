"""torch.compile of a training step's forward pass; autograd compiles the backward pass.

`efficient` turns on inductor's own Tune mode (efficient_conv_bn_eval_fx_passes), which rewrites the Eval graph.
"""

from __future__ import annotations

from perfsuite.kernel import Config, Dimension, Kernel, Run, Scale, Space
from perfsuite.machine import Machine
from perfsuite.op import Op, Workload
from perfsuite.toolchain import inductor
from perfsuite.toolchain.native import missing_compiler

from .modes import MODES, step


def build(op: Op, workload: Workload, config: Config) -> Run:
    constants = {**dict(op.attributes), "stride": workload["stride"]}
    forward, parameters = MODES[op.name]
    options = {"cpp.simdlen": config["simdlen"], "efficient_conv_bn_eval_fx_passes": config["efficient"]}
    call = step(inductor.compiled(forward, options), parameters)

    return lambda inputs, outputs: call(*inputs, **constants)


def space(workload: Workload, machine: Machine) -> Space:
    # The pass multiplies a bf16 weight by an f32 scale and hands the f32 product to a bf16 convolution: an error.
    rewrites = workload.op == "conv_bn_eval_step" and workload.dtype == "f32"
    return Space(
        (
            Dimension("simdlen", inductor.simd_widths(machine)),
            Dimension("efficient", (False, True) if rewrites else (False,), Scale.CATEGORICAL),
        )
    )


KERNEL = Kernel(ops=tuple(MODES), build=build, space=space, supports=lambda workload, machine: missing_compiler())
