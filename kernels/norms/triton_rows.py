"""Row norms in Triton: a row is held on the chip when it fits one block, else its inputs are read twice.

A few long rows are split over several programs: one launch takes the statistics of the parts, a second joins them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from perfsuite.kernel import Config, Kernel, Run, Space, Tensors
from perfsuite.machine import Machine
from perfsuite.op import Op, Workload
from perfsuite.toolchain.triton import jit, resident
from perfsuite.toolchain.triton_rows import Tile, row_space, supports

from .triton_sweep import gained, loaded, merged, scale_of, step_of, swept, written

if TYPE_CHECKING:
    import triton.language as tl


@jit
def norm_rows(
    x: tl.tensor,
    residual: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    y: tl.tensor,
    h: tl.tensor,
    steps: tl.tensor,
    rows: int,
    eps: float,
    kappa: float,
    cols: tl.constexpr,
    statistic: tl.constexpr,
    biased: tl.constexpr,
    added: tl.constexpr,
    weighted: tl.constexpr,
    quantised: tl.constexpr,
    block: tl.constexpr,
    height: tl.constexpr,
    stages: tl.constexpr,
    first: tl.constexpr,
    last: tl.constexpr,
) -> None:
    """height rows of x[rows, cols] per program, block columns of them at a time.

    `statistic` is what a row is divided by, see `scale_of`; `biased` subtracts the mean and adds `bias`; `added` adds
    `residual` first and stores the sum to `h`; `quantised` stores int8 to y and their steps. What the flags do without
    may be any pointer.
    """
    row = tl.program_id(0).to(tl.int64) * height + tl.arange(0, height)[:, None]
    real = row < rows
    x += row * cols
    residual += row * cols
    y += row * cols
    h += row * cols
    if block < cols:
        one, two, peak = swept(
            x, residual, weight, h, real, 0, cols, cols,
            statistic, added, weighted, quantised, block, height, stages, first,
        )  # fmt: skip
        if statistic == "distance":
            one /= cols
            strayed = tl.zeros((height, block), tl.float32)
            for start in tl.range(0, cols, block, num_stages=stages):
                at = start + tl.arange(0, block)[None, :]
                mask = real & (at < cols)
                v = loaded(x, residual, at, mask, added, first)
                strayed += tl.where(mask, tl.abs(v - one), 0.0)
            two = tl.sum(strayed, axis=1, keep_dims=True)
        scale = scale_of(one, two, eps, kappa, cols, statistic)
        step = step_of(two, scale, peak)
        for start in tl.range(0, cols, block, num_stages=stages):
            at = start + tl.arange(0, block)[None, :]
            mask = real & (at < cols)
            v = loaded(x, residual, at, mask, added, last)
            if biased:
                v -= one
            written(v, weight, bias, y, at, mask, cols, scale, step, biased, weighted, quantised)
    else:
        at = tl.arange(0, block)[None, :]
        mask = real & (at < cols)
        v = loaded(x, residual, at, mask, added, "")
        if added:
            tl.store(h + at, v, mask=mask)
        one = tl.sum(v, axis=1, keep_dims=True)
        if biased:
            v = tl.where(mask, v - one / cols, 0.0)
        two = tl.sum(tl.abs(v) if statistic == "distance" else v * v, axis=1, keep_dims=True)
        scale = scale_of(one, two, eps, kappa, cols, statistic)
        step = scale
        if quantised:
            peak = tl.max(tl.abs(gained(v, weight, at, cols, weighted)), axis=1, keep_dims=True)
            step = step_of(two, scale, peak)
        written(v, weight, bias, y, at, mask, cols, scale, step, biased, weighted, quantised)
    if quantised:
        tl.store(steps + row, step, mask=real)


@jit
def norm_parts(
    x: tl.tensor,
    residual: tl.tensor,
    weight: tl.tensor,
    h: tl.tensor,
    parts: tl.tensor,
    cols: tl.constexpr,
    statistic: tl.constexpr,
    added: tl.constexpr,
    weighted: tl.constexpr,
    quantised: tl.constexpr,
    block: tl.constexpr,
    part: tl.constexpr,
    split: tl.constexpr,
    stages: tl.constexpr,
    first: tl.constexpr,
) -> None:
    """The statistics of `part` columns of one row per program, stored to parts[rows, 3, split]."""
    row, mine = tl.program_id(0).to(tl.int64), tl.program_id(1)
    real = tl.full((1, 1), True, tl.int1)
    one, two, peak = swept(
        x + row * cols, residual + row * cols, weight, h + row * cols, real, mine * part, part, cols,
        statistic, added, weighted, quantised, block, 1, stages, first,
    )  # fmt: skip
    parts += row * 3 * split + mine + tl.zeros((1, 1), tl.int32)
    tl.store(parts, one)
    tl.store(parts + split, two)
    if quantised:
        tl.store(parts + 2 * split, peak)


@jit
def norm_joined(
    x: tl.tensor,
    residual: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    y: tl.tensor,
    steps: tl.tensor,
    parts: tl.tensor,
    eps: float,
    cols: tl.constexpr,
    statistic: tl.constexpr,
    biased: tl.constexpr,
    added: tl.constexpr,
    weighted: tl.constexpr,
    quantised: tl.constexpr,
    block: tl.constexpr,
    part: tl.constexpr,
    split: tl.constexpr,
    stages: tl.constexpr,
    last: tl.constexpr,
) -> None:
    """The same part of a row from the statistics of all its parts, merged as those of the lanes in `swept`."""
    row, mine = tl.program_id(0).to(tl.int64), tl.program_id(1)
    each = tl.arange(0, split)[None, :]
    parts += row * 3 * split
    ones, twos = tl.load(parts + each), tl.load(parts + split + each)
    if statistic == "variance":
        one, two = merged(ones, twos, tl.minimum(tl.maximum(cols - each * part, 0), part).to(tl.float32), 1)
    else:
        one, two = tl.sum(ones, axis=1, keep_dims=True), tl.sum(twos, axis=1, keep_dims=True)
    scale = scale_of(one, two, eps, 0.0, cols, statistic)
    step = scale
    if quantised:
        step = step_of(two, scale, tl.max(tl.load(parts + 2 * split + each), axis=1, keep_dims=True))
        tl.store(steps + row + tl.zeros((1, 1), tl.int32), step, mask=mine == 0)
    for start in tl.range(0, part, block, num_stages=stages):
        at = mine * part + start + tl.arange(0, block)[None, :]
        v = loaded(x + row * cols, residual + row * cols, at, at < cols, added, last)
        if biased:
            v -= one
        written(v, weight, bias, y + row * cols, at, at < cols, cols, scale, step, biased, weighted, quantised)


def _flags(statistic: str, **others: bool) -> dict[str, Any]:
    flags = dict.fromkeys(("added", "weighted", "quantised"), False) | others
    return {"statistic": statistic, "biased": statistic in ("variance", "distance"), **flags}


FLAGS = {
    "layer_norm": _flags("variance", weighted=True),
    "add_layer_norm": _flags("variance", weighted=True, added=True),
    "rms_norm": _flags("square", weighted=True),
    "add_rms_norm": _flags("square", weighted=True, added=True),
    "rms_norm_int8": _flags("square", weighted=True, quantised=True),
    "simple_rms_norm": _flags("square"),
    "crms_norm": _flags("compressed"),
    "l1_norm": _flags("distance", weighted=True),
}
# What the kernels' tensors are called among the op's.
_OPERANDS = (("x",), ("residual",), ("weight",), ("bias",), ("y", "q"), ("h",), ("scale",))


def build(op: Op, workload: Workload, config: Config) -> Run:
    tile, flags, attributes = Tile.of(config, workload["cols"]), FLAGS[op.name], dict(op.attributes)
    given = [operand.name for operand in (*op.inputs, *op.outputs)]
    places = [next((given.index(name) for name in names if name in given), 0) for names in _OPERANDS]
    eps, kappa = attributes["eps"], attributes.get("kappa", 0.0)
    whole = {"eps": eps, "kappa": kappa, **flags, **tile.whole}
    first, second = {**flags, **tile.taking}, {"eps": eps, **flags, **tile.joining}
    del first["biased"]

    def run(inputs: Tensors, outputs: Tensors) -> Tensors:
        rows, tensors = len(inputs[0]), (*inputs, *outputs)
        x, residual, weight, bias, y, h, scale = (tensors[place] for place in places)
        if not x.numel():
            return outputs
        if tile.split == 1:
            norm_rows[tile.grid(rows)](x, residual, weight, bias, y, h, scale, rows, **whole)
        else:
            parts = torch.empty(rows, 3, tile.split, dtype=torch.float32, device=x.device)
            norm_parts[tile.grid(rows)](x, residual, weight, h, parts, **first)
            norm_joined[tile.grid(rows)](x, residual, weight, bias, y, scale, parts, **second)
        return outputs

    return resident(op, workload, run)


def space(workload: Workload, machine: Machine) -> Space:
    flags = FLAGS[workload.op]
    # What the second pass reads at once. The distances need a pass after the mean: a third launch, if they were split.
    tensors = 1 + flags["weighted"] + flags["biased"] + flags["added"]
    return row_space(workload, machine, tensors, splits=flags["statistic"] != "distance")


KERNEL = Kernel(ops=tuple(FLAGS), build=build, space=space, supports=supports, device="cuda")
