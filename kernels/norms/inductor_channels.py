"""The formulas of the norms of images, in f32, compiled by torch.compile, which stores to the given outputs."""

from __future__ import annotations

from typing import Any

import torch

from perfsuite.kernel import Config, Dimension, Kernel, Run, Scale, Space, Tensors
from perfsuite.machine import Machine
from perfsuite.op import Op, Workload
from perfsuite.toolchain.inductor import compiled, simd_widths
from perfsuite.toolchain.native import missing_compiler

from . import channel_formulas

_OPS = (
    "batch_norm",
    "batch_norm_inference",
    "group_norm",
    "instance_norm",
    "batch_norm_backward",
    "batch_norm_inference_backward",
    "group_norm_backward",
    "instance_norm_backward",
)


def supports(workload: Workload, machine: Machine) -> str | None:
    return missing_compiler()


def space(workload: Workload, machine: Machine) -> Space:
    return Space((Dimension("simdlen", simd_widths(machine), Scale.CATEGORICAL),))


def build(op: Op, workload: Workload, config: Config) -> Run:
    formula = getattr(channel_formulas, op.name.removesuffix("_nhwc"))
    constants: dict[str, Any] = {**dict(op.attributes), **{name: workload[name] for name in op.parameters}}

    def store(inputs: Tensors, outputs: Tensors) -> None:
        answer = formula(*(t.float() for t in inputs), **constants)
        for output, value in zip(outputs, answer if isinstance(answer, tuple) else (answer,)):
            output.copy_(value)

    call = compiled(store, {"cpp.simdlen": config["simdlen"]} if config["simdlen"] else {})

    def run(inputs: Tensors, outputs: Tensors) -> Tensors:
        with torch.no_grad():
            call(inputs, outputs)
        return outputs

    return run


KERNEL = Kernel(
    ops=tuple(name + suffix for suffix in ("", "_nhwc") for name in _OPS), build=build, space=space, supports=supports
)
