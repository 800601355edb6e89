"""The gradients of LayerNorm and RMSNorm in Triton: programs that stay, and keep their share of dweight in registers.

Each takes every so manyth group of rows. Its sums over them are stored once, and a second launch adds those of all
programs in a fixed order: one config gives the same bits every time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from perfsuite.kernel import Config, Dimension, Kernel, Run, Scale, Space, Tensors
from perfsuite.machine import Machine
from perfsuite.op import ITEMSIZE, Op, Workload
from perfsuite.toolchain import triton_rows
from perfsuite.toolchain.gpu_targets import Target, not_resident, target_of
from perfsuite.toolchain.triton import jit, resident

if TYPE_CHECKING:
    import triton.language as tl

# Columns of which a program's registers hold x, dy, weight and the sums.
_LONGEST = 8192
# Columns and programs that the second launch adds up at once.
_COLUMNS, _PROGRAMS = 64, 32
# Multiprocessors of a GPU whose architecture is not known here.
_MULTIPROCESSORS = 128


@jit
def gradient_rows(
    dy: tl.tensor,
    x: tl.tensor,
    weight: tl.tensor,
    dx: tl.tensor,
    sums: tl.tensor,
    rows: int,
    eps: float,
    cols: tl.constexpr,
    centred: tl.constexpr,
    block: tl.constexpr,
    height: tl.constexpr,
    turns: tl.constexpr,
    stages: tl.constexpr,
) -> None:
    """`turns` groups of `height` rows per program; its sums go to sums[1 or 2, programs, cols]."""
    mine, programs = tl.program_id(0), tl.num_programs(0)
    col = tl.arange(0, block)[None, :]
    gain = tl.load(weight + col, mask=col < cols, other=0.0).to(tl.float32)
    dweight = tl.zeros((height, block), tl.float32)
    dbias = tl.zeros((height, block), tl.float32)
    for turn in tl.range(0, turns, num_stages=stages):
        row = (turn * programs + mine).to(tl.int64) * height + tl.arange(0, height)[:, None]
        mask = (row < rows) & (col < cols)
        at = row * cols + col
        v = tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
        slope = tl.load(dy + at, mask=mask, other=0.0).to(tl.float32)
        if centred:
            v = tl.where(mask, v - tl.sum(v, axis=1, keep_dims=True) / cols, 0.0)
        scale = tl.rsqrt(tl.sum(v * v, axis=1, keep_dims=True) / cols + eps)
        normal = v * scale
        dweight += slope * normal
        g = slope * gain
        gradient = g - normal * (tl.sum(g * normal, axis=1, keep_dims=True) / cols)
        if centred:
            dbias += slope
            gradient -= tl.sum(g, axis=1, keep_dims=True) / cols
        tl.store(dx + at, gradient * scale, mask=mask)
    place = sums + mine * cols + col
    tl.store(place, tl.sum(dweight, axis=0, keep_dims=True), mask=col < cols)
    if centred:
        tl.store(place + programs * cols, tl.sum(dbias, axis=0, keep_dims=True), mask=col < cols)


@jit
def gradient_sums(
    sums: tl.tensor,
    dweight: tl.tensor,
    dbias: tl.tensor,
    programs: tl.constexpr,
    cols: tl.constexpr,
    block: tl.constexpr,
    height: tl.constexpr,
) -> None:
    """`block` columns of dweight (or dbias) per program, `height` summands of each at a time."""
    which = tl.program_id(1)
    at = tl.program_id(0) * block + tl.arange(0, block)[None, :]
    sums += which * programs * cols
    total = tl.zeros((height, block), tl.float32)
    for start in tl.range(0, programs, height):
        row = start + tl.arange(0, height)[:, None]
        total += tl.load(sums + row * cols + at, mask=(row < programs) & (at < cols), other=0.0)
    total = tl.sum(total, axis=0, keep_dims=True)
    tl.store(dweight + at, total, mask=(at < cols) & (which == 0))
    tl.store(dbias + at, total, mask=(at < cols) & (which == 1))


_CENTRED = {"layer_norm_backward": True, "rms_norm_backward": False}


def build(op: Op, workload: Workload, config: Config) -> Run:
    rows, cols, height, centred = workload["rows"], workload["cols"], config["height"], _CENTRED[op.name]
    groups = -(-rows // height)
    programs = max(1, min(config["programs"], groups))
    first: dict[str, Any] = {
        "eps": op.attribute("eps"),
        "cols": cols,
        "centred": centred,
        "block": _whole(workload),
        "height": height,
        "turns": -(-groups // programs),
        "stages": config["stages"],
        "num_warps": config["warps"],
        "num_stages": config["stages"],
    }
    second = {"programs": programs, "cols": cols, "block": _COLUMNS, "height": _PROGRAMS, "num_warps": 4}

    def run(inputs: Tensors, outputs: Tensors) -> Tensors:
        (dy, x, weight), (dx, *of_parameters) = inputs, outputs
        if not x.numel():
            for gradient in of_parameters:
                gradient.zero_()
            return outputs
        sums = torch.empty(1 + centred, programs, cols, dtype=torch.float32, device=x.device)
        gradient_rows[(programs,)](dy, x, weight, dx, sums, rows, **first)
        gradient_sums[-(-cols // _COLUMNS), 1 + centred](sums, of_parameters[0], of_parameters[-1], **second)
        return outputs

    return resident(op, workload, run)


def space(workload: Workload, machine: Machine) -> Space:
    """`programs` are a few for every multiprocessor of the largest GPU of the machine's architecture."""
    whole, target = _whole(workload), target_of(machine)
    multiprocessors = target.multiprocessors if target is not None else _MULTIPROCESSORS

    def allows(config: Config) -> bool:
        elements = whole * config["height"]
        return bool(elements >= 32 * config["warps"] or config["warps"] == 1)

    height = max(1, min(16, 512 // whole))
    return Space(
        (
            Dimension("height", (1, 2, 4, 8, 16), Scale.POWERS),
            Dimension("warps", (1, 2, 4, 8, 16, 32), Scale.POWERS),
            Dimension("stages", (1, 2, 3)),
            Dimension("programs", tuple(multiprocessors * each for each in (1, 2, 4, 8))),
        ),
        allows,
        Config.of(height=height, warps=max(1, min(16, whole * height // 512)), stages=1, programs=2 * multiprocessors),
        lambda config: None if target is None else _refused(workload, config, target),
    )


def _refused(workload: Workload, config: Config, target: Target) -> str | None:
    """Why a program is not resident on the target, or None; the registers are estimated from compiled configs."""
    elements = _whole(workload) * config["height"]
    each = -(-elements // (config["warps"] * target.lanes))
    staged = (config["stages"] - 1) * (target.backend == "cuda")
    return not_resident(
        target, config["warps"], 2 * staged * elements * ITEMSIZE[workload.dtype], 24 + each * (5 + config["stages"])
    )


def _whole(workload: Workload) -> int:
    return 1 << max(0, workload["cols"] - 1).bit_length()


def supports(workload: Workload, machine: Machine) -> str | None:
    """Why the kernel cannot run a workload on a machine, or None."""
    if workload["cols"] > _LONGEST:
        return f"keeps a row in registers, which hold {_LONGEST} columns, not {workload['cols']}"
    return triton_rows.supports(workload, machine)


KERNEL = Kernel(ops=tuple(_CENTRED), build=build, space=space, supports=supports, device="cuda")
