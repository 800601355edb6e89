"""MBConv in one pass: no expanded image in memory, the matrix products in registers, AMX tiles or oneDNN's brgemm.

The weights are packed once for given tensors, outside of the timed calls. `rows` output rows are computed at a time,
the hidden channels in chunks of `chunk`; the depthwise convolution keeps `tall` rows in registers. `gemm` chooses the
matrix product: `columnsN` keeps N columns of the result in registers with the bias in them, `amx` does so in tiles
(bf16 only), both written out in gemm.h; `brgemm` is PyTorch's.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from perfsuite.kernel import Config, Dimension, Kernel, Run, Scale, Space, Tensors
from perfsuite.machine import Machine
from perfsuite.op import Op, Workload
from perfsuite.toolchain import native
from perfsuite.toolchain.constants import PerConstants

# Columns of the result in registers, the best guess first: 14 rows of 32 divide the usual images of 7 * 2^n rows.
_COLUMNS = {f"columns{n}": n for n in (32, 64, 16)}
_SIZES = ("n", "c", "h", "w", "m", "k", "outer", "rows", "chunk", "block", "depth", "tall")


class _Problem(ctypes.Structure):
    """The struct of mbconv.cpp."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("expand", "b1", "depthwise", "b2", "project", "b3")),
        *((name, ctypes.c_int64) for name in _SIZES),
    )


def build(op: Op, workload: Workload, config: Config) -> Run:
    gemm, bf16 = config["gemm"], workload.dtype == "bf16"
    defines: dict[str, int | str] = {"BF16": 1} if bf16 else {}
    if gemm in _COLUMNS:
        defines["COLUMNS"] = _COLUMNS[gemm]
    elif gemm == "amx":
        defines["AMX"] = 1
    isa = "amx" if gemm == "amx" else "avx512_bf16" if bf16 and gemm in _COLUMNS else "avx512"
    call = native.load(Path(__file__).with_name("mbconv.cpp"), isa, defines, torch=True).mbconv
    call.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]
    call.restype = None

    def derive(weights: Tensors) -> tuple[_Problem, Tensors]:
        return _problem(workload, config, weights)

    per_weights = PerConstants(derive)

    def run(inputs: Tensors, outputs: Tensors) -> Tensors:
        problem, _ = per_weights(inputs[1:])
        call(ctypes.byref(problem), inputs[0].data_ptr(), outputs[0].data_ptr())
        return outputs

    return run


def _problem(workload: Workload, config: Config, weights: Tensors) -> tuple[_Problem, Tensors]:
    """The struct, and the packed weights that it points to."""
    expand, b1, depthwise, b2, project, b3 = weights
    sizes, chunk = dict(workload.sizes), config["chunk"]
    amx = config["gemm"] == "amx"
    depth = 32 if amx else chunk
    outer, hidden = _round_up(sizes["c"], 32), _round_up(sizes["m"], depth)
    block = 32 if amx else outer
    packed = (
        _packed(_padded(expand, hidden, outer), chunk),
        _padded(b1.float(), hidden),
        _padded(depthwise.float().flatten(1), hidden).view(hidden // 16, 16, -1).transpose(1, 2).contiguous(),
        _padded(b2.float(), hidden),
        _packed(_padded(project, outer, hidden), block),
        _padded(b3.float(), outer),
    )
    sizes.update(m=hidden, outer=outer, rows=config["rows"], chunk=chunk, block=block, depth=depth, tall=config["tall"])
    return _Problem(*(t.data_ptr() for t in packed), *(sizes[name] for name in _SIZES)), packed


def _round_up(value: int, to: int) -> int:
    return -(-value // to) * to


def _padded(tensor: Tensor, *shape: int) -> Tensor:
    """Zeros after the first dimensions' ends, up to `shape`."""
    margins = [0, 0] * (tensor.dim() - len(shape))
    for length, wanted in reversed(list(zip(tensor.shape, shape))):
        margins += [0, wanted - length]
    return F.pad(tensor, margins).contiguous()


def _packed(weight: Tensor, block: int) -> Tensor:
    """(out, in) to [out / block][in / pair][block][pair], pair being 2 in bf16 and 1 in f32 (gemm.h)."""
    pair = 2 if weight.dtype == torch.bfloat16 else 1
    out, depth = weight.shape
    return weight.view(out // block, block, depth // pair, pair).transpose(1, 2).contiguous()


def supports(workload: Workload, machine: Machine) -> str | None:
    if workload.dtype not in ("f32", "bf16"):
        return f"computes f32 and bf16, not {workload.dtype}"
    if workload["k"] not in (3, 5):
        return f"has depthwise kernels of 3 and 5, not of {workload['k']}"
    if "avx512" not in machine.isa:
        return f"needs AVX-512, this CPU has {', '.join(machine.isa) or 'none of the known instruction sets'}"
    # Without them oneDNN generates no bf16 kernel (tried with ONEDNN_MAX_CPU_ISA=AVX512_CORE).
    if workload.dtype == "bf16" and not {"avx512_bf16", "amx_bf16"} & set(machine.isa):
        return f"needs avx512_bf16 or amx_bf16 for bf16, this CPU has {', '.join(machine.isa)}"
    return native.missing_compiler()


def space(workload: Workload, machine: Machine) -> Space:
    bf16 = workload.dtype == "bf16"
    rows = tuple(r for r in (1, 2, 4, 7, 8, 14, 28) if r <= workload["h"])
    chunks = tuple(c for c in (16, 32, 64, 128, 256) if c < 2 * max(32, workload["m"]))
    own = [gemm for gemm, columns in _COLUMNS.items() if columns <= chunks[-1]]
    gemms = (
        *["amx"] * (bf16 and "amx_bf16" in machine.isa),
        *(own if not bf16 or "avx512_bf16" in machine.isa else ()),
        "brgemm",
    )

    def allows(config: Config) -> bool:
        gemm, chunk = config["gemm"], config["chunk"]
        if config["tall"] > config["rows"]:
            return False
        if gemm == "amx":  # tiles make blocks of 16 or 32 columns
            return bool(chunk <= 32)
        # Every call of brgemm costs about 0.1 us, so its blocks are larger.
        return bool(chunk >= _COLUMNS.get(gemm, 32))

    amx = gemms[0] == "amx"
    together = rows[len(rows) // 2] if amx else max(r for r in rows if r <= 14)
    talls = (1, 2, 4) if workload["k"] == 3 else (1, 2)
    return Space(
        (
            Dimension("gemm", gemms, Scale.CATEGORICAL),
            Dimension("rows", rows),
            Dimension("chunk", chunks, Scale.POWERS),
            Dimension("tall", talls, Scale.POWERS),
        ),
        allows=allows,
        default=Config.of(
            gemm=gemms[0],
            rows=together,
            chunk=chunks[0] if amx else max(c for c in chunks if c <= 64),
            tall=max(t for t in talls if t <= together),
        ),
    )


KERNEL = Kernel(ops=("mbconv",), build=build, space=space, supports=supports, sources=("mbconv.cpp",))
