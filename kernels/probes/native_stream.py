"""Passes over memory with intrinsics: what one core, or all of them, can copy, read and combine (stream.cpp)."""

from __future__ import annotations

import ctypes
from pathlib import Path

from perfsuite.kernel import Config, Dimension, Kernel, Run, Scale, Space, Tensors
from perfsuite.machine import Machine
from perfsuite.op import Op, Workload
from perfsuite.toolchain import native

_ISAS = ("avx2", "avx512")
_VECTORS = {"copy": 2, "read": 1, "triad": 3}
_PAGE = 4096 // 4
# Beyond it streaming stores win: 28 GB/s against 17 of a copy of 128 MiB, whereas at 4 MiB plain stores are as fast.
_BIG = 64 * 2**20

# As in stream.cpp, where 0 stores plainly and 1 owns the lines first.
_STREAMED = 2


class _Plan(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("elements", "passes")),
        *((name, ctypes.c_int32) for name in ("unroll", "pages", "mode")),
        ("scale", ctypes.c_float),
    )


def supports(workload: Workload, machine: Machine) -> str | None:
    if "avx2" not in machine.isa:
        return "needs AVX2 or AVX-512, this CPU has neither"
    return native.missing_compiler()


def space(workload: Workload, machine: Machine) -> Space:
    """`unroll` vectors per iteration, `pages` walked side by side (each has its own prefetch stream).

    Lines to be written are read first, unless `stream` writes past the caches; `own` asks for them ahead (prefetchw).
    """
    isas = tuple(isa for isa in _ISAS if isa in machine.isa)
    footprint = 4 * _VECTORS[workload.op] * workload["elements"]
    pages = (1, 8) if workload["elements"] >= 8 * _PAGE else (1,)
    dimensions = (
        Dimension("isa", isas, Scale.CATEGORICAL),
        Dimension("unroll", (2, 4, 8), Scale.POWERS),
        Dimension("pages", pages, Scale.POWERS),
    )
    big = footprint >= _BIG
    side = pages[-1] if big else 1
    if workload.op == "read":
        return Space(dimensions, default=Config.of(isa=isas[-1], unroll=8, pages=side))
    own = machine.cache("L1d") < footprint and not big
    return Space(
        (*dimensions, Dimension("stream", (False, True)), Dimension("own", (False, True))),
        allows=lambda config: not (config["stream"] and config["own"]),
        default=Config.of(isa=isas[-1], unroll=4, pages=side, stream=big, own=own),
    )


def build(op: Op, workload: Workload, config: Config) -> Run:
    function = native.load(Path(__file__).with_name("stream.cpp"), config["isa"])[f"stream_{op.name}"]
    values = config.to_json()
    mode = _STREAMED if values.get("stream") else int(values.get("own", False))
    scale = dict(op.attributes).get("scale", 1.0)
    plan = ctypes.byref(_Plan(workload["elements"], workload["passes"], config["unroll"], config["pages"], mode, scale))
    function.argtypes = (ctypes.c_void_p,) * 4
    function.restype = None

    def run(inputs: Tensors, outputs: Tensors) -> Tensors:
        function(inputs[0].data_ptr(), inputs[-1].data_ptr(), outputs[0].data_ptr(), plan)
        return outputs

    return run


KERNEL = Kernel(ops=tuple(_VECTORS), build=build, space=space, supports=supports, sources=("stream.cpp",))
