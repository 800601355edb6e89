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
from dataclasses import replace

import torch

from perfsuite import check, detect, registry
from perfsuite.kernel import Config, Kernel
from perfsuite.op import Op, Workload

_DTYPES = ("f32", "bf16")
# Elements above which the interpreter takes seconds.
_LARGEST = 10_000


def configs(kernel: Kernel, workload: Workload) -> list[Config]:
    """A row in one block, several rows in one, two rows in up to four blocks, and rows split over four programs.

    Of images eight times as many: a program takes the interpreter 5 ms, and they have a row for each channel.
    """
    dimensions = {d.name: d.values for d in kernel.space(workload, detect.machine()).dimensions}
    whole, tall = max(map(int, dimensions.get("block", (1,)))), 1 if "cols" in dict(workload.sizes) else 8
    part, small = max(1, whole // 4), max(1, whole // 8)
    chosen = [{"block": whole, "height": tall}, {"block": whole, "height": 4 * tall}]
    chosen += [{"block": part, "height": 2 * tall}]
    chosen += [{"block": small, "height": tall, "split": 4}] * (4 in dimensions.get("split", ()))
    usual = {"warps": 4, "stages": 2, "keep": True, "split": 1, "programs": 3}
    return [Config(tuple((name, (usual | values)[name]) for name in dimensions)) for values in chosen]


def cases(op: Op) -> Iterator[tuple[str, Workload, tuple[torch.Tensor, ...]]]:
    tests = [workload for workload in op.workloads if workload.test]
    both = dict.fromkeys(replace(workload, dtype=dtype) for workload in tests for dtype in _DTYPES)
    for workload in tests if op.edge_cases else both:
        if math.prod(op.shape(op.inputs[0], workload)) <= _LARGEST:
            for seed in (1,) if op.edge_cases else (1, 2):
                yield f"{workload} of seed {seed}", workload, op.make_inputs(workload, seed)
    parameters = {name: tests[0][name] for name in op.parameters}
    for dtype in _DTYPES:
        for description, inputs in op.edge_cases(dtype) if op.edge_cases else ():
            yield f"{op.name} {dtype} {description}", op.bind(inputs, parameters), inputs


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
