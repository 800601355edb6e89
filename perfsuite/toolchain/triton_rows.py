"""What Triton kernels that work on the rows of a matrix share: the tile of a program, its space, and who is refused."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from perfsuite.kernel import Config, Dimension, Scale, Space
from perfsuite.machine import Machine
from perfsuite.op import ITEMSIZE, Workload
from perfsuite.toolchain.gpu_targets import TARGETS, not_resident, target_of
from perfsuite.toolchain.triton import missing_gpu

# A row up to this length may be held by one block: 64 elements in each of 1024 threads.
_LONGEST = 65536
# Programs that share a row. _PROGRAMS in all are several for every multiprocessor of any GPU, _ENOUGH about one.
_SPLITS, _PROGRAMS, _ENOUGH = (1, 2, 4, 8, 16, 32, 64, 128, 256), 1024, 256
_FLOATING = ("f32", "bf16", "f16")


@dataclass(frozen=True)
class Tile:
    """`height` rows of `cols` elements per program, `block` of them at a time, by `warps` warps.

    A loop over several blocks loads `stages` of them ahead, and with `keep` its first pass asks the L2 cache to keep
    what the second reads. With `split` more than 1 a row is shared by so many programs, in two launches: one takes the
    statistics of every part, the next merges them and writes.
    """

    cols: int
    block: int
    height: int
    warps: int
    stages: int
    keep: bool
    split: int

    @classmethod
    def of(cls, config: Config, cols: int) -> Tile:
        values = config.to_json()
        return cls(
            cols=cols,
            block=int(values["block"]),
            height=int(values["height"]),
            warps=int(values["warps"]),
            stages=int(values["stages"]),
            keep=bool(values["keep"]),
            split=int(values["split"]),
        )

    @property
    def loop(self) -> bool:
        return self.block < self.cols or self.split > 1

    @property
    def part(self) -> int:
        """Columns of a row that one program works on: whole blocks."""
        return -(-self.cols // (self.split * self.block)) * self.block

    def grid(self, rows: int) -> tuple[int, int]:
        return -(-rows // self.height), self.split

    @property
    def whole(self) -> dict[str, Any]:
        """What the kernel of whole rows is compiled with."""
        return {**self._blocks, "height": self.height, **self._first, **self._last, **self.options}

    @property
    def taking(self) -> dict[str, Any]:
        """What the kernel that takes the statistics of parts is compiled with."""
        return {**self._blocks, "part": self.part, "split": self.split, **self._first, **self.options}

    @property
    def joining(self) -> dict[str, Any]:
        """What the kernel that merges the statistics is compiled with."""
        return {**self._blocks, "part": self.part, "split": self.split, **self._last, **self.options}

    @property
    def _blocks(self) -> dict[str, Any]:
        return {"cols": self.cols, "block": self.block, "stages": self.stages}

    @property
    def _first(self) -> dict[str, str]:
        return {"first": "evict_last" if self.keep else ""}

    @property
    def _last(self) -> dict[str, str]:
        return {"last": "evict_first" if self.keep else ""}

    @property
    def options(self) -> dict[str, int]:
        return {"num_warps": self.warps, "num_stages": self.stages}

    def refused(self, itemsize: int, tensors: int, arch: str) -> str | None:
        """Why a program that reads `tensors` tensors at once in this tile is not resident on a target, or None.

        Shared memory is that of the pipeline, all but the few bytes of the reductions; AMD's is in registers. What the
        registers come to is a fit to 2000 compiled configs of softmax, layer_norm and add_rms_norm: of those that
        it admits 2 in 100 spill, at most 112 bytes.
        """
        target = TARGETS[arch]
        each = -(-self.block * self.height // (self.warps * target.lanes))
        staged = self.stages - 1 if self.loop and target.backend == "cuda" else 0
        pipeline = staged * self.block * self.height * itemsize * tensors
        registers = 24 + each * (2 + 2 * self.stages) if self.loop else 14 + each * 3 // 2
        return not_resident(target, self.warps, pipeline, registers)


def row_space(workload: Workload, machine: Machine, tensors: int, splits: bool = True) -> Space:
    """The tiles for the rows of a workload along its axis `cols`, for a kernel that reads `tensors` tensors at once.

    `splits`: it has kernels for parts of rows.
    """
    cols = max(1, workload["cols"])
    rows = max(1, math.prod(length for axis, length in workload.sizes if axis != "cols"))
    itemsize = ITEMSIZE[workload.dtype]
    whole = 1 << (cols - 1).bit_length()
    blocks = [block for block in (1024, 2048, 4096, 8192, 16384) if block < whole]
    target = target_of(machine)

    def allows(config: Config) -> bool:
        tile = Tile.of(config, cols)
        elements = tile.block * tile.height
        if tile.height > 1 if tile.loop else (tile.stages > 1 or tile.keep):
            return False
        if tile.split > 1 and (tile.block >= whole or tile.block * tile.split > whole):
            return False
        return elements >= 32 * tile.warps or tile.warps == 1

    def refuses(config: Config) -> str | None:
        return None if target is None else Tile.of(config, cols).refused(itemsize, tensors, target.arch)

    shares = [split for split in _SPLITS if splits and rows * split <= _PROGRAMS] or [1]
    return Space(
        (
            Dimension("block", (*blocks, whole) if whole <= _LONGEST else tuple(blocks), Scale.POWERS),
            Dimension("height", (1, 2, 4, 8, 16), Scale.POWERS),
            Dimension("warps", (1, 2, 4, 8, 16, 32), Scale.POWERS),
            Dimension("stages", (1, 2, 3)),
            Dimension("keep", (False, True), Scale.CATEGORICAL),
            Dimension("split", tuple(shares), Scale.POWERS),
        ),
        allows,
        _default(whole, max((split for split in shares if rows * split <= _ENOUGH), default=1)),
        refuses,
    )


def _default(whole: int, split: int) -> Config:
    """About 16 elements in a thread; a row longer than 16384 is looped over, 8 in a thread: no target spills any."""
    loop = whole > 16384
    block = 2048 if loop else whole
    height = max(1, min(16, 512 // block))
    warps = 8 if loop else max(1, min(16, block * height // 512))
    split = min(split, whole // block) if loop else 1
    return Config.of(block=block, height=height, warps=warps, stages=2 if loop else 1, keep=loop, split=split)


def supports(workload: Workload, machine: Machine) -> str | None:
    """Why the row kernels cannot run a workload on a machine, or None."""
    if workload.dtype not in _FLOATING:
        return f"computes {', '.join(_FLOATING)}, not {workload.dtype}"
    return missing_gpu(machine)
