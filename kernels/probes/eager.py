"""PyTorch's own operations, one call per pass or step."""

from __future__ import annotations

from collections.abc import Callable

import torch

from perfsuite.kernel import Config, Kernel, Run, Tensors
from perfsuite.op import Op, Workload

_Step = Callable[[Tensors, Tensors, Op], None]


def _copy(inputs: Tensors, outputs: Tensors, op: Op) -> None:
    outputs[0].copy_(inputs[0])


def _read(inputs: Tensors, outputs: Tensors, op: Op) -> None:
    outputs[0].add_(inputs[0].sum())


def _triad(inputs: Tensors, outputs: Tensors, op: Op) -> None:
    torch.add(inputs[0], inputs[1], alpha=op.attribute("scale"), out=outputs[0])


def _fma(inputs: Tensors, outputs: Tensors, op: Op) -> None:
    outputs[0].mul_(op.attribute("scale")).add_(op.attribute("shift"))


def _mma(inputs: Tensors, outputs: Tensors, op: Op) -> None:
    outputs[0].addmm_(inputs[0], inputs[1])


def _mma_int8(inputs: Tensors, outputs: Tensors, op: Op) -> None:
    outputs[0].add_(torch._int_mm(inputs[0], inputs[1]))


def _matmul(inputs: Tensors, outputs: Tensors, op: Op) -> None:
    torch.mm(inputs[0], inputs[1], out=outputs[0])


def _matmul_int8(inputs: Tensors, outputs: Tensors, op: Op) -> None:
    torch._int_mm(inputs[0], inputs[1], out=outputs[0])


_STEPS: dict[str, _Step] = {
    "copy": _copy,
    "read": _read,
    "triad": _triad,
    "fma": _fma,
    "mma": _mma,
    "mma_int8": _mma_int8,
    "matmul": _matmul,
    "matmul_int8": _matmul_int8,
}


def _prepared(op: Op, inputs: Tensors, outputs: Tensors) -> Tensors:
    """The inputs of every step, once the output holds what the first step adds to."""
    if op.name == "fma":
        outputs[0].copy_(inputs[0])
    elif op.name in ("read", "mma", "mma_int8"):
        outputs[0].zero_()
    return [t.float() for t in inputs] if op.name == "mma" else inputs


def build(op: Op, workload: Workload, config: Config) -> Run:
    step, sizes = _STEPS[op.name], dict(workload.sizes)
    times = range(sizes.get("passes", sizes.get("steps", 1)))

    def run(inputs: Tensors, outputs: Tensors) -> Tensors:
        with torch.no_grad():
            inputs = _prepared(op, inputs, outputs)
            for _ in times:
                step(inputs, outputs, op)
        return outputs

    return run


KERNEL = Kernel(ops=tuple(_STEPS), build=build, device="any", default=True)
