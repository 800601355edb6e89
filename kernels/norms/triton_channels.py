"""What the Triton kernels of the norms of images share: sets of elements with one mean, and how parts of them merge.

A set is a channel of all images, or a group of channels of one. Where one program cannot hold it, three launches: some
programs share a set and leave the moments of their parts, others merge these in a fixed order, and the first ones' like
normalise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from perfsuite.machine import Machine
from perfsuite.op import Op, Workload
from perfsuite.toolchain import triton_rows
from perfsuite.toolchain.triton import inlined, jit

from .channel_formulas import groups, undefined

if TYPE_CHECKING:
    import triton.language as tl

# Numbers that a merging program holds at a time.
_AT_ONCE = 512


@dataclass(frozen=True)
class Sets:
    """`count` sets of `members` channels, `groups` of which make all channels, of `pixels` each in `images` images."""

    count: int
    images: int
    groups: int
    members: int
    pixels: int

    @classmethod
    def of(cls, workload: Workload) -> Sets:
        images, channels, each = workload["n"], workload["c"], groups(workload)
        pixels = workload["h"] * workload["w"]
        if not each:
            return cls(channels, images, channels, 1, pixels)
        return cls(images * each, 1, each, channels // each, pixels)

    @property
    def size(self) -> int:
        return self.images * self.members * self.pixels

    @property
    def constants(self) -> dict[str, int]:
        """What kernels over planes of pixels are compiled with."""
        return {"images": self.images, "groups": self.groups, "members": self.members, "pixels": self.pixels}


@inlined
def shift_of(lead: tl.tensor, size: tl.constexpr, most: tl.constexpr, axis: tl.constexpr) -> tl.tensor:
    """What all programs of a set subtract from its elements: the mean of the first `most` of its `size`.

    Around a mean of 1e4 Welford's sums without it put the variance 2e-4 off, the running mean being rounded each time;
    the first element alone may be an outlier.
    """
    count: tl.constexpr = size if size < most else most
    shift = tl.sum(lead.to(tl.float32), axis=axis, keep_dims=True) / count
    return tl.where(tl.abs(shift) < float("inf"), shift, 0.0)


@inlined
def settled(
    one: tl.tensor,
    two: tl.tensor,
    row: tl.tensor,
    real: tl.tensor,
    mean: tl.tensor,
    rstd: tl.tensor,
    running_mean: tl.tensor,
    running_var: tl.tensor,
    next_mean: tl.tensor,
    next_var: tl.tensor,
    eps: float,
    momentum: float,
    size: tl.constexpr,
    running: tl.constexpr,
) -> tl.tensor:
    """Store the statistics of sets, and what they make of running ones; the answer is rstd."""
    scale = tl.rsqrt(two / size + eps)
    tl.store(mean + row, one, mask=real)
    tl.store(rstd + row, scale, mask=real)
    if running:
        old_mean, old_var = tl.load(running_mean + row, mask=real), tl.load(running_var + row, mask=real)
        tl.store(next_mean + row, (1.0 - momentum) * old_mean + momentum * one, mask=real)
        tl.store(next_var + row, (1.0 - momentum) * old_var + momentum * (two / (size - 1)), mask=real)
    return scale


@jit
def merge_parts(
    parts: tl.tensor,
    mean: tl.tensor,
    rstd: tl.tensor,
    running_mean: tl.tensor,
    running_var: tl.tensor,
    next_mean: tl.tensor,
    next_var: tl.tensor,
    sets: int,
    eps: float,
    momentum: float,
    groups: tl.constexpr,
    members: tl.constexpr,
    length: tl.constexpr,
    part: tl.constexpr,
    split: tl.constexpr,
    running: tl.constexpr,
    block: tl.constexpr,
    height: tl.constexpr,
) -> None:
    """The statistics of `height` sets per program, from parts[3, slabs, split, channels].

    These are the mean and the squared deviation of every part, less a shift that is the third, and the set's.
    `groups` sets of `members` columns make the channels of a slab, each of which has `length` elements in parts of
    `part`. `block` parts are merged at a time.
    """
    row = tl.program_id(0) * height + tl.arange(0, height)[:, None]
    real = row < sets
    first = (row // groups * split * groups + row % groups) * members
    each = sets // groups * split * groups * members
    one = tl.zeros((height, block), tl.float32)
    for start in tl.range(0, split * members, block):
        k = start + tl.arange(0, block)[None, :]
        seen = tl.minimum(tl.maximum(length - k // members * part, 0), part).to(tl.float32)
        at = first + k // members * groups * members + k % members
        one += seen * tl.load(parts + at, mask=real & (k < split * members), other=0.0)
    one = tl.sum(one, axis=1, keep_dims=True) / (length * members)
    two = tl.zeros((height, block), tl.float32)
    for start in tl.range(0, split * members, block):
        k = start + tl.arange(0, block)[None, :]
        mask = real & (k < split * members)
        seen = tl.minimum(tl.maximum(length - k // members * part, 0), part).to(tl.float32)
        at = first + k // members * groups * members + k % members
        far = tl.load(parts + at, mask=mask, other=0.0) - one
        two += tl.where(mask, tl.load(parts + each + at, mask=mask, other=0.0) + seen * far * far, 0.0)
    two = tl.sum(two, axis=1, keep_dims=True)
    one += tl.load(parts + 2 * each + first, mask=real)
    settled(
        one, two, row, real, mean, rstd, running_mean, running_var, next_mean, next_var,
        eps, momentum, length * members, running,
    )  # fmt: skip


@dataclass(frozen=True)
class Merge:
    """`merge_parts` of sets whose channels' elements are cut into `split` parts of `part`; see there for the others."""

    sets: int
    groups: int
    members: int
    length: int
    part: int
    split: int
    attributes: dict[str, Any]

    def launch(self, parts: torch.Tensor, statistics: Sequence[torch.Tensor], running: Sequence[torch.Tensor]) -> None:
        """`statistics` are mean and rstd, and what running ones become."""
        items = self.split * self.members
        block = min(_AT_ONCE, 1 << (items - 1).bit_length())
        height = _AT_ONCE // block
        merge_parts[(-(-self.sets // height),)](
            parts, *operands(statistics, running), self.sets, **self.attributes, groups=self.groups,
            members=self.members, length=self.length, part=self.part, split=self.split, running=bool(running),
            block=block, height=height, num_warps=4,
        )  # fmt: skip


def operands(statistics: Sequence[torch.Tensor], running: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """(mean, rstd, running mean and var, next mean and var): any tensor for what is not running."""
    mean, rstd, *following = statistics
    return (mean, rstd, *(running or (mean, rstd)), *(following or (mean, rstd)))


def attributes(op: Op) -> dict[str, Any]:
    return {"eps": 0.0, "momentum": 0.0, **dict(op.attributes)}


def supports(workload: Workload, machine: Machine) -> str | None:
    """Why the kernels cannot run a workload on a machine, or None."""
    elements = workload["n"] * workload["c"] * workload["h"] * workload["w"]
    if elements >= 1 << 31:
        return f"counts elements in 32 bits, not {elements}: give it fewer images at a time"
    return undefined(workload) or triton_rows.supports(workload, machine)
