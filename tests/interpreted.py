"""Runs Triton kernels in Triton's interpreter: `TRITON_INTERPRET=1 python tests/interpreted.py FAMILY/KERNEL [CASES]`.

Prints one JSON object: for every case, named by workload or edge case and config, why the answer is wrong, or null;
with CASES for so many of each op, always the same. It is a process of its own because triton reads the variable when it
is imported, and then compiles nothing.
"""

from __future__ import annotations

import json
import math
import random
import sys
from collections.abc import Iterator

import torch

from perfsuite import check, detect, registry
from perfsuite.kernel import Config, Kernel
from perfsuite.op import Op, Workload

# Elements above which the interpreter takes seconds.
_LARGEST = 10_000


def configs(kernel: Kernel, workload: Workload) -> list[Config]:
    """A row in one block, several rows in one, two rows in up to four blocks, and rows split over four programs."""
    whole = 1 << max(0, workload["cols"] - 1).bit_length()
    part, small = max(1, whole // 4), max(1, whole // 8)
    dimensions = {d.name: d.values for d in kernel.space(workload, detect.machine()).dimensions}
    chosen = [{"block": whole, "height": 1}, {"block": whole, "height": 4}, {"block": part, "height": 2}]
    chosen += [{"block": small, "height": 1, "split": 4}] * (4 in dimensions.get("split", ()))
    usual = {"warps": 4, "stages": 2, "keep": True, "split": 1, "programs": 3}
    return [Config(tuple((name, (usual | values)[name]) for name in dimensions)) for values in chosen]


def cases(op: Op) -> Iterator[tuple[str, Workload, tuple[torch.Tensor, ...]]]:
    for workload in op.workloads:
        if workload.test and math.prod(op.sizes(workload).values()) <= _LARGEST:
            yield str(workload), workload, op.make_inputs(workload, seed=1)
    for dtype in ("f32", "bf16"):
        for description, inputs in op.edge_cases(dtype) if op.edge_cases else ():
            yield f"{op.name} {dtype} {description}", op.bind(inputs), inputs


def reasons(op: Op, kernel: Kernel, most: int) -> Iterator[tuple[str, str | None]]:
    """The cases take the configs in turn."""
    every = list(cases(op))
    for at, (description, workload, inputs) in enumerate(random.Random(op.name).sample(every, min(most, len(every)))):
        expected, able = op.expected(inputs, workload), configs(kernel, workload)
        config = able[at % len(able)]
        outputs = op.make_outputs(workload)
        for output in outputs:
            output.fill_(float("nan") if output.is_floating_point() else 77)
        answer = kernel.build(op, workload, config)(inputs, outputs)
        yield f"{description} {config}", check.wrong(op, workload, answer, expected)


def main(name: str, most: str = "1000") -> None:
    known = registry.discover()
    kernel = known.kernels[name]
    json.dump({key: why for op in kernel.ops for key, why in reasons(known.ops[op], kernel, int(most))}, sys.stdout)


if __name__ == "__main__":
    main(*sys.argv[1:])
