"""Chains of fused multiply-adds in registers: the f32 peak of an instruction set (fma.cpp)."""

from __future__ import annotations

import ctypes
from pathlib import Path

from perfsuite.kernel import Config, Dimension, Kernel, Run, Scale, Space, Tensors
from perfsuite.machine import Machine
from perfsuite.op import Op, Workload
from perfsuite.toolchain import native

_ISAS = ("avx2", "avx512")


def supports(workload: Workload, machine: Machine) -> str | None:
    if "avx2" not in machine.isa:
        return "needs AVX2 or AVX-512, this CPU has neither"
    return native.missing_compiler()


def space(workload: Workload, machine: Machine) -> Space:
    """Independent `chains` hide an instruction's latency: 4 cycles on 2 ports ask for 8; AVX2 has registers for 14."""
    isas = tuple(isa for isa in _ISAS if isa in machine.isa)
    return Space(
        (Dimension("isa", isas, Scale.CATEGORICAL), Dimension("chains", (6, 8, 12, 16, 24))),
        allows=lambda config: config["isa"] == "avx512" or config["chains"] <= 12,
        default=Config.of(isa=isas[-1], chains=16 if isas[-1] == "avx512" else 12),
    )


def build(op: Op, workload: Workload, config: Config) -> Run:
    function = native.load(Path(__file__).with_name("fma.cpp"), config["isa"]).fma_chains
    function.argtypes = [*[ctypes.c_void_p] * 2, *[ctypes.c_int64] * 2, ctypes.c_int, *[ctypes.c_float] * 2]
    function.restype = None
    how = (workload["elements"], workload["steps"], config["chains"], op.attribute("scale"), op.attribute("shift"))

    def run(inputs: Tensors, outputs: Tensors) -> Tensors:
        function(inputs[0].data_ptr(), outputs[0].data_ptr(), *how)
        return outputs

    return run


KERNEL = Kernel(ops=("fma",), build=build, space=space, supports=supports, sources=("fma.cpp",))
