"""What the Triton kernels of the gradients of image norms share: sums of parts to the chain rule and the parameters'.

With g = dy weight and n = (x - mean) rstd, dx = rstd (g - mean(g) - n mean(g n)) is dy scale + (x - mean) bend + level.
Some programs leave sums of dy and of dy (x - mean) over parts of channels; others make bend and level of each set of
channels, and an image's sums of dy n and of dy; a last launch adds those of all images in their order. One config gives
the same bits every time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from perfsuite.kernel import Tensors
from perfsuite.op import Op, Workload
from perfsuite.toolchain.triton import inlined, jit

from .channel_formulas import frozen
from .triton_channels import Sets, attributes
from .triton_rows_backward import gradient_sums

if TYPE_CHECKING:
    import triton.language as tl

# Numbers that a merging program holds at a time, and its sets of one channel; columns and images added up at once.
_AT_ONCE, _SETS, _COLUMNS, _IMAGES = 1024, 32, 64, 4


@inlined
def rstd_of(spread: tl.tensor, eps: float, frozen: tl.constexpr) -> tl.tensor:
    """Of a set whose spread is rstd, or the variance where that is frozen."""
    if frozen:
        spread = tl.rsqrt(spread + eps)
    return spread


@jit
def merge_slopes(
    parts: tl.tensor,
    spread: tl.tensor,
    weight: tl.tensor,
    chains: tl.tensor,
    normal_sums: tl.tensor,
    plain_sums: tl.tensor,
    eps: float,
    sets: tl.constexpr,
    groups: tl.constexpr,
    members: tl.constexpr,
    size: tl.constexpr,
    split: tl.constexpr,
    apart: tl.constexpr,
    far: tl.constexpr,
    frozen: tl.constexpr,
    block: tl.constexpr,
    height: tl.constexpr,
) -> None:
    """bend and level of sets to chains[2, sets], their channels' sums of dy n and dy to [sets, members].

    A program has `height` sets of one channel each, or one set of several, `height` of them at a time. A channel's
    `split` parts lie `apart`, channels of an image `far` from each other. Of each part there is the sum of
    dy (x - mean), and behind all of these that of dy. `block` parts are added at a time.
    """
    each: tl.constexpr = sets * members * split
    lane = tl.arange(0, height)[:, None]
    row = tl.program_id(0)
    if members == 1:
        row = row * height + lane
    real = row < sets
    scale = rstd_of(tl.load(spread + row, mask=real, other=1.0), eps, frozen)
    first = parts + row // groups * (groups * members * split) + row % groups * members * far
    total = tl.zeros((height, 1), tl.float32)
    along = tl.zeros((height, 1), tl.float32)
    for start in tl.range(0, members, height):
        k = start + lane
        if members == 1:
            k = lane * 0
        channel = row % groups * members + k
        gain = tl.load(weight + channel, mask=k < members, other=0.0)
        product = tl.zeros((height, block), tl.float32)
        plain = tl.zeros((height, block), tl.float32)
        for begin in tl.range(0, split, block):
            s = begin + tl.arange(0, block)[None, :]
            mask = real & (k < members) & (s < split)
            at = first + k * far + s * apart
            product += tl.load(at, mask=mask, other=0.0)
            plain += tl.load(at + each, mask=mask, other=0.0)
        dy_x = tl.sum(product, axis=1, keep_dims=True)
        dy = tl.sum(plain, axis=1, keep_dims=True)
        along += gain * dy_x
        total += gain * dy
        tl.store(normal_sums + row * members + k, dy_x * scale, mask=real & (k < members))
        tl.store(plain_sums + row * members + k, dy, mask=real & (k < members))
    if not frozen:
        if members > 1:
            along, total = tl.sum(along), tl.sum(total)
        share = scale / size
        tl.store(chains + row, -share * scale * scale * along, mask=real)
        tl.store(chains + sets + row, -share * total, mask=real)


@dataclass(frozen=True)
class Slopes:
    """From sums over `split` parts of every channel; `interleaved`: of one part those of all channels come first."""

    sets: Sets
    split: int
    interleaved: bool
    eps: float
    frozen: bool

    @classmethod
    def of(cls, op: Op, workload: Workload, split: int, interleaved: bool) -> Slopes:
        return cls(Sets.of(workload), split, interleaved, attributes(op)["eps"], frozen(workload))

    def parts(self, like: torch.Tensor) -> torch.Tensor:
        """Memory for the sums."""
        return torch.empty(2, self.sets.count * self.sets.members * self.split, dtype=torch.float32, device=like.device)

    @property
    def images(self) -> int:
        """How many have sets, and sums, of their own."""
        return self.sets.count // self.sets.groups

    def sums(self, answers: Tensors) -> Tensors:
        """Memory for every image's sums of dy n and of dy: the answers', where images go together."""
        if self.images == 1:
            return answers
        length = self.sets.count * self.sets.members
        return torch.empty(2, length, dtype=torch.float32, device=answers[0].device).unbind()

    def chains(self, parts: torch.Tensor, spread: torch.Tensor, weight: torch.Tensor, sums: Tensors) -> torch.Tensor:
        """bend and level of all sets, given the sums of all parts; those of the images are stored."""
        sets, split = self.sets, self.split
        chains = torch.empty(2, sets.count, dtype=torch.float32, device=parts.device)
        apart, far = (sets.groups * sets.members, 1) if self.interleaved else (1, split)
        block = min(_AT_ONCE, 1 << (split - 1).bit_length())
        alone = sets.members == 1
        height = min(_AT_ONCE // block, _SETS if alone else 1 << (sets.members - 1).bit_length())
        merge_slopes[(-(-sets.count // height) if alone else sets.count,)](
            parts, spread, weight, chains, *sums, self.eps,
            sets=sets.count, groups=sets.groups, members=sets.members, size=sets.size, split=split, apart=apart,
            far=far, frozen=self.frozen, block=block, height=height, num_warps=4 if block * height > 256 else 1,
        )  # fmt: skip
        return chains

    def add(self, sums: Tensors, answers: Tensors) -> None:
        """The gradients of the parameters, given the sums of all images."""
        if self.images > 1:
            channels = self.sets.groups * self.sets.members
            gradient_sums[-(-channels // _COLUMNS), 2](
                sums[0], *answers, programs=self.images, cols=channels, block=_COLUMNS, height=_IMAGES, num_warps=4
            )
