"""Matrix products on AMX tiles, straight from intrinsics: bf16 and int8 (amx.cpp). The weight is packed once."""

from __future__ import annotations

import ctypes
from pathlib import Path

from perfsuite.kernel import Config, Dimension, Kernel, Run, Scale, Space, Tensors
from perfsuite.machine import Machine
from perfsuite.op import ITEMSIZE, Op, Workload
from perfsuite.toolchain import native

from . import packing

NEEDS = {"bf16": "amx_bf16", "i8": "amx_int8"}
REFUSED = "Linux refused this process the AMX tiles: it needs kernel 5.16 or later and no seccomp filter on arch_prctl"


def supports(workload: Workload, machine: Machine) -> str | None:
    isa = NEEDS.get(workload.dtype)
    if isa is None:
        return f"multiplies {' and '.join(NEEDS)}, not {workload.dtype}"
    if isa not in machine.isa or "avx512_bf16" not in machine.isa:
        return f"needs AMX ({isa}), this CPU does not have it"
    return native.missing_compiler()


def space(workload: Workload, machine: Machine) -> Space:
    """Blocks of `columns` and `k` of the weight, the latter in bytes; `stream`: w passes by the first-level cache."""
    row = -(-workload["k"] * ITEMSIZE[workload.dtype] // 64) * 64
    blocks = tuple(b for b in (128, 256, 512, 1024) if b < workload["n"] + 128)
    depths = tuple(b for b in (512, 1024, 2048) if b < 2 * row) or (512,)
    return Space(
        (
            Dimension("isa", ("amx",), Scale.CATEGORICAL),
            Dimension("columns", blocks, Scale.POWERS),
            Dimension("k_bytes", depths, Scale.POWERS),
            Dimension("stream", (False, True)),
        ),
        default=Config.of(isa="amx", columns=blocks[-1], k_bytes=min(1024, depths[-1]), stream=True),
    )


def build(op: Op, workload: Workload, config: Config) -> Run:
    function = native.load(Path(__file__).with_name("amx.cpp"), config["isa"]).amx_matmul
    function.argtypes = [*[ctypes.c_void_p] * 3, *[ctypes.c_int64] * 5, *[ctypes.c_int] * 2]
    function.restype = ctypes.c_int
    packed = packing.Packed(packing.tiles)
    row_bytes = workload["k"] * ITEMSIZE[workload.dtype]
    sizes = (workload["m"], workload["n"], row_bytes, config["columns"], config["k_bytes"])
    how = (*sizes, workload.dtype == "i8", config["stream"])

    def run(inputs: Tensors, outputs: Tensors) -> Tensors:
        x, w = inputs
        if function(x.data_ptr(), packed(w).data_ptr(), outputs[0].data_ptr(), *how):
            raise RuntimeError(REFUSED)
        return outputs

    return run


KERNEL = Kernel(
    ops=("matmul", "matmul_int8"), build=build, space=space, supports=supports, sources=("amx.cpp", "tiles.h")
)
