"""Norms of NHWC images in Triton: a program takes some columns of some rows, a row being the channels of a pixel.

The statistics of columns are merged to those of channels or of groups of them, and the same rows read again for y.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from perfsuite.kernel import Config, Dimension, Kernel, Run, Scale, Space, Tensors
from perfsuite.machine import Machine
from perfsuite.op import ITEMSIZE, Op, Workload
from perfsuite.toolchain.gpu_targets import Target, not_resident, target_of
from perfsuite.toolchain.triton import jit, resident

from .channel_formulas import frozen
from .triton_channels import Merge, Sets, attributes, shift_of, supports
from .triton_sweep import merged, stepped

if TYPE_CHECKING:
    import triton.language as tl

# Programs that share the rows; _ENOUGH in all are one for every multiprocessor of most GPUs.
_SPLITS, _ENOUGH = (1, 4, 16, 64, 256), 256


@jit
def column_parts(
    x: tl.tensor,
    parts: tl.tensor,
    rows: tl.constexpr,
    groups: tl.constexpr,
    members: tl.constexpr,
    block: tl.constexpr,
    height: tl.constexpr,
    part: tl.constexpr,
    split: tl.constexpr,
    stages: tl.constexpr,
    first: tl.constexpr,
) -> None:
    """What `merge_parts` takes of `part` rows of a slab, of each of `block` columns, per program.

    It goes to parts[3, slabs, split, channels].
    """
    channels: tl.constexpr = groups * members
    slab, mine = tl.program_id(0) // split, tl.program_id(0) % split
    col = tl.program_id(1) * block + tl.arange(0, block)[None, :]
    begin, lane = mine * part, tl.arange(0, height)[:, None]
    x += slab * rows * channels
    lead = tl.arange(0, 16)[:, None]
    place = lead * channels + col // members * members
    shift = shift_of(tl.load(x + place, mask=(lead < rows) & (col < channels), other=0.0), rows, 16, 0)
    one, two = tl.zeros((height, block), tl.float32), tl.zeros((height, block), tl.float32)
    for start in tl.range(0, part, height, num_stages=stages):
        row = begin + start + lane
        mask = (row < rows) & (col < channels)
        v = tl.load(x + row * channels + col, mask=mask, other=0.0, eviction_policy=first).to(tl.float32)
        one, two = stepped(one, two, v - shift, mask, start // height)
    seen = (tl.minimum(tl.maximum(rows - begin, 0), part) - lane + height - 1) // height
    one, two = merged(one, two, seen.to(tl.float32), 0)
    parts += tl.program_id(0) * channels + col
    each = tl.num_programs(0) * channels
    tl.store(parts, one, mask=col < channels)
    tl.store(parts + each, two, mask=col < channels)
    tl.store(parts + 2 * each, shift, mask=col < channels)


@jit
def apply_columns(
    x: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    y: tl.tensor,
    mean: tl.tensor,
    spread: tl.tensor,
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
    last: tl.constexpr,
) -> None:
    """`part` rows of `block` columns per program; the spread of sets is rstd, the variance where that is frozen."""
    channels: tl.constexpr = groups * members
    slab, mine = tl.program_id(0) // split, tl.program_id(0) % split
    col = tl.program_id(1) * block + tl.arange(0, block)[None, :]
    real = col < channels
    place = slab * groups + col // members
    one, scale = tl.load(mean + place, mask=real, other=0.0), tl.load(spread + place, mask=real, other=1.0)
    if frozen:
        scale = tl.rsqrt(scale + eps)
    scale *= tl.load(weight + col, mask=real, other=0.0)
    offset = tl.load(bias + col, mask=real, other=0.0)
    begin = slab * rows * channels + col
    for start in tl.range(0, part, height, num_stages=stages):
        row = mine * part + start + tl.arange(0, height)[:, None]
        mask = (row < rows) & real
        at = begin + row * channels
        v = tl.load(x + at, mask=mask, other=0.0, eviction_policy=last).to(tl.float32)
        tl.store(y + at, (v - one) * scale + offset, mask=mask)


@dataclass(frozen=True)
class Cut:
    """`slabs` of `rows` of `channels`, which programs share: `block` columns of `part` rows each, `height` at a time.

    A slab is an image, or all of them where a channel has one mean over all.
    """

    slabs: int
    rows: int
    channels: int
    block: int
    height: int
    warps: int
    stages: int
    keep: bool
    split: int

    @classmethod
    def of(cls, config: Config, workload: Workload) -> Cut:
        sets = Sets.of(workload)
        values: dict[str, Any] = dict(config.values)
        return cls(sets.count // sets.groups, sets.images * sets.pixels, workload["c"], **values)

    @property
    def part(self) -> int:
        """Rows of one program: whole tiles."""
        return -(-self.rows // (self.split * self.height)) * self.height

    @property
    def worth_it(self) -> bool:
        """Whether there is a tile of rows for each of the programs that share them."""
        return self.split * self.height <= self.rows

    @property
    def grid(self) -> tuple[int, int]:
        return self.slabs * self.split, -(-self.channels // self.block)

    @property
    def constants(self) -> dict[str, Any]:
        """What every kernel over columns is compiled with."""
        tile = {"block": self.block, "height": self.height, "part": self.part, "split": self.split}
        return {"rows": self.rows, **tile, "stages": self.stages, "num_warps": self.warps, "num_stages": self.stages}

    @property
    def first(self) -> str:
        """Whether the first pass asks the L2 cache to keep what the second reads."""
        return "evict_last" if self.keep else ""

    @property
    def last(self) -> str:
        return "evict_first" if self.keep else ""

    def refused(self, itemsize: int, tensors: int, target: Target) -> str | None:
        """Why a program that reads `tensors` tensors at once is not resident on a target, or None (an estimate)."""
        elements = self.block * self.height
        each = -(-elements // (self.warps * target.lanes))
        staged = (self.stages - 1) * (target.backend == "cuda")
        return not_resident(
            target, self.warps, staged * elements * itemsize * tensors, 32 + each * (3 + tensors * self.stages)
        )


def build(op: Op, workload: Workload, config: Config) -> Run:
    sets, known, cut = Sets.of(workload), attributes(op), Cut.of(config, workload)
    reading = {**cut.constants, "groups": sets.groups, "members": sets.members}
    taking, applying = {**reading, "first": cut.first}, {**reading, "frozen": frozen(workload), "last": cut.last}
    merge = Merge(sets.count, sets.groups, sets.members, cut.rows, cut.part, cut.split, known)

    def run(inputs: Tensors, outputs: Tensors) -> Tensors:
        (x, weight, bias, *given), (y, *statistics) = inputs, outputs
        if statistics:
            parts = torch.empty(3, cut.slabs, cut.split, cut.channels, dtype=torch.float32, device=x.device)
            column_parts[cut.grid](x, parts, **taking)
            merge.launch(parts, statistics, given)
        mean, spread = (statistics or given)[:2]
        apply_columns[cut.grid](x, weight, bias, y, mean, spread, known["eps"], **applying)
        return outputs

    return resident(op, workload, run)


def space(workload: Workload, machine: Machine) -> Space:
    return columns_space(workload, machine, tensors=1)


def columns_space(workload: Workload, machine: Machine, tensors: int) -> Space:
    """How the columns and rows are cut, for a kernel that reads `tensors` tensors of the size of x at once."""
    target = target_of(machine)
    widest = 1 << max(0, workload["c"] - 1).bit_length()
    blocks = tuple(block for block in (16, 32, 64, 128, 256) if block < widest) + (widest,) * (widest <= 256)
    default = _default(workload, blocks)

    def allows(config: Config) -> bool:
        cut = Cut.of(config, workload)
        elements = cut.block * cut.height
        if cut.split > 1 and not cut.worth_it:
            return False
        return 32 * cut.warps <= elements <= 64 * 32 * cut.warps or config == default

    def refuses(config: Config) -> str | None:
        return None if target is None else Cut.of(config, workload).refused(ITEMSIZE[workload.dtype], tensors, target)

    return Space(
        (
            Dimension("block", blocks, Scale.POWERS),
            Dimension("height", (4, 16, 64), Scale.POWERS),
            Dimension("warps", (1, 2, 4, 8, 16), Scale.POWERS),
            Dimension("stages", (1, 2, 3)),
            Dimension("keep", (False, True), Scale.CATEGORICAL),
            Dimension("split", _SPLITS, Scale.POWERS),
        ),
        allows,
        default,
        refuses,
    )


def _default(workload: Workload, blocks: tuple[int, ...]) -> Config:
    """Lines of 64 columns, 8 elements in a thread, and as many programs as fill a GPU."""
    block, height = min(64, blocks[-1]), 16
    warps = max(1, min(8, block * height // 256))
    cuts = [
        Cut.of(Config.of(block=block, height=height, warps=warps, stages=1, keep=True, split=split), workload)
        for split in _SPLITS
    ]
    able = [cut for cut in cuts if cut.split == 1 or cut.worth_it]
    cut = next((cut for cut in able if cut.grid[0] * cut.grid[1] >= _ENOUGH), able[-1])
    return Config.of(block=block, height=height, warps=warps, stages=1, keep=True, split=cut.split)


KERNEL = Kernel(
    ops=("batch_norm_nhwc", "batch_norm_inference_nhwc", "group_norm_nhwc", "instance_norm_nhwc"),
    build=build,
    space=space,
    supports=supports,
    device="cuda",
)
