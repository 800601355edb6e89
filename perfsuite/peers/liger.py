"""Liger-Kernel as a peer on a GPU: its Triton kernels through the functions that it offers to users.

They allocate what they return. Its cross-entropy is left out: it overwrites the logits with their gradient.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

import torch

from perfsuite.kernel import Config, Kernel, Run, Tensors
from perfsuite.machine import Machine
from perfsuite.op import Op, Workload
from perfsuite.toolchain.triton import missing_gpu

# Of each op: the module and the function of liger_kernel.ops, and what it takes after the op's tensors and attributes.
# Its mode "gemma" computes in f32 and rounds once, as the op's definition; "llama" rounds before the weight.
_FUNCTIONS: dict[str, tuple[str, str, tuple[Any, ...]]] = {
    "softmax": ("softmax", "LigerSoftmaxFunction", ()),
    "layer_norm": ("layer_norm", "LigerLayerNormFunction", ()),
    "rms_norm": ("rms_norm", "LigerRMSNormFunction", (0.0, "gemma", False)),
}


def supports(workload: Workload, machine: Machine) -> str | None:
    if importlib.util.find_spec("liger_kernel") is None:
        return "needs liger-kernel: pip install liger-kernel"
    if 0 in dict(workload.sizes).values():
        return "Liger-Kernel takes no empty tensors"
    return missing_gpu(machine)


def build(op: Op, workload: Workload, config: Config) -> Run:
    module, name, more = _FUNCTIONS[op.name]
    apply = getattr(importlib.import_module(f"liger_kernel.ops.{module}"), name).apply
    further = (*(value for _, value in op.attributes), *more)

    def run(inputs: Tensors, outputs: Tensors) -> Tensors:
        with torch.no_grad():
            return [apply(*inputs, *further)]

    return run


KERNEL = Kernel(ops=tuple(_FUNCTIONS), build=build, supports=supports, device="cuda")
