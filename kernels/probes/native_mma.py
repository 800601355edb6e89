"""Products of AMX tiles that stay in registers: the bf16 and int8 peak of a core (mma.cpp)."""

from __future__ import annotations

import ctypes
from pathlib import Path

from perfsuite.kernel import Config, Dimension, Kernel, Run, Scale, Space, Tensors
from perfsuite.machine import Machine
from perfsuite.op import ITEMSIZE, Op, Workload
from perfsuite.toolchain import native

from . import native_amx, packing


def supports(workload: Workload, machine: Machine) -> str | None:
    if workload["m"] % 32 or workload["n"] % 32 or workload["k"] * ITEMSIZE[workload.dtype] != 64:
        return "multiplies whole tiles: m and n divisible by 32, 64 bytes of k"
    return native_amx.supports(workload, machine)


def space(workload: Workload, machine: Machine) -> Space:
    return Space((Dimension("isa", ("amx",), Scale.CATEGORICAL),))


def build(op: Op, workload: Workload, config: Config) -> Run:
    function = native.load(Path(__file__).with_name("mma.cpp"), config["isa"]).amx_mma
    function.argtypes = [*[ctypes.c_void_p] * 3, *[ctypes.c_int64] * 3, ctypes.c_int]
    function.restype = ctypes.c_int
    packed = packing.Packed(packing.tiles)
    how = (workload["m"], workload["n"], workload["steps"], workload.dtype == "i8")

    def run(inputs: Tensors, outputs: Tensors) -> Tensors:
        x, w = inputs
        if function(x.data_ptr(), packed(w).data_ptr(), outputs[0].data_ptr(), *how):
            raise RuntimeError(native_amx.REFUSED)
        return outputs

    return run


KERNEL = Kernel(ops=("mma", "mma_int8"), build=build, space=space, supports=supports, sources=("mma.cpp", "tiles.h"))
