"""Matrix products block by block on oneDNN's micro-kernels (brgemm.cpp). The weight is packed once."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path

from perfsuite.kernel import Config, Dimension, Kernel, Run, Scale, Space, Tensors
from perfsuite.machine import Machine
from perfsuite.op import ITEMSIZE, Op, Workload
from perfsuite.toolchain import native

from . import packing

_NEEDS = {"f32": "avx512", "bf16": "amx_bf16", "i8": "amx_int8"}


class _Blocking(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_int64) for name in ("m", "n", "k", "rows", "columns", "depth"))


def supports(workload: Workload, machine: Machine) -> str | None:
    isa = _NEEDS[workload.dtype]
    if isa not in machine.isa:
        return f"multiplies {workload.dtype} with {isa}, which this CPU does not have"
    inner = 4 // ITEMSIZE[workload.dtype]
    if workload["k"] % inner:
        return f"k={workload['k']} is not divisible by {inner}, the values of k that share 4 bytes"
    return native.missing_compiler()


def space(workload: Workload, machine: Machine) -> Space:
    """Rows and columns of a block of y, and how much of k is summed before the next block."""
    k = workload["k"]
    depths = (*(d for d in (256, 512) if d < k), k)
    return Space(
        (
            Dimension("rows", (32, 64, 128, 256), Scale.POWERS),
            Dimension("columns", (32, 64, 128, 256), Scale.POWERS),
            Dimension("depth", depths),
        ),
        default=Config.of(rows=128, columns=64, depth=min(d for d in depths if d >= min(k, 512))),
    )


def build(op: Op, workload: Workload, config: Config) -> Run:
    isa = "avx512" if workload.dtype == "f32" else "amx"
    function = native.load(Path(__file__).with_name("brgemm.cpp"), isa, torch=True).brgemm_matmul
    function.argtypes = [*[ctypes.c_void_p] * 3, ctypes.POINTER(_Blocking), ctypes.c_int]
    function.restype = ctypes.c_int
    packed = packing.Packed(functools.partial(packing.columns, width=config["columns"]))
    sizes = (workload["m"], workload["n"], workload["k"])
    blocking = _Blocking(*sizes, config["rows"], config["columns"], config["depth"])
    itemsize = ITEMSIZE[workload.dtype]

    def run(inputs: Tensors, outputs: Tensors) -> Tensors:
        x, w = inputs
        if function(x.data_ptr(), packed(w).data_ptr(), outputs[0].data_ptr(), blocking, itemsize):
            raise RuntimeError(f"oneDNN has no {workload.dtype} micro-kernel for this CPU: DNNL_VERBOSE=1 says more")
        return outputs

    return run


KERNEL = Kernel(ops=("matmul", "matmul_int8"), build=build, space=space, supports=supports, sources=("brgemm.cpp",))
