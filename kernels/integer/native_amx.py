"""int8_linear in C++ on AMX tiles, with quantisation, dequantisation and prefetches beside the products (amx.cpp).

The weights are packed to tiles when a weight tensor is first seen, as a framework does when it loads a model: that is
not part of the timed call.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path

import torch

from perfsuite.kernel import Config, Dimension, Kernel, Run, Scale, Space, Tensors
from perfsuite.machine import Machine
from perfsuite.op import ITEMSIZE, Op, Workload
from perfsuite.toolchain import native
from perfsuite.toolchain.constants import PerConstants

_LINE = 64  # bytes of a cache line
_TILES = 32 * 64  # bytes of weights in a step of a block: 32 columns, 64 of k


class _Plan(ctypes.Structure):
    _fields_ = (
        ("m", ctypes.c_int64),
        ("n", ctypes.c_int64),
        ("k", ctypes.c_int64),
        ("block_m", ctypes.c_int64),
        ("block_k", ctypes.c_int64),
        ("prefetch", ctypes.c_bool),
        ("stream", ctypes.c_bool),
    )


def supports(workload: Workload, machine: Machine) -> str | None:
    if "amx_int8" not in machine.isa:
        return "needs AMX int8 tiles, which this CPU has not"
    if workload.dtype not in ("f32", "bf16"):
        return f"is written for f32 and bf16, not {workload.dtype}"
    return native.missing_compiler()


def space(workload: Workload, machine: Machine) -> Space:
    """`m` rows are quantised together and meet each block of weights, `k` of its depth at a time, while in L1.

    `prefetch` fetches the next rows, weights and lines of y between the products; `stream` writes y past the caches.
    """
    rows = tuple(b for b in (32, 64, 128, 256, 512, 1024) if b < 2 * workload["m"]) or (32,)
    depths = tuple(b for b in (512, 1024, 2048, 4096) if b < 2 * workload["k"]) or (512,)
    streams = (False, True) if workload["n"] * ITEMSIZE[workload.dtype] % _LINE == 0 else (False,)
    default = Config.of(
        m=max(b for b in rows if b <= 512),
        k=max(b for b in depths if b <= 1024),
        prefetch=workload["m"] > 32,
        stream=streams[-1] and workload["m"] > 32,
    )
    return Space(
        (
            Dimension("m", rows, Scale.POWERS),
            Dimension("k", depths, Scale.POWERS),
            Dimension("prefetch", (False, True)),
            Dimension("stream", streams),
        ),
        default=default,
    )


def build(op: Op, workload: Workload, config: Config) -> Run:
    library = native.load(Path(__file__).with_name("amx.cpp"), "amx")
    library.allowed.restype = ctypes.c_bool
    if not library.allowed():
        raise RuntimeError("the operating system does not grant AMX tiles to this process (Linux 5.16 or newer does)")
    m, n, k = (workload[axis] for axis in ("m", "n", "k"))
    plan = ctypes.byref(_Plan(m, n, k, config["m"], config["k"], config["prefetch"], config["stream"]))
    library.pack.argtypes, library.pack.restype = [ctypes.c_void_p] * 3, None
    call = library[f"linear_{workload.dtype}"]
    call.argtypes, call.restype = [ctypes.c_void_p] * 5, None

    def pack(weights: Sequence[torch.Tensor]) -> torch.Tensor:
        packed = torch.empty(-(-n // 32) * -(-k // 64) * _TILES, dtype=torch.int8)
        library.pack(plan, weights[0].data_ptr(), packed.data_ptr())
        return packed

    packed_once = PerConstants(pack)

    def run(inputs: Tensors, outputs: Tensors) -> Tensors:
        x, weight, w_scale = inputs
        call(plan, x.data_ptr(), packed_once((weight,)).data_ptr(), w_scale.data_ptr(), outputs[0].data_ptr())
        return outputs

    return run


KERNEL = Kernel(ops=("int8_linear",), build=build, space=space, supports=supports, sources=("amx.cpp", "int8.h"))
