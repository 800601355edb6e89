"""Softmax in Triton: a row is held on the chip when it fits one block, else read twice, with an online sum.

A few long rows are split over several programs: one launch takes maximum and sum of the parts, a second joins them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from perfsuite.kernel import Config, Kernel, Run, Space, Tensors
from perfsuite.machine import Machine
from perfsuite.op import Op, Workload
from perfsuite.toolchain.triton import inlined, jit, resident
from perfsuite.toolchain.triton_rows import Tile, row_space, supports

from .triton_online import added, merged

if TYPE_CHECKING:
    import triton.language as tl


@inlined
def loaded(
    x: tl.tensor,
    bias: tl.tensor,
    at: tl.tensor,
    mask: tl.tensor,
    scale: float,
    masked: tl.constexpr,
    eviction: tl.constexpr,
) -> tl.tensor:
    """x, or scale x + bias, in f32."""
    v = tl.load(x + at, mask=mask, other=float("-inf"), eviction_policy=eviction).to(tl.float32)
    if masked:
        v = v * scale + tl.load(bias + at, mask=mask, other=0.0).to(tl.float32)
    return v


@inlined
def swept(
    x: tl.tensor,
    bias: tl.tensor,
    real: tl.tensor,
    begin: int,
    length: tl.constexpr,
    cols: tl.constexpr,
    scale: float,
    masked: tl.constexpr,
    block: tl.constexpr,
    height: tl.constexpr,
    stages: tl.constexpr,
    eviction: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """The maximum of `length` columns from `begin`, and the sum of their exponentials."""
    peak = tl.full((height, block), float("-inf"), tl.float32)
    total = tl.zeros((height, block), tl.float32)
    for start in tl.range(0, length, block, num_stages=stages):
        at = begin + start + tl.arange(0, block)[None, :]
        v = loaded(x, bias, at, real & (at < cols), scale, masked, eviction)
        peak, total = added(v, peak, total)
    return merged(peak, total, 1)


@inlined
def normalised(v: tl.tensor, top: tl.tensor, total: tl.tensor, log: tl.constexpr) -> tl.tensor:
    return v - top - tl.log(total) if log else tl.exp(v - top) * (1.0 / total)


@jit
def softmax_rows(
    x: tl.tensor,
    bias: tl.tensor,
    y: tl.tensor,
    rows: int,
    period: int,
    scale: float,
    cols: tl.constexpr,
    log: tl.constexpr,
    masked: tl.constexpr,
    block: tl.constexpr,
    height: tl.constexpr,
    stages: tl.constexpr,
    first: tl.constexpr,
    last: tl.constexpr,
) -> None:
    """height rows of x[rows, cols] per program, block columns of them at a time.

    `log` stores the logarithm. `masked` takes scale x + bias, where bias[period, cols] repeats along the rows.
    """
    row = tl.program_id(0).to(tl.int64) * height + tl.arange(0, height)[:, None]
    real = row < rows
    x += row * cols
    y += row * cols
    bias += row % period * cols
    if block < cols:
        top, total = swept(x, bias, real, 0, cols, cols, scale, masked, block, height, stages, first)
        for start in tl.range(0, cols, block, num_stages=stages):
            at = start + tl.arange(0, block)[None, :]
            mask = real & (at < cols)
            v = loaded(x, bias, at, mask, scale, masked, last)
            tl.store(y + at, normalised(v, top, total, log), mask=mask)
    else:
        at = tl.arange(0, block)[None, :]
        mask = real & (at < cols)
        v = loaded(x, bias, at, mask, scale, masked, "")
        top = tl.max(v, axis=1, keep_dims=True)
        total = tl.sum(tl.exp(v - top), axis=1, keep_dims=True)
        tl.store(y + at, normalised(v, top, total, log), mask=mask)


@jit
def softmax_parts(
    x: tl.tensor,
    bias: tl.tensor,
    parts: tl.tensor,
    period: int,
    scale: float,
    cols: tl.constexpr,
    masked: tl.constexpr,
    block: tl.constexpr,
    part: tl.constexpr,
    split: tl.constexpr,
    stages: tl.constexpr,
    first: tl.constexpr,
) -> None:
    """Maximum and sum of `part` columns of one row per program, stored to parts[rows, 2, split]."""
    row, mine = tl.program_id(0).to(tl.int64), tl.program_id(1)
    real = tl.full((1, 1), True, tl.int1)
    bias += row % period * cols
    top, total = swept(
        x + row * cols, bias, real, mine * part, part, cols, scale, masked, block, 1, stages, first
    )  # fmt: skip
    parts += row * 2 * split + mine + tl.zeros((1, 1), tl.int32)
    tl.store(parts, top)
    tl.store(parts + split, total)


@jit
def softmax_joined(
    x: tl.tensor,
    bias: tl.tensor,
    y: tl.tensor,
    parts: tl.tensor,
    period: int,
    scale: float,
    cols: tl.constexpr,
    log: tl.constexpr,
    masked: tl.constexpr,
    block: tl.constexpr,
    part: tl.constexpr,
    split: tl.constexpr,
    stages: tl.constexpr,
    last: tl.constexpr,
) -> None:
    """The same part of a row from the maxima and sums of all its parts."""
    row, mine = tl.program_id(0).to(tl.int64), tl.program_id(1)
    each = tl.arange(0, split)[None, :]
    parts += row * 2 * split
    top, total = merged(tl.load(parts + each), tl.load(parts + split + each), 1)
    bias += row % period * cols
    for start in tl.range(0, part, block, num_stages=stages):
        at = mine * part + start + tl.arange(0, block)[None, :]
        v = loaded(x + row * cols, bias, at, at < cols, scale, masked, last)
        tl.store(y + row * cols + at, normalised(v, top, total, log), mask=at < cols)


FLAGS = {
    "softmax": {"log": False, "masked": False},
    "log_softmax": {"log": True, "masked": False},
    "masked_softmax": {"log": False, "masked": True},
}


def build(op: Op, workload: Workload, config: Config) -> Run:
    tile, flags = Tile.of(config, workload["cols"]), FLAGS[op.name]
    period = workload["rows"]
    rows = period * dict(workload.sizes).get("heads", 1)
    shared: dict[str, Any] = {"period": period, "scale": dict(op.attributes).get("scale", 1.0)}
    whole, joining = {**shared, **flags, **tile.whole}, {**shared, **flags, **tile.joining}
    taking = {**shared, "masked": flags["masked"], **tile.taking}

    def run(inputs: Tensors, outputs: Tensors) -> Tensors:
        x, bias, y = inputs[0], inputs[-1], outputs[0]
        if not x.numel():
            return outputs
        if tile.split == 1:
            softmax_rows[tile.grid(rows)](x, bias, y, rows, **whole)
        else:
            parts = torch.empty(rows, 2, tile.split, dtype=torch.float32, device=x.device)
            softmax_parts[tile.grid(rows)](x, bias, parts, **taking)
            softmax_joined[tile.grid(rows)](x, bias, y, parts, **joining)
        return outputs

    return resident(op, workload, run)


def space(workload: Workload, machine: Machine) -> Space:
    return row_space(workload, machine, tensors=1 + FLAGS[workload.op]["masked"])


KERNEL = Kernel(ops=tuple(FLAGS), build=build, space=space, supports=supports, device="cuda")
