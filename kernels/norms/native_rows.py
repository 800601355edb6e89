"""Row normalisation in C++: a few rows at a time, statistics and output from one trip to memory (rows.cpp).

One data flow serves every op of FLOWS; what differs is fixed when the source is compiled.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path

from perfsuite.kernel import Config, Dimension, Kernel, Run, Space, Tensors
from perfsuite.machine import Machine
from perfsuite.op import ITEMSIZE, Op, Workload
from perfsuite.toolchain import native

# What an op does to a row: subtract the mean, add a bias, add a second matrix before and store the sum.
FLOWS: dict[str, dict[str, int | str]] = {
    "layer_norm": {"CENTRED": 1, "BIAS": 1, "RESIDUAL": 0},
    "rms_norm": {"CENTRED": 0, "BIAS": 0, "RESIDUAL": 0},
    "add_rms_norm": {"CENTRED": 0, "BIAS": 0, "RESIDUAL": 1},
}
_ISAS = ("avx2", "avx512", "avx512_bf16")
_STORAGE = {"f32": "float", "bf16": "bf16"}
_LINE = 64  # bytes of a cache line, and of the widest streaming store
# Elements whose mean is the shift of a row's statistics. If they all are outliers, the variance's relative error grows
# by cols/_LEAD: 64 times an f32 rounding at 4096 columns, still within the tolerance.
_LEAD = 64


class _Plan(ctypes.Structure):
    _fields_ = (
        ("rows", ctypes.c_int64),
        ("cols", ctypes.c_int64),
        ("lead", ctypes.c_int64),
        ("eps", ctypes.c_float),
    )


_NORMALISE = ctypes.CFUNCTYPE(None, ctypes.POINTER(_Plan), *[ctypes.c_void_p] * 6)


def supports(workload: Workload, machine: Machine) -> str | None:
    if "avx2" not in machine.isa:
        return "needs AVX2 or AVX-512, this CPU has neither"
    if workload.dtype not in _STORAGE:
        return f"is written for {' and '.join(_STORAGE)}, not {workload.dtype}"
    return native.missing_compiler()


def space(workload: Workload, machine: Machine) -> Space:
    """`rows` at a time share the loads of the weights; `vectors` per iteration are accumulators of one row.

    `shift`, for ops that subtract the mean, is what the statistics are taken around: the mean of the whole row costs a
    sweep more than that of its start. `stream` writes past the caches, `prefetch` fetches the next rows while writing.
    """
    isas = [isa for isa in _ISAS if isa in machine.isa and (isa != "avx512_bf16" or workload.dtype == "bf16")]
    row_bytes = workload["cols"] * ITEMSIZE[workload.dtype]
    big = workload["rows"] * row_bytes > machine.cache("L2") > 0
    streams = (False, True) if row_bytes % _LINE == 0 else (False,)
    shifts = ("start", "row") if FLOWS[workload.op]["CENTRED"] and workload["cols"] > _LEAD else ("row",)
    default = Config.of(isa=isas[-1], rows=1, vectors=4, shift=shifts[0], stream=big and streams[-1], prefetch=False)
    return Space(
        (
            Dimension("isa", tuple(isas), ordered=False),
            Dimension("rows", (1, 2, 4)),
            Dimension("vectors", (1, 2, 4, 8)),
            Dimension("shift", shifts, ordered=False),
            Dimension("stream", streams),
            Dimension("prefetch", (False, True)),
        ),
        allows=lambda config: config["rows"] * config["vectors"] <= 8,
        default=default,
    )


def build(op: Op, workload: Workload, config: Config) -> Run:
    normalise = _choose(op, workload, config)
    cols = workload["cols"]
    lead = cols if config["shift"] == "row" else min(cols, _LEAD)
    plan = ctypes.pointer(_Plan(workload["rows"], cols, lead, op.attribute("eps")))
    names = [operand.name for operand in op.inputs]
    slots = [names.index(name) if name in names else None for name in ("x", "residual", "weight", "bias")]
    absent = [None] * (2 - len(op.outputs))

    def run(inputs: Tensors, outputs: Tensors) -> Tensors:
        sources = [None if slot is None else inputs[slot].data_ptr() for slot in slots]
        targets = [output.data_ptr() for output in outputs]
        normalise(plan, *sources, *targets, *absent)
        return outputs

    return run


def _choose(op: Op, workload: Workload, config: Config) -> Callable[..., None]:
    library = native.load(
        Path(__file__).with_name("rows.cpp"), config["isa"], {**FLOWS[op.name], "T": _STORAGE[workload.dtype]}
    )
    library.choose.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_bool, ctypes.c_bool)
    library.choose.restype = ctypes.c_void_p
    return _NORMALISE(library.choose(config["rows"], config["vectors"], config["stream"], config["prefetch"]))


KERNEL = Kernel(ops=tuple(FLOWS), build=build, space=space, supports=supports, sources=("rows.cpp", "lanes.h"))
