"""Row normalisation in C++: a few rows at a time, statistics and output from one trip to memory (rows.cpp).

One data flow serves every op of FLOWS; what differs is fixed when the source is compiled.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path

import torch

from perfsuite.kernel import Config, Dimension, Kernel, Run, Scale, Space, Tensors
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
_PREFETCH = ("none", "L1", "L2")
# Mapped, it costs a call half of what a comprehension does.
_ADDRESS = torch.Tensor.data_ptr
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


def supports(workload: Workload, machine: Machine) -> str | None:
    if "avx2" not in machine.isa:
        return "needs AVX2 or AVX-512, this CPU has neither"
    if workload.dtype not in _STORAGE:
        return f"is written for {' and '.join(_STORAGE)}, not {workload.dtype}"
    return native.missing_compiler()


def space(workload: Workload, machine: Machine) -> Space:
    """`rows` at a time share the loads of the weights; `vectors` per iteration are accumulators of one row.

    `shift`, for ops that subtract the mean, is what the statistics are taken around: the mean of the whole row costs a
    sweep more than that of its start. `stream` writes past the caches. `prefetch` is the cache that the next rows are
    fetched to while these are written.
    """
    isas = [isa for isa in _ISAS if isa in machine.isa and (isa != "avx512_bf16" or workload.dtype == "bf16")]
    row_bytes = workload["cols"] * ITEMSIZE[workload.dtype]
    streams = (False, True) if row_bytes % _LINE == 0 else (False,)
    shifts = ("start", "row") if FLOWS[workload.op]["CENTRED"] and workload["cols"] > _LEAD else ("row",)
    together = 4 if row_bytes <= 2048 else 2 if row_bytes <= 4096 else 1
    # Streaming stores gained nothing at 8 MiB (four times L2), and 1.6 times at 128 MiB.
    default = Config.of(
        isa=isas[-1],
        rows=together,
        vectors=4 // together,
        shift=shifts[0],
        stream=streams[-1] and workload["rows"] * row_bytes > 8 * machine.cache("L2") > 0,
        prefetch="L1" if row_bytes <= 8192 else "L2",
    )
    return Space(
        (
            Dimension("isa", tuple(isas), Scale.CATEGORICAL),
            Dimension("rows", (1, 2, 4), Scale.POWERS),
            Dimension("vectors", (1, 2, 4), Scale.POWERS),
            Dimension("shift", shifts, Scale.CATEGORICAL),
            Dimension("stream", streams),
            Dimension("prefetch", _PREFETCH, Scale.CATEGORICAL),
        ),
        allows=lambda config: config["rows"] * config["vectors"] <= 8,
        default=default,
    )


def build(op: Op, workload: Workload, config: Config) -> Run:
    cols = workload["cols"]
    lead = cols if config["shift"] == "row" else min(cols, _LEAD)
    plan = ctypes.byref(_Plan(workload["rows"], cols, lead, op.attribute("eps")))
    normalise = _choose(op, workload, config)

    def run(inputs: Tensors, outputs: Tensors) -> Tensors:
        normalise(plan, *map(_ADDRESS, inputs), *map(_ADDRESS, outputs))
        return outputs

    return run


def _choose(op: Op, workload: Workload, config: Config) -> Callable[..., None]:
    defines = {**FLOWS[op.name], "T": _STORAGE[workload.dtype], "ROWS": config["rows"]}
    library = native.load(Path(__file__).with_name("rows.cpp"), config["isa"], defines)
    library.choose.argtypes = (ctypes.c_int, ctypes.c_bool, ctypes.c_int)
    library.choose.restype = ctypes.c_void_p
    operands = len(op.inputs) + len(op.outputs)
    entry = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * (1 + operands))
    return entry(library.choose(config["vectors"], config["stream"], _PREFETCH.index(config["prefetch"])))


KERNEL = Kernel(ops=tuple(FLOWS), build=build, space=space, supports=supports, sources=("rows.cpp", "lanes.h"))
