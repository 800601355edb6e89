"""The gradients of softmax and its logarithm in Triton, in the data flow of `triton_rows`, with one sum."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from perfsuite.kernel import Config, Kernel, Run, Space, Tensors
from perfsuite.machine import Machine
from perfsuite.op import Op, Workload
from perfsuite.toolchain.triton import inlined, jit, resident
from perfsuite.toolchain.triton_rows import Tile, row_space, supports

if TYPE_CHECKING:
    import triton.language as tl


@inlined
def loaded(
    y: tl.tensor, dy: tl.tensor, at: tl.tensor, mask: tl.tensor, log: tl.constexpr, eviction: tl.constexpr
) -> tuple[tl.tensor, tl.tensor]:
    """(probabilities, gradients) in f32; lanes beyond the row count for nothing."""
    share = tl.load(y + at, mask=mask, other=0.0, eviction_policy=eviction).to(tl.float32)
    slope = tl.load(dy + at, mask=mask, other=0.0, eviction_policy=eviction).to(tl.float32)
    if log:
        share = tl.exp(share)
    return share, slope


@inlined
def weighed(share: tl.tensor, slope: tl.tensor, log: tl.constexpr) -> tl.tensor:
    """What is summed along a row: y dy; of the logarithm dy."""
    return slope if log else share * slope


@inlined
def gradient(share: tl.tensor, slope: tl.tensor, total: tl.tensor, log: tl.constexpr) -> tl.tensor:
    return slope - share * total if log else share * (slope - total)


@inlined
def swept(
    y: tl.tensor,
    dy: tl.tensor,
    real: tl.tensor,
    begin: int,
    length: tl.constexpr,
    cols: tl.constexpr,
    log: tl.constexpr,
    block: tl.constexpr,
    height: tl.constexpr,
    stages: tl.constexpr,
    eviction: tl.constexpr,
) -> tl.tensor:
    """The sum over `length` columns from `begin`."""
    total = tl.zeros((height, block), tl.float32)
    for start in tl.range(0, length, block, num_stages=stages):
        at = begin + start + tl.arange(0, block)[None, :]
        mask = real & (at < cols)
        share, slope = loaded(y, dy, at, mask, log, eviction)
        total += weighed(share, slope, log)
    return tl.sum(total, axis=1, keep_dims=True)


@jit
def gradient_rows(
    y: tl.tensor,
    dy: tl.tensor,
    dx: tl.tensor,
    rows: int,
    cols: tl.constexpr,
    log: tl.constexpr,
    block: tl.constexpr,
    height: tl.constexpr,
    stages: tl.constexpr,
    first: tl.constexpr,
    last: tl.constexpr,
) -> None:
    """height rows per program, block columns of them at a time; with `log`, y is the logarithm of the softmax."""
    row = tl.program_id(0).to(tl.int64) * height + tl.arange(0, height)[:, None]
    real = row < rows
    y += row * cols
    dy += row * cols
    dx += row * cols
    if block < cols:
        total = swept(y, dy, real, 0, cols, cols, log, block, height, stages, first)
        for start in tl.range(0, cols, block, num_stages=stages):
            at = start + tl.arange(0, block)[None, :]
            mask = real & (at < cols)
            share, slope = loaded(y, dy, at, mask, log, last)
            tl.store(dx + at, gradient(share, slope, total, log), mask=mask)
    else:
        at = tl.arange(0, block)[None, :]
        mask = real & (at < cols)
        share, slope = loaded(y, dy, at, mask, log, "")
        total = tl.sum(weighed(share, slope, log), axis=1, keep_dims=True)
        tl.store(dx + at, gradient(share, slope, total, log), mask=mask)


@jit
def gradient_parts(
    y: tl.tensor,
    dy: tl.tensor,
    parts: tl.tensor,
    cols: tl.constexpr,
    log: tl.constexpr,
    block: tl.constexpr,
    part: tl.constexpr,
    split: tl.constexpr,
    stages: tl.constexpr,
    first: tl.constexpr,
) -> None:
    """The sum over `part` columns of one row per program, stored to parts[rows, split]."""
    row, mine = tl.program_id(0).to(tl.int64), tl.program_id(1)
    real = tl.full((1, 1), True, tl.int1)
    total = swept(y + row * cols, dy + row * cols, real, mine * part, part, cols, log, block, 1, stages, first)
    tl.store(parts + row * split + mine + tl.zeros((1, 1), tl.int32), total)


@jit
def gradient_joined(
    y: tl.tensor,
    dy: tl.tensor,
    dx: tl.tensor,
    parts: tl.tensor,
    cols: tl.constexpr,
    log: tl.constexpr,
    block: tl.constexpr,
    part: tl.constexpr,
    split: tl.constexpr,
    stages: tl.constexpr,
    last: tl.constexpr,
) -> None:
    """The gradients of the same part from the sums of all parts."""
    row, mine = tl.program_id(0).to(tl.int64), tl.program_id(1)
    total = tl.sum(tl.load(parts + row * split + tl.arange(0, split)[None, :]), axis=1, keep_dims=True)
    for start in tl.range(0, part, block, num_stages=stages):
        at = mine * part + start + tl.arange(0, block)[None, :]
        share, slope = loaded(y + row * cols, dy + row * cols, at, at < cols, log, last)
        tl.store(dx + row * cols + at, gradient(share, slope, total, log), mask=at < cols)


_LOG = {"softmax_backward": False, "log_softmax_backward": True}


def build(op: Op, workload: Workload, config: Config) -> Run:
    tile, log = Tile.of(config, workload["cols"]), {"log": _LOG[op.name]}
    whole, taking, joining = {**log, **tile.whole}, {**log, **tile.taking}, {**log, **tile.joining}

    def run(inputs: Tensors, outputs: Tensors) -> Tensors:
        (y, dy), (dx,) = inputs, outputs
        rows = len(y)
        if not y.numel():
            return outputs
        if tile.split == 1:
            gradient_rows[tile.grid(rows)](y, dy, dx, rows, **whole)
        else:
            parts = torch.empty(rows, tile.split, dtype=torch.float32, device=y.device)
            gradient_parts[tile.grid(rows)](y, dy, parts, **taking)
            gradient_joined[tile.grid(rows)](y, dy, dx, parts, **joining)
        return outputs

    return resident(op, workload, run)


def space(workload: Workload, machine: Machine) -> Space:
    return row_space(workload, machine, tensors=2)


KERNEL = Kernel(ops=tuple(_LOG), build=build, space=space, supports=supports, device="cuda")
