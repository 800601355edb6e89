"""int8_linear in C++ over oneDNN's brgemm micro-kernels, AMX or VNNI as the CPU has (brgemm.cpp).

The weights are packed to the layout of these instructions when a weight tensor is first seen, as a framework does when
it loads a model: that is not part of the timed call.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path

import torch

from perfsuite.kernel import Config, Dimension, Kernel, Run, Scale, Space, Tensors
from perfsuite.machine import Machine
from perfsuite.op import Op, Workload
from perfsuite.toolchain import native
from perfsuite.toolchain.constants import PerConstants

from . import linear

_STEP = 64  # k is padded to this many bytes, as in brgemm.cpp


class _Plan(ctypes.Structure):
    _fields_ = (
        ("m", ctypes.c_int64),
        ("n", ctypes.c_int64),
        ("k", ctypes.c_int64),
        ("block_m", ctypes.c_int64),
        ("block_n", ctypes.c_int64),
        ("block_k", ctypes.c_int64),
        ("offset", ctypes.c_bool),
    )


def supports(workload: Workload, machine: Machine) -> str | None:
    if workload.dtype not in ("f32", "bf16"):
        return f"is written for f32 and bf16, not {workload.dtype}"
    return linear.supports(workload, machine) or native.missing_compiler()


def space(workload: Workload, machine: Machine) -> Space:
    """Blocks of a brgemm call: `m` rows are quantised at a time, `n` columns are packed together, `k` of a sum.

    `activation` is s8, or u8: 128 more, which the column sums of the weights correct for. VNNI cannot multiply s8 with
    s8, and oneDNN's brgemm does not correct for it: without AMX s8 gives wrong sums and no error (torch 2.13).
    """
    m, n, k = (max(1, workload[axis]) for axis in ("m", "n", "k"))
    rows = tuple(b for b in (16, 32, 64, 128, 256, 512) if b < 2 * m) or (16,)
    columns = tuple(b for b in (32, 64, 128, 256) if b < 2 * n) or (32,)
    depths = tuple(b for b in (256, 512, 1024, 2048, 4096) if b < 2 * k) or (256,)
    activations = ("s8", "u8") if "amx_int8" in machine.isa else ("u8",)
    default = Config.of(
        m=max(b for b in rows if b <= 128),
        n=max(b for b in columns if b <= 64),
        k=depths[-1],
        activation=activations[0],
    )
    return Space(
        (
            Dimension("m", rows, Scale.POWERS),
            Dimension("n", columns, Scale.POWERS),
            Dimension("k", depths, Scale.POWERS),
            Dimension("activation", activations, Scale.CATEGORICAL),
        ),
        default=default,
    )


def build(op: Op, workload: Workload, config: Config) -> Run:
    library = native.load(Path(__file__).with_name("brgemm.cpp"), "avx512", torch=True)
    m, n, k = (workload[axis] for axis in ("m", "n", "k"))
    plan = _Plan(m, n, k, config["m"], config["n"], config["k"], config["activation"] == "u8")
    library.refusal.restype = ctypes.c_char_p
    refusal = library.refusal(ctypes.byref(plan))
    if refusal is not None:
        raise RuntimeError(refusal.decode().splitlines()[0])
    library.pack.argtypes = (ctypes.POINTER(_Plan), *[ctypes.c_void_p] * 3)
    library.pack.restype = None
    call = library[f"linear_{workload.dtype}"]
    call.argtypes, call.restype = (ctypes.POINTER(_Plan), *[ctypes.c_void_p] * 5), None

    def pack(weights: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        columns = -(-n // config["n"]) * config["n"]
        packed = torch.empty(columns * -(-k // _STEP) * _STEP, dtype=torch.int8)
        correction = torch.empty(columns, dtype=torch.int32)
        library.pack(plan, weights[0].data_ptr(), packed.data_ptr(), correction.data_ptr())
        return packed, correction

    packed_once = PerConstants(pack)

    def run(inputs: Tensors, outputs: Tensors) -> Tensors:
        x, weight, w_scale = inputs
        packed, correction = packed_once((weight,))
        call(plan, x.data_ptr(), packed.data_ptr(), correction.data_ptr(), w_scale.data_ptr(), outputs[0].data_ptr())
        return outputs

    return run


KERNEL = Kernel(
    ops=("int8_linear",), build=build, space=space, supports=supports, sources=("brgemm.cpp", "int8.h", "linear.py")
)
