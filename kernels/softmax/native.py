"""The algorithms of softmax.cpp as kernels, for the AVX2 and the AVX-512 that the machine has."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from perfsuite.kernel import Config, Dimension, Kernel, Run, Scale, Space, Tensors
from perfsuite.machine import Machine
from perfsuite.op import ITEMSIZE, Op, Workload
from perfsuite.toolchain import native

ELEMENTS = {"f32": "float", "bf16": "bf16", "f16": "f16"}
# Degree of the polynomial for 2^f. Relative errors: 1.1e-7 for f32, as good as the rounding around it; 1.0e-4 for bf16,
# whose half unit in the last place is 4e-3, and 2.8e-6 for f16, where it is 5e-4. One more degree costs a tenth of the
# time and shows in no output.
_DEGREES = {"f32": 5, "bf16": 3, "f16": 4}
# Of an op: what it reads, what it makes, and whether the rounding of a 16-bit output hides a shorter polynomial: not
# where a logarithm near 0 is the difference of larger numbers.
_FORMS = {
    "softmax": ("Plain", "Probability", True),
    "log_softmax": ("Plain", "LogProbability", False),
    "masked_softmax": ("Scaled", "Probability", True),
    "softmax_backward": ("Gradient", "Probability", True),
    "masked_softmax_backward": ("Gradient", "Probability", True),
    "log_softmax_backward": ("Gradient", "LogProbability", False),
}
# Elements of a block; bytes that prefetches run ahead of the stores (twice that ahead of the loads), 0 for none.
BLOCKS = (1024, 4096, 16384)
AHEAD = (0, 512, 1024, 2048)
_VECTOR_BYTES = 64
# Outputs larger than this are streamed by default: they do not fit where they would be read from again.
STREAMED_BYTES = 16 << 20
# Shorter rows are so only where they are aligned. Each other row has two ordinary stores, whose lines what is streamed
# waits for: 65536 x 197 floats took 2.7 times as long, 40000 x 500 as long, and 20000 x 1000 0.7 of the time.
_STREAMED_ROW_BYTES = 2048
_FIELDS = ("rows", "cols", "mask_rows", "unroll", "accumulators", "stream", "block", "ahead", "scale")


class _Plan(ctypes.Structure):
    """algorithms.h's Plan: the sizes of the problem, and the tunables that are chosen at run time."""

    _fields_ = [(name, ctypes.c_double if name == "scale" else ctypes.c_int64) for name in _FIELDS]


def missing(workload: Workload, machine: Machine) -> str | None:
    """What a machine lacks to run these sources on a workload, or None."""
    if workload.dtype not in ELEMENTS:
        return f"takes {', '.join(ELEMENTS)}, not {workload.dtype}"
    if "avx2" not in machine.isa:
        return "needs AVX2, which this CPU lacks"
    return native.missing_compiler()


def _never(workload: Workload, machine: Machine) -> str | None:
    return None


@dataclass(frozen=True)
class Algorithm:
    """One of softmax.cpp's algorithms.

    Its tunables are isa, unroll, ahead and those named of accumulators, stream and block. `aligned_rows` are the
    dtypes that it streams only where every row of the output is aligned. `refuses` gives a reason why a workload is
    not for it.
    """

    name: str
    ops: tuple[str, ...]
    tunables: tuple[str, ...] = ()
    aligned_rows: tuple[str, ...] = ()
    refuses: Callable[[Workload, Machine], str | None] = _never

    def kernel(self) -> Kernel:
        return Kernel(
            ops=self.ops,
            build=self.build,
            space=self.space,
            supports=self.supports,
            sources=("softmax.cpp",),
        )

    def supports(self, workload: Workload, machine: Machine) -> str | None:
        return missing(workload, machine) or self.refuses(workload, machine)

    def space(self, workload: Workload, machine: Machine) -> Space:
        row_bytes = workload["cols"] * ITEMSIZE[workload.dtype]
        isas = tuple(isa for isa in ("avx512", "avx2") if isa in machine.isa)
        streams = (False,) if workload.dtype in self.aligned_rows and row_bytes % _VECTOR_BYTES else (False, True)
        streamed = row_bytes % _VECTOR_BYTES == 0 or row_bytes >= _STREAMED_ROW_BYTES
        # A block longer than the row is the row: one such value is enough.
        blocks = tuple(b for k, b in enumerate(BLOCKS) if k == 0 or BLOCKS[k - 1] < workload["cols"])
        dimensions = (
            Dimension("isa", isas, Scale.CATEGORICAL),
            Dimension("unroll", (1, 2, 4, 8), Scale.POWERS),
            Dimension("accumulators", (1, 2, 4), Scale.POWERS),
            Dimension("stream", streams, Scale.CATEGORICAL),
            Dimension("block", blocks, Scale.POWERS),
            Dimension("ahead", AHEAD),
        )
        default = {
            "isa": isas[0],
            "unroll": 2,
            "accumulators": 1,
            "stream": streams[-1] and streamed and _rows(workload) * row_bytes > STREAMED_BYTES,
            "block": blocks[min(1, len(blocks) - 1)],
            "ahead": 1024,
        }
        mine = tuple(d for d in dimensions if d.name in ("isa", "unroll", "ahead", *self.tunables))
        return Space(mine, _allowed, Config(tuple((d.name, default[d.name]) for d in mine)))

    def build(self, op: Op, workload: Workload, config: Config) -> Run:
        reads, makes, hides = _FORMS[op.name]
        defines: dict[str, int | str] = {
            "ALGORITHM": self.name,
            "ELEMENT": ELEMENTS[workload.dtype],
            "DEGREE": _DEGREES[workload.dtype if hides else "f32"],
            "INPUT": reads,
            "OUTPUT": makes,
        }
        softmax = native.load(Path(__file__).with_name("softmax.cpp"), config["isa"], defines).softmax
        softmax.argtypes = (ctypes.c_void_p,) * 4
        softmax.restype = ctypes.c_int
        sizes = {"rows": _rows(workload), "cols": workload["cols"], "mask_rows": workload["rows"]}
        fields = {"accumulators": 1, "stream": False, "block": 1, "scale": 1.0, **sizes, **dict(op.attributes)}
        fields |= config.to_json()
        plan = ctypes.byref(_Plan(*(fields[name] for name in _FIELDS)))

        def run(inputs: Tensors, outputs: Tensors) -> Tensors:
            second = inputs[1].data_ptr() if len(inputs) > 1 else None
            if softmax(inputs[0].data_ptr(), second, outputs[0].data_ptr(), plan) != 0:
                raise ValueError(f"softmax.cpp was compiled without {config}: take values from the kernel's space")
            return outputs

        return run


def _rows(workload: Workload) -> int:
    """The rows of all matrices."""
    return workload["rows"] * dict(workload.sizes).get("heads", 1)


def _allowed(config: Config) -> bool:
    values = config.to_json()
    return int(values.get("accumulators", 1)) <= int(values["unroll"])
