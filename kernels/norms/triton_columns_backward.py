"""Gradients of norms of NHWC images in Triton, as triton_columns goes over them: sums of columns, then dx.

With frozen statistics dx needs no sums: it is written while they are taken.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from perfsuite.kernel import Config, Kernel, Run, Space, Tensors
from perfsuite.machine import Machine
from perfsuite.op import Op, Workload
from perfsuite.toolchain.triton import jit, resident

from .channel_formulas import frozen
from .triton_channels import Sets, supports
from .triton_columns import Cut, columns_space
from .triton_slopes import Slopes, rstd_of

if TYPE_CHECKING:
    import triton.language as tl


@jit
def sum_columns(
    dy: tl.tensor,
    x: tl.tensor,
    mean: tl.tensor,
    spread: tl.tensor,
    weight: tl.tensor,
    dx: tl.tensor,
    parts: tl.tensor,
    eps: float,
    rows: tl.constexpr,
    groups: tl.constexpr,
    members: tl.constexpr,
    frozen: tl.constexpr,
    block: tl.constexpr,
    height: tl.constexpr,
    part: tl.constexpr,
    split: tl.constexpr,
    stages: tl.constexpr,
    first: tl.constexpr,
) -> None:
    """What `merge_slopes` takes of `part` rows of a slab, of `block` columns, per program; of frozen ones dx, too."""
    channels: tl.constexpr = groups * members
    slab, mine = tl.program_id(0) // split, tl.program_id(0) % split
    col = tl.program_id(1) * block + tl.arange(0, block)[None, :]
    real = col < channels
    place = slab * groups + col // members
    one = tl.load(mean + place, mask=real, other=0.0)
    scale = rstd_of(tl.load(spread + place, mask=real, other=1.0), eps, frozen)
    scale *= tl.load(weight + col, mask=real, other=0.0)
    product, plain = tl.zeros((height, block), tl.float32), tl.zeros((height, block), tl.float32)
    for start in tl.range(0, part, height, num_stages=stages):
        row = mine * part + start + tl.arange(0, height)[:, None]
        mask = (row < rows) & real
        at = slab * rows * channels + row * channels + col
        slope = tl.load(dy + at, mask=mask, other=0.0, eviction_policy=first).to(tl.float32)
        v = tl.load(x + at, mask=mask, other=0.0, eviction_policy=first).to(tl.float32)
        product += slope * (v - one)
        plain += slope
        if frozen:
            tl.store(dx + at, slope * scale, mask=mask)
    parts += tl.program_id(0) * channels + col
    tl.store(parts, tl.sum(product, axis=0, keep_dims=True), mask=real)
    tl.store(parts + tl.num_programs(0) * channels, tl.sum(plain, axis=0, keep_dims=True), mask=real)


@jit
def slope_columns(
    dy: tl.tensor,
    x: tl.tensor,
    mean: tl.tensor,
    rstd: tl.tensor,
    weight: tl.tensor,
    chains: tl.tensor,
    dx: tl.tensor,
    sets: int,
    rows: tl.constexpr,
    groups: tl.constexpr,
    members: tl.constexpr,
    block: tl.constexpr,
    height: tl.constexpr,
    part: tl.constexpr,
    split: tl.constexpr,
    stages: tl.constexpr,
    last: tl.constexpr,
) -> None:
    """dx of the same elements, given bend and level of every set."""
    channels: tl.constexpr = groups * members
    slab, mine = tl.program_id(0) // split, tl.program_id(0) % split
    col = tl.program_id(1) * block + tl.arange(0, block)[None, :]
    real = col < channels
    place = slab * groups + col // members
    one = tl.load(mean + place, mask=real, other=0.0)
    bend = tl.load(chains + place, mask=real, other=0.0)
    level = tl.load(chains + sets + place, mask=real, other=0.0)
    scale = tl.load(rstd + place, mask=real, other=0.0) * tl.load(weight + col, mask=real, other=0.0)
    for start in tl.range(0, part, height, num_stages=stages):
        row = mine * part + start + tl.arange(0, height)[:, None]
        mask = (row < rows) & real
        at = slab * rows * channels + row * channels + col
        slope = tl.load(dy + at, mask=mask, other=0.0, eviction_policy=last).to(tl.float32)
        v = tl.load(x + at, mask=mask, other=0.0, eviction_policy=last).to(tl.float32)
        tl.store(dx + at, slope * scale + ((v - one) * bend + level), mask=mask)


def build(op: Op, workload: Workload, config: Config) -> Run:
    sets, still, cut = Sets.of(workload), frozen(workload), Cut.of(config, workload)
    slopes = Slopes.of(op, workload, cut.split, interleaved=True)
    both = {**cut.constants, "groups": sets.groups, "members": sets.members}
    summing, sloping = {**both, "frozen": still, "first": cut.first}, {**both, "last": cut.last}

    def run(inputs: Tensors, outputs: Tensors) -> Tensors:
        (dy, x, mean, spread, weight), (dx, *of_parameters) = inputs, outputs
        parts, sums = slopes.parts(x), slopes.sums(of_parameters)
        sum_columns[cut.grid](dy, x, mean, spread, weight, dx, parts, slopes.eps, **summing)
        chains = slopes.chains(parts, spread, weight, sums)
        slopes.add(sums, of_parameters)
        if not still:
            slope_columns[cut.grid](dy, x, mean, spread, weight, chains, dx, sets.count, **sloping)
        return outputs

    return resident(op, workload, run)


def space(workload: Workload, machine: Machine) -> Space:
    return columns_space(workload, machine, tensors=2)


KERNEL = Kernel(
    ops=(
        "batch_norm_backward_nhwc",
        "batch_norm_inference_backward_nhwc",
        "group_norm_backward_nhwc",
        "instance_norm_backward_nhwc",
    ),
    build=build,
    space=space,
    supports=supports,
    device="cuda",
)
