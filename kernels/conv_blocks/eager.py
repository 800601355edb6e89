"""Plain PyTorch, one call per layer."""

from __future__ import annotations

from perfsuite.kernel import Config, Kernel, Run
from perfsuite.op import Op, Workload

from .blocks import BLOCKS


def build(op: Op, workload: Workload, config: Config) -> Run:
    block, attributes = BLOCKS[op.name], dict(op.attributes)
    return lambda inputs, outputs: (block(*inputs, **attributes),)


KERNEL = Kernel(ops=tuple(BLOCKS), build=build, default=True)
