"""Runs Triton kernels in Triton's interpreter: `TRITON_INTERPRET=1 python tests/interpreted.py FAMILY/KERNEL`.

Prints one JSON object: for every case, named by workload or edge case and config, why the answer is wrong, or null. It
is a process of its own because triton reads the variable when it is imported, and then compiles nothing.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator

import torch

from perfsuite import check, registry
from perfsuite.kernel import Config, Kernel
from perfsuite.op import Op, Workload

# Elements above which the interpreter takes seconds.
_LARGEST = 10_000


def configs(cols: int) -> Iterator[Config]:
    """A row in one block, several rows in one, and two rows in up to four blocks."""
    whole = 1 << max(0, cols - 1).bit_length()
    part = max(1, whole // 4)
    for block, height in ((whole, 1), (whole, 4), (part, 2)):
        yield Config.of(block=block, height=height, warps=4, stages=2, keep=block == part)


def cases(op: Op) -> Iterator[tuple[str, Workload, tuple[torch.Tensor, ...]]]:
    for workload in op.workloads:
        if workload.test and workload["rows"] * workload["cols"] <= _LARGEST:
            yield str(workload), workload, op.make_inputs(workload, seed=1)
    for dtype in ("f32", "bf16"):
        for description, inputs in op.edge_cases(dtype) if op.edge_cases else ():
            yield f"{op.name} {dtype} {description}", op.bind(inputs), inputs


def reasons(op: Op, kernel: Kernel) -> Iterator[tuple[str, str | None]]:
    for description, workload, inputs in cases(op):
        expected = op.expected(inputs, workload)
        for config in configs(workload["cols"]):
            outputs = op.make_outputs(workload)
            for output in outputs:
                output.fill_(float("nan"))
            answer = kernel.build(op, workload, config)(inputs, outputs)
            yield f"{description} {config}", check.wrong(op, workload, answer, expected)


def main(name: str) -> None:
    known = registry.discover()
    kernel = known.kernels[name]
    json.dump({key: why for op in kernel.ops for key, why in reasons(known.ops[op], kernel)}, sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1])
