"""What the C++ kernels over rows share: who is refused, the space, and how a config becomes a function."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from perfsuite.kernel import Config, Dimension, Kernel, Run, Scale, Space, Tensors
from perfsuite.machine import Machine
from perfsuite.op import ITEMSIZE, Op, Workload
from perfsuite.toolchain import native

_ISAS = ("avx2", "avx512", "avx512_bf16")
_STORAGE = {"f32": "float", "bf16": "bf16", "f16": "f16"}
_PREFETCH = ("none", "L1", "L2")
# Mapped, it costs a call half of what a comprehension does.
_ADDRESS = torch.Tensor.data_ptr
# Rows of a stack; how many bytes such a row may have, so that L1 holds two stacks; and from how many rows on stacks are
# the default: of 512 rows of 64 f32 they take half the time of four rows at a time.
_STACK = {"avx2": 8, "avx512": 16, "avx512_bf16": 16}
_SHORT, _MANY = 1024, 256
_LINE = 64  # bytes of a cache line, and of the widest streaming store
# What an op does to a row: divide it by a statistic, multiply by a vector, add one, add a second matrix before all that
# and store the sum, scale the answer by the layer. Groups of rows with vectors of their own are the plan's.
_LAYER: Mapping[str, int | str] = {"STATISTIC": "VARIANCE", "WEIGHT": 1, "BIAS": 1, "RESIDUAL": 0}
_RMS: Mapping[str, int | str] = {"STATISTIC": "MEAN_SQUARE", "WEIGHT": 1, "BIAS": 0, "RESIDUAL": 0}
NORMS: Mapping[str, Mapping[str, int | str]] = {
    "layer_norm": _LAYER,
    "rms_norm": _RMS,
    "simple_rms_norm": {**_RMS, "WEIGHT": 0},
    "crms_norm": {**_RMS, "STATISTIC": "COMPRESSED", "WEIGHT": 0},
    "l1_norm": {**_LAYER, "STATISTIC": "MEAN_DISTANCE"},
    "add_layer_norm": {**_LAYER, "RESIDUAL": 1},
    "add_rms_norm": {**_RMS, "RESIDUAL": 1},
    "scaled_layer_norm": {**_LAYER, "SCALED": 1},
    "time_layer_norm": _LAYER,
}


class _Plan(ctypes.Structure):
    """statistics.h's Plan."""

    _fields_ = (
        ("rows", ctypes.c_int64),
        ("cols", ctypes.c_int64),
        ("groups", ctypes.c_int64),
        ("eps", ctypes.c_float),
        ("kappa", ctypes.c_float),
    )


@dataclass(frozen=True)
class DataFlow:
    """A C++ source of this folder that serves several ops.

    `flows` are the definitions that make it each of them; `vectors` is how many, in all rows that go together, the
    registers have accumulators for; `tile` gives the rows that go together without tuning, and the vectors of each.
    `anywhere` are the dtypes whose rows are streamed, one at a time, where they begin anywhere in a line.
    """

    source: str
    flows: Mapping[str, Mapping[str, int | str]]
    vectors: int
    tile: Callable[[Workload], tuple[int, int]]
    anywhere: tuple[str, ...] = tuple(_STORAGE)

    def kernel(self) -> Kernel:
        return Kernel(
            ops=tuple(self.flows),
            build=self.build,
            space=self.space,
            supports=supports,
            sources=(self.source, "blocks.h", "statistics.h", "sums.h", "sweep.h", "lanes.h"),
        )

    def space(self, workload: Workload, machine: Machine) -> Space:
        """`rows` at a time share the loads of the weights; `vectors` per iteration are accumulators of one row.

        As many short `rows` as a register has floats are a stack, of which what follows a row's sums is done at once.
        `stream` writes past the caches. `prefetch` is the cache that the rows after the next ones are fetched to.
        """
        isas = [isa for isa in _ISAS if isa in machine.isa and (isa != "avx512_bf16" or workload.dtype == "bf16")]
        row_bytes = workload["cols"] * ITEMSIZE[workload.dtype]
        aligned = row_bytes % _LINE == 0
        streamed = "QUANTISED" not in self.flows[workload.op] and (aligned or workload.dtype in self.anywhere)
        rows, vectors = self.tile(workload)
        # Streaming stores gained nothing at 8 MiB (four times L2), and 1.6 times at 128 MiB.
        large = _groups(workload) * workload["rows"] * row_bytes > 8 * machine.cache("L2") > 0
        stacked = row_bytes <= _SHORT and workload["rows"] >= _MANY
        if stacked:
            rows, vectors = _STACK[isas[-1]], 1
        elif streamed and large and not aligned:
            rows = 1
        default = Config.of(
            isa=isas[-1],
            rows=rows,
            vectors=vectors,
            stream=streamed and large and (aligned or rows == 1),
            prefetch="none" if stacked else "L1" if row_bytes <= 8192 else "L2",
        )
        stacks = sorted({_STACK[isa] for isa in isas}) if row_bytes <= _SHORT else []

        def allows(config: Config) -> bool:
            rows = int(config["rows"])
            fits = rows in (1, 2, 4, _STACK[config["isa"]]) and min(rows, 4) * int(config["vectors"]) <= self.vectors
            return fits and (aligned or rows == 1 or not config["stream"])

        return Space(
            (
                Dimension("isa", tuple(isas), Scale.CATEGORICAL),
                Dimension("rows", (1, 2, 4, *stacks), Scale.POWERS),
                Dimension("vectors", (1, 2, 4), Scale.POWERS),
                Dimension("stream", (False, True) if streamed else (False,)),
                Dimension("prefetch", _PREFETCH, Scale.CATEGORICAL),
            ),
            allows=allows,
            default=default,
        )

    def build(self, op: Op, workload: Workload, config: Config) -> Run:
        cols, attributes = workload["cols"], dict(op.attributes)
        groups = _groups(workload)
        plan = _Plan(groups * workload["rows"], cols, groups, attributes["eps"], attributes.get("kappa", 1.0))
        plan_address, call = ctypes.byref(plan), self._chosen(op, workload, config)

        def run(inputs: Tensors, outputs: Tensors) -> Tensors:
            call(plan_address, *map(_ADDRESS, inputs), *map(_ADDRESS, outputs))
            return outputs

        return run

    def _chosen(self, op: Op, workload: Workload, config: Config) -> Callable[..., None]:
        tiling = {"ROWS": config["rows"], "VECTORS": config["vectors"]}
        if config["rows"] > 4:
            tiling["COLS"] = workload["cols"]
        defines = {**self.flows[op.name], "T": _STORAGE[workload.dtype], **tiling}
        library = native.load(Path(__file__).with_name(self.source), config["isa"], defines)
        library.choose.argtypes = (ctypes.c_bool, ctypes.c_int)
        library.choose.restype = ctypes.c_void_p
        operands = len(op.inputs) + len(op.outputs)
        entry = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * (1 + operands))
        return entry(library.choose(config["stream"], _PREFETCH.index(config["prefetch"])))


def _groups(workload: Workload) -> int:
    """How many times so many rows there are, each with parameters of their own."""
    return dict(workload.sizes).get("samples", 1)


def supports(workload: Workload, machine: Machine) -> str | None:
    if "avx2" not in machine.isa:
        return "needs AVX2 or AVX-512, this CPU has neither"
    if workload.dtype not in _STORAGE:
        return f"is written for {', '.join(_STORAGE)}, not {workload.dtype}"
    return native.missing_compiler()
