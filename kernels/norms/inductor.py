"""PyTorch's own norms compiled by torch.compile, which fuses the addition, the norm and the store to the given outputs.

Inductor's C++ keeps what it fuses in f32, so the sum of add_rms_norm is not rounded before the norm.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from perfsuite.kernel import Config, Dimension, Kernel, Run, Scale, Space, Tensors
from perfsuite.machine import Machine
from perfsuite.op import Op, Workload
from perfsuite.toolchain.inductor import compiled
from perfsuite.toolchain.native import missing_compiler

from . import formulas

_SIMDLEN = {"avx2": 256, "avx512": 512}


def _layer_norm(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, y: torch.Tensor, eps: float) -> None:
    y.copy_(F.layer_norm(x, weight.shape, weight, bias, eps))


def _rms_norm(x: torch.Tensor, weight: torch.Tensor, y: torch.Tensor, eps: float) -> None:
    y.copy_(F.rms_norm(x, weight.shape, weight, eps))


def _add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, y: torch.Tensor, h: torch.Tensor, eps: float
) -> None:
    total = x + residual
    y.copy_(F.rms_norm(total, weight.shape, weight, eps))
    h.copy_(total)


def _written_out(formula: Callable[..., Any], inputs: int) -> Callable[..., None]:
    """The formula in f32 from so many tensors, stored to those that follow them."""

    def store(*tensors: torch.Tensor, **attributes: float) -> None:
        answer = formula(*(t.float() for t in tensors[:inputs]), **attributes)
        for output, value in zip(tensors[inputs:], answer if isinstance(answer, tuple) else (answer,)):
            output.copy_(value)

    return store


# Of the library's layer_norm inductor (torch 2.13) makes loops over all rows for the mean, the variance and the output:
# three trips to memory, 1.8 times a copy at 8192x4096 f32, where the formula written out makes one, 1.5 times a copy.
FORMULAS: dict[str, dict[str, Callable[..., None]]] = {
    "layer_norm": {"written_out": _written_out(formulas.layer_norm, 3), "library": _layer_norm},
    "rms_norm": {"library": _rms_norm},
    "simple_rms_norm": {"written_out": _written_out(formulas.simple_rms_norm, 1)},
    "crms_norm": {"written_out": _written_out(formulas.crms_norm, 1)},
    "l1_norm": {"written_out": _written_out(formulas.l1_norm, 3)},
    "add_layer_norm": {"written_out": _written_out(formulas.add_layer_norm, 4)},
    "add_rms_norm": {"library": _add_rms_norm},
    "rms_norm_int8": {"written_out": _written_out(formulas.rms_norm_int8, 2)},
    "rms_norm_fp8": {"written_out": _written_out(formulas.rms_norm_fp8, 2)},
    "scaled_layer_norm": {"written_out": _written_out(formulas.scaled_layer_norm, 4)},
    "time_layer_norm": {"written_out": _written_out(formulas.time_layer_norm, 3)},
    "layer_norm_backward": {"written_out": _written_out(formulas.layer_norm_backward, 3)},
    "rms_norm_backward": {"written_out": _written_out(formulas.rms_norm_backward, 3)},
    "simple_rms_norm_backward": {"written_out": _written_out(formulas.simple_rms_norm_backward, 2)},
    "crms_norm_backward": {"written_out": _written_out(formulas.crms_norm_backward, 2)},
    "l1_norm_backward": {"written_out": _written_out(formulas.l1_norm_backward, 3)},
    "add_layer_norm_backward": {"written_out": _written_out(formulas.add_layer_norm_backward, 4)},
    "add_rms_norm_backward": {"written_out": _written_out(formulas.add_rms_norm_backward, 4)},
    "scaled_layer_norm_backward": {"written_out": _written_out(formulas.scaled_layer_norm_backward, 4)},
    "time_layer_norm_backward": {"written_out": _written_out(formulas.time_layer_norm_backward, 3)},
}


def supports(workload: Workload, machine: Machine) -> str | None:
    return missing_compiler()


def space(workload: Workload, machine: Machine) -> Space:
    isas = tuple(isa for isa in reversed(_SIMDLEN) if isa in machine.isa) or ("default",)
    formulas = tuple(FORMULAS[workload.op])
    return Space((Dimension("isa", isas, Scale.CATEGORICAL), Dimension("formula", formulas, Scale.CATEGORICAL)))


def build(op: Op, workload: Workload, config: Config) -> Run:
    call = compiled(FORMULAS[op.name][config["formula"]], _options(config))
    attributes = dict(op.attributes)

    def run(inputs: Tensors, outputs: Tensors) -> Tensors:
        with torch.no_grad():
            call(*inputs, *outputs, **attributes)
        return outputs

    return run


def _options(config: Config) -> dict[str, int]:
    simdlen = _SIMDLEN.get(config["isa"])
    return {} if simdlen is None else {"cpp.simdlen": simdlen}


KERNEL = Kernel(ops=tuple(FORMULAS), build=build, space=space, supports=supports)
