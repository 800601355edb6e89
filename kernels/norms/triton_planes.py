"""Norms of NCHW images in Triton: what has one mean is held on the chip where it fits one block, else read twice.

It is a row of memory (a group of an image's channels), or as many rows as there are images (a channel).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from perfsuite.kernel import Config, Kernel, Run, Space, Tensors
from perfsuite.machine import Machine
from perfsuite.op import Op, Workload
from perfsuite.toolchain.triton import inlined, jit, resident
from perfsuite.toolchain.triton_rows import Tile, row_space

from .channel_formulas import frozen
from .triton_channels import Merge, Sets, attributes, operands, settled, shift_of, supports
from .triton_sweep import merged, stepped

if TYPE_CHECKING:
    import triton.language as tl


@inlined
def placed(
    row: tl.tensor,
    at: tl.tensor,
    images: tl.constexpr,
    groups: tl.constexpr,
    members: tl.constexpr,
    pixels: tl.constexpr,
) -> tl.tensor:
    """Where in memory the elements `at` of the sets `row` are."""
    if images > 1:
        place = row * pixels + at // pixels * (groups * pixels) + at % pixels
    else:
        place = row * (members * pixels) + at
    return place


@inlined
def mapped(
    v: tl.tensor,
    scale: tl.tensor,
    row: tl.tensor,
    at: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    groups: tl.constexpr,
    members: tl.constexpr,
    pixels: tl.constexpr,
) -> tl.tensor:
    """v, from which the mean is taken already, scaled and with its channel's weight and bias."""
    channel = row % groups * members
    if members > 1:
        channel = channel + tl.minimum(at // pixels, members - 1)
    return v * (scale * tl.load(weight + channel)) + tl.load(bias + channel)


@jit
def norm_sets(
    x: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    y: tl.tensor,
    mean: tl.tensor,
    rstd: tl.tensor,
    running_mean: tl.tensor,
    running_var: tl.tensor,
    next_mean: tl.tensor,
    next_var: tl.tensor,
    sets: int,
    eps: float,
    momentum: float,
    images: tl.constexpr,
    groups: tl.constexpr,
    members: tl.constexpr,
    pixels: tl.constexpr,
    running: tl.constexpr,
    block: tl.constexpr,
    height: tl.constexpr,
) -> None:
    """`height` whole sets per program."""
    size: tl.constexpr = images * members * pixels
    row = tl.program_id(0) * height + tl.arange(0, height)[:, None]
    at = tl.arange(0, block)[None, :]
    real = row < sets
    mask = real & (at < size)
    place = placed(row, at, images, groups, members, pixels)
    v = tl.load(x + place, mask=mask, other=0.0).to(tl.float32)
    one = tl.sum(v, axis=1, keep_dims=True) / size
    v = tl.where(mask, v - one, 0.0)
    # What the mean of large elements is off by; nothing is added to an infinite one.
    off = tl.sum(v, axis=1, keep_dims=True) / size
    one = tl.where(tl.abs(one) < float("inf"), one + off, one)
    v = tl.where(mask, v - off, 0.0)
    scale = settled(
        one, tl.sum(v * v, axis=1, keep_dims=True), row, real,
        mean, rstd, running_mean, running_var, next_mean, next_var, eps, momentum, size, running,
    )  # fmt: skip
    tl.store(y + place, mapped(v, scale, row, at, weight, bias, groups, members, pixels), mask=mask)


@jit
def set_parts(
    x: tl.tensor,
    parts: tl.tensor,
    sets: int,
    images: tl.constexpr,
    groups: tl.constexpr,
    members: tl.constexpr,
    pixels: tl.constexpr,
    block: tl.constexpr,
    height: tl.constexpr,
    part: tl.constexpr,
    split: tl.constexpr,
    stages: tl.constexpr,
    first: tl.constexpr,
) -> None:
    """What `merge_parts` takes of `part` elements of `height` sets per program, to parts[3, sets, split]."""
    size: tl.constexpr = images * members * pixels
    mine = tl.program_id(1)
    row = tl.program_id(0) * height + tl.arange(0, height)[:, None]
    real = row < sets
    begin, lane = mine * part, tl.arange(0, block)[None, :]
    lead = tl.arange(0, 64)[None, :]
    start_of = x + placed(row, lead, images, groups, members, pixels)
    shift = shift_of(tl.load(start_of, mask=real & (lead < size), other=0.0), size, 64, 1)
    one, two = tl.zeros((height, block), tl.float32), tl.zeros((height, block), tl.float32)
    for start in tl.range(0, part, block, num_stages=stages):
        at = begin + start + lane
        place = placed(row, at, images, groups, members, pixels)
        mask = real & (at < size)
        v = tl.load(x + place, mask=mask, other=0.0, eviction_policy=first).to(tl.float32)
        one, two = stepped(one, two, v - shift, mask, start // block)
    seen = (tl.minimum(tl.maximum(size - begin, 0), part) - lane + block - 1) // block
    one, two = merged(one, two, seen.to(tl.float32), 1)
    parts += row * split + mine
    tl.store(parts, one, mask=real)
    tl.store(parts + sets * split, two, mask=real)
    tl.store(parts + 2 * sets * split, shift, mask=real)


@jit
def apply_parts(
    x: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    y: tl.tensor,
    mean: tl.tensor,
    spread: tl.tensor,
    sets: int,
    eps: float,
    images: tl.constexpr,
    groups: tl.constexpr,
    members: tl.constexpr,
    pixels: tl.constexpr,
    frozen: tl.constexpr,
    block: tl.constexpr,
    height: tl.constexpr,
    part: tl.constexpr,
    stages: tl.constexpr,
    last: tl.constexpr,
) -> None:
    """`part` elements of `height` sets per program; their spread is rstd, the variance where that is frozen."""
    size: tl.constexpr = images * members * pixels
    row = tl.program_id(0) * height + tl.arange(0, height)[:, None]
    real = row < sets
    one, scale = tl.load(mean + row, mask=real, other=0.0), tl.load(spread + row, mask=real, other=1.0)
    if frozen:
        scale = tl.rsqrt(scale + eps)
    for start in tl.range(0, part, block, num_stages=stages):
        at = tl.program_id(1) * part + start + tl.arange(0, block)[None, :]
        mask = real & (at < size)
        place = placed(row, at, images, groups, members, pixels)
        v = tl.load(x + place, mask=mask, other=0.0, eviction_policy=last).to(tl.float32)
        tl.store(y + place, mapped(v - one, scale, row, at, weight, bias, groups, members, pixels), mask=mask)


def build(op: Op, workload: Workload, config: Config) -> Run:
    sets, known = Sets.of(workload), attributes(op)
    tile, eps = Tile.of(config, sets.size), known["eps"]
    whole = {**sets.constants, "block": tile.block, "height": tile.height, **tile.options}
    reading = {**whole, "part": tile.part, "stages": tile.stages}
    taking = {**reading, "split": tile.split, "first": tile.taking["first"]}
    applying = {**reading, "frozen": frozen(workload), "last": tile.joining["last"]}
    merge = Merge(sets.count, 1, 1, sets.size, tile.part, tile.split, known)

    def run(inputs: Tensors, outputs: Tensors) -> Tensors:
        (x, weight, bias, *given), (y, *statistics) = inputs, outputs
        grid = tile.grid(sets.count)
        if not tile.loop and statistics:
            norm_sets[grid](
                x, weight, bias, y, *operands(statistics, given), sets.count, **known, running=bool(given), **whole
            )
            return outputs
        if statistics:
            parts = torch.empty(3, sets.count, tile.split, dtype=torch.float32, device=x.device)
            set_parts[grid](x, parts, sets.count, **taking)
            merge.launch(parts, statistics, given)
        mean, spread = (statistics or given)[:2]
        apply_parts[grid](x, weight, bias, y, mean, spread, sets.count, eps, **applying)
        return outputs

    return resident(op, workload, run)


def space(workload: Workload, machine: Machine) -> Space:
    return sets_space(workload, machine, tensors=1)


def sets_space(workload: Workload, machine: Machine, tensors: int) -> Space:
    """As of rows: a set is one. `tensors` of the size of x are read at once."""
    sets = Sets.of(workload)
    return row_space(
        Workload(workload.op, (("rows", sets.count), ("cols", sets.size)), workload.dtype), machine, tensors
    )


KERNEL = Kernel(
    ops=("batch_norm", "batch_norm_inference", "group_norm", "instance_norm"),
    build=build,
    space=space,
    supports=supports,
    device="cuda",
)
