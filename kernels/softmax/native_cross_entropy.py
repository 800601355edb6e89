"""Cross-entropy that reads the logits once, by blocks with a running maximum, and its gradient, which reads them again.

Forward and backward together are 2 reads and 1 write; the gradient may take the place of the logits.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

from perfsuite.kernel import Config, Dimension, Kernel, Run, Scale, Space, Tensors
from perfsuite.machine import Machine
from perfsuite.op import ITEMSIZE, Op, Workload
from perfsuite.toolchain import native

from .native import AHEAD, BLOCKS, ELEMENTS, STREAMED_BYTES, missing

_REALS = ("label_smoothing", "z_loss")
_FIELDS = ("rows", "cols", "ignore_index", *_REALS, "unroll", "stream", "block", "ahead")


class _Problem(ctypes.Structure):
    """cross_entropy.cpp's Problem."""

    _fields_ = [(name, ctypes.c_double if name in _REALS else ctypes.c_int64) for name in _FIELDS]


def space(workload: Workload, machine: Machine) -> Space:
    """The forward has blocks, the backward pass streams."""
    isas = tuple(isa for isa in ("avx512", "avx2") if isa in machine.isa)
    if workload.op.endswith("_backward"):
        large = workload["rows"] * workload["cols"] * ITEMSIZE[workload.dtype] > STREAMED_BYTES
        own, default = Dimension("stream", (False, True), Scale.CATEGORICAL), Config.of(stream=large)
    else:
        own, default = Dimension("block", BLOCKS, Scale.POWERS), Config.of(block=BLOCKS[1])
    return Space(
        (
            Dimension("isa", isas, Scale.CATEGORICAL),
            Dimension("unroll", (1, 2, 4, 8), Scale.POWERS),
            own,
            Dimension("ahead", AHEAD),
        ),
        default=Config((("isa", isas[0]), ("unroll", 2), *default.values, ("ahead", 1024))),
    )


def build(op: Op, workload: Workload, config: Config) -> Run:
    source = Path(__file__).with_name("cross_entropy.cpp")
    library = native.load(source, config["isa"], {"ELEMENT": ELEMENTS[workload.dtype]})
    call = library.cross_entropy_backward if op.name.endswith("_backward") else library.cross_entropy
    call.argtypes = (ctypes.c_void_p,) * (len(op.inputs) + len(op.outputs) + 1)
    call.restype = ctypes.c_int
    values = {"stream": False, "block": 1, **dict(workload.sizes), **dict(op.attributes), **config.to_json()}
    problem = ctypes.byref(_Problem(*(values[name] for name in _FIELDS)))

    def run(inputs: Tensors, outputs: Tensors) -> Tensors:
        failed = call(*[t.data_ptr() for t in (*inputs, *outputs)], problem)
        if failed == 1:
            raise ValueError(
                f"{op.name}: a label is no column of {workload['cols']}: labels are numbers of columns, "
                f"or {op.attribute('ignore_index')} (ignore_index) for a row that does not count"
            )
        if failed:
            raise ValueError(f"cross_entropy.cpp was compiled without {config}: take values from the kernel's space")
        return outputs

    return run


KERNEL = Kernel(
    ops=("cross_entropy", "cross_entropy_backward", "cross_entropy_smoothed", "cross_entropy_smoothed_backward"),
    build=build,
    space=space,
    supports=missing,
    sources=("cross_entropy.cpp",),
)
