"""torch.compile of a block.

`frozen` weights are constants: packed for oneDNN when compiled, once for given weights, outside of the timed calls.
"""

from __future__ import annotations

from torch import Tensor

from perfsuite.kernel import Config, Dimension, Kernel, Run, Scale, Space
from perfsuite.machine import Machine
from perfsuite.op import Op, Workload
from perfsuite.toolchain import inductor
from perfsuite.toolchain.native import missing_compiler

from .blocks import BLOCKS


def build(op: Op, workload: Workload, config: Config) -> Run:
    block, attributes = BLOCKS[op.name], dict(op.attributes)

    def function(*inputs: Tensor) -> tuple[Tensor]:
        return (block(*inputs, **attributes),)

    options = {"cpp.simdlen": config["simdlen"], "max_autotune": config["max_autotune"]}
    call = inductor.frozen(function, 1, options) if config["frozen"] else inductor.compiled(function, options)
    return lambda inputs, outputs: call(*inputs)


def space(workload: Workload, machine: Machine) -> Space:
    # On CPU max_autotune knows templates for linear layers with frozen weights only, and convnext alone has them.
    linear = workload.op == "convnext"
    return Space(
        (
            Dimension("frozen", (True, False), Scale.CATEGORICAL),
            Dimension("max_autotune", (False, True) if linear else (False,), Scale.CATEGORICAL),
            Dimension("simdlen", inductor.simd_widths(machine)),
        ),
        allows=lambda config: config["frozen"] or not config["max_autotune"],
    )


KERNEL = Kernel(ops=tuple(BLOCKS), build=build, space=space, supports=lambda workload, machine: missing_compiler())
