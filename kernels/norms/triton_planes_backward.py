"""Gradients of norms of NCHW images in Triton: sums over channels, and the same elements again for dx.

A channel that has a mean of its own is read once where one block holds it. With frozen statistics dx needs no sums: it
is written while they are taken.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from perfsuite.kernel import Config, Kernel, Run, Space, Tensors
from perfsuite.machine import Machine
from perfsuite.op import Op, Workload
from perfsuite.toolchain.gpu_targets import not_resident, target_of
from perfsuite.toolchain.triton import jit, resident
from perfsuite.toolchain.triton_rows import Tile, row_space

from .channel_formulas import frozen
from .triton_channels import Sets, supports
from .triton_planes import placed
from .triton_slopes import Slopes, rstd_of

if TYPE_CHECKING:
    import triton.language as tl


@jit
def sum_planes(
    dy: tl.tensor,
    x: tl.tensor,
    mean: tl.tensor,
    spread: tl.tensor,
    weight: tl.tensor,
    dx: tl.tensor,
    parts: tl.tensor,
    rows: int,
    eps: float,
    images: tl.constexpr,
    channels: tl.constexpr,
    members: tl.constexpr,
    pixels: tl.constexpr,
    frozen: tl.constexpr,
    block: tl.constexpr,
    height: tl.constexpr,
    part: tl.constexpr,
    split: tl.constexpr,
    stages: tl.constexpr,
    first: tl.constexpr,
) -> None:
    """What `merge_slopes` takes of `part` elements of `height` channels per program; of frozen ones dx, too.

    `members` channels have one mean; a channel is that of all `images`, or of one.
    """
    mine = tl.program_id(1)
    row = tl.program_id(0) * height + tl.arange(0, height)[:, None]
    real = row < rows
    one = tl.load(mean + row // members, mask=real, other=0.0)
    scale = rstd_of(tl.load(spread + row // members, mask=real, other=1.0), eps, frozen)
    scale *= tl.load(weight + row % channels)
    product, plain = tl.zeros((height, block), tl.float32), tl.zeros((height, block), tl.float32)
    for start in tl.range(0, part, block, num_stages=stages):
        at = mine * part + start + tl.arange(0, block)[None, :]
        mask = real & (at < images * pixels)
        place = placed(row, at, images, channels, 1, pixels)
        slope = tl.load(dy + place, mask=mask, other=0.0, eviction_policy=first).to(tl.float32)
        v = tl.load(x + place, mask=mask, other=0.0, eviction_policy=first).to(tl.float32)
        product += slope * (v - one)
        plain += slope
        if frozen:
            tl.store(dx + place, slope * scale, mask=mask)
    parts += row * split + mine
    tl.store(parts, tl.sum(product, axis=1, keep_dims=True), mask=real)
    tl.store(parts + rows * split, tl.sum(plain, axis=1, keep_dims=True), mask=real)


@jit
def slope_sets(
    dy: tl.tensor,
    x: tl.tensor,
    mean: tl.tensor,
    rstd: tl.tensor,
    weight: tl.tensor,
    dx: tl.tensor,
    normal_sums: tl.tensor,
    plain_sums: tl.tensor,
    rows: int,
    images: tl.constexpr,
    channels: tl.constexpr,
    pixels: tl.constexpr,
    block: tl.constexpr,
    height: tl.constexpr,
) -> None:
    """All of `height` sets of one channel per program, which holds them."""
    size: tl.constexpr = images * pixels
    row = tl.program_id(0) * height + tl.arange(0, height)[:, None]
    at = tl.arange(0, block)[None, :]
    real = row < rows
    mask = real & (at < size)
    place = placed(row, at, images, channels, 1, pixels)
    scale = tl.load(rstd + row, mask=real, other=0.0)
    slope = tl.load(dy + place, mask=mask, other=0.0).to(tl.float32)
    v = tl.load(x + place, mask=mask, other=0.0).to(tl.float32)
    normal = (v - tl.load(mean + row, mask=real, other=0.0)) * scale
    along = tl.sum(slope * normal, axis=1, keep_dims=True)
    plain = tl.sum(slope, axis=1, keep_dims=True)
    gradient = slope - plain / size - normal * (along / size)
    tl.store(dx + place, scale * tl.load(weight + row % channels) * gradient, mask=mask)
    tl.store(normal_sums + row, along, mask=real)
    tl.store(plain_sums + row, plain, mask=real)


@jit
def slope_planes(
    dy: tl.tensor,
    x: tl.tensor,
    mean: tl.tensor,
    rstd: tl.tensor,
    weight: tl.tensor,
    chains: tl.tensor,
    dx: tl.tensor,
    rows: int,
    images: tl.constexpr,
    channels: tl.constexpr,
    members: tl.constexpr,
    pixels: tl.constexpr,
    block: tl.constexpr,
    height: tl.constexpr,
    part: tl.constexpr,
    stages: tl.constexpr,
    last: tl.constexpr,
) -> None:
    """dx of the same elements, given bend and level of every set."""
    row = tl.program_id(0) * height + tl.arange(0, height)[:, None]
    real = row < rows
    one = tl.load(mean + row // members, mask=real, other=0.0)
    bend = tl.load(chains + row // members, mask=real, other=0.0)
    level = tl.load(chains + rows // members + row // members, mask=real, other=0.0)
    scale = tl.load(rstd + row // members, mask=real, other=0.0) * tl.load(weight + row % channels)
    for start in tl.range(0, part, block, num_stages=stages):
        at = tl.program_id(1) * part + start + tl.arange(0, block)[None, :]
        mask = real & (at < images * pixels)
        place = placed(row, at, images, channels, 1, pixels)
        slope = tl.load(dy + place, mask=mask, other=0.0, eviction_policy=last).to(tl.float32)
        v = tl.load(x + place, mask=mask, other=0.0, eviction_policy=last).to(tl.float32)
        tl.store(dx + place, slope * scale + ((v - one) * bend + level), mask=mask)


def build(op: Op, workload: Workload, config: Config) -> Run:
    sets, still = Sets.of(workload), frozen(workload)
    tile, rows = Tile.of(config, sets.images * sets.pixels), sets.count * sets.members
    slopes = Slopes.of(op, workload, tile.split, interleaved=False)
    on_chip = not tile.loop and sets.members == 1 and not still
    channels = sets.groups * sets.members
    whole = {"images": sets.images, "channels": channels, "pixels": sets.pixels, **tile.options}
    whole |= {"block": tile.block, "height": tile.height}
    both = {**whole, "members": sets.members, "part": tile.part, "stages": tile.stages}
    summing = {**both, "split": tile.split, "frozen": still, "first": tile.taking["first"]}
    sloping = {**both, "last": tile.joining["last"]}

    def run(inputs: Tensors, outputs: Tensors) -> Tensors:
        (dy, x, mean, spread, weight), (dx, *of_parameters) = inputs, outputs
        sums = slopes.sums(of_parameters)
        if on_chip:
            slope_sets[tile.grid(rows)](dy, x, mean, spread, weight, dx, *sums, rows, **whole)
            slopes.add(sums, of_parameters)
            return outputs
        parts = slopes.parts(x)
        sum_planes[tile.grid(rows)](dy, x, mean, spread, weight, dx, parts, rows, slopes.eps, **summing)
        chains = slopes.chains(parts, spread, weight, sums)
        slopes.add(sums, of_parameters)
        if not still:
            slope_planes[tile.grid(rows)](dy, x, mean, spread, weight, chains, dx, rows, **sloping)
        return outputs

    return resident(op, workload, run)


def space(workload: Workload, machine: Machine) -> Space:
    """As of rows: a channel is one. What one block holds is of two tensors, for which a row's estimate is too low."""
    sets, target = Sets.of(workload), target_of(machine)
    sizes = (("rows", sets.count * sets.members), ("cols", sets.images * sets.pixels))
    rows = row_space(Workload(workload.op, sizes, workload.dtype), machine, tensors=2)

    def refuses(config: Config) -> str | None:
        tile = Tile.of(config, sets.images * sets.pixels)
        reason = rows.refuses(config) if rows.refuses is not None else None
        if reason is not None or target is None or tile.loop:
            return reason
        each = -(-tile.block * tile.height // (tile.warps * target.lanes))
        return not_resident(target, tile.warps, registers=24 + each * 11 // 5)

    return replace(rows, refuses=refuses)


KERNEL = Kernel(
    ops=("batch_norm_backward", "batch_norm_inference_backward", "group_norm_backward", "instance_norm_backward"),
    build=build,
    space=space,
    supports=supports,
    device="cuda",
)
