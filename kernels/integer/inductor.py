"""The composed layer compiled by torch.compile; with constant weights it becomes a packed linear of oneDNN."""

from __future__ import annotations

import torch

from perfsuite.kernel import Config, Dimension, Kernel, Run, Scale, Space, Tensors
from perfsuite.machine import Machine
from perfsuite.op import Op, Workload
from perfsuite.toolchain.inductor import compiled, frozen

from .linear import int8_linear, supports

_SIMDLEN = {"avx512": 512, "avx2": 256}


def space(workload: Workload, machine: Machine) -> Space:
    """`weights`: constants that are packed when compiled, or arguments that are packed at every call.

    Without AMX oneDNN multiplies what it packed by its reference code (`ref_int8`: 300 ms, where a weight that is not
    packed takes 0.6): constants are left out there. `autotune` lets inductor choose between oneDNN and its own AMX
    template, which it can for constants only; for no rows, or fewer columns than a tile has, that choice fails in
    inductor (torch 2.13).
    """
    isas = tuple(isa for isa in _SIMDLEN if isa in machine.isa)
    packs = "amx_int8" in machine.isa
    tiles = packs and workload["m"] > 0 and min(workload["n"], workload["k"]) >= 16
    return Space(
        (
            Dimension("isa", isas, Scale.CATEGORICAL),
            Dimension("weights", ("constant", "argument") if packs else ("argument",), Scale.CATEGORICAL),
            Dimension("autotune", (False, True) if tiles else (False,)),
        ),
        allows=lambda config: config["weights"] == "constant" or not config["autotune"],
    )


def build(op: Op, workload: Workload, config: Config) -> Run:
    options = {"cpp.simdlen": _SIMDLEN[config["isa"]], "max_autotune": config["autotune"]}
    call = frozen(int8_linear, 1, options) if config["weights"] == "constant" else compiled(int8_linear, options)

    def run(inputs: Tensors, outputs: Tensors) -> Tensors:
        with torch.no_grad():
            return (call(*inputs),)

    return run


KERNEL = Kernel(ops=("int8_linear",), build=build, space=space, supports=supports, sources=("linear.py",))
