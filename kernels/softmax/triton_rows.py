"""Softmax in Triton: a row is held on the chip when it fits one block, else read twice, with an online sum."""

from __future__ import annotations

from typing import TYPE_CHECKING

from perfsuite.kernel import Config, Kernel, Run, Space, Tensors
from perfsuite.machine import Machine
from perfsuite.op import Op, Workload
from perfsuite.toolchain.triton import jit
from perfsuite.toolchain.triton_rows import Tile, row_space, supports

if TYPE_CHECKING:
    import triton.language as tl


@jit
def softmax_rows(
    x: tl.tensor,
    y: tl.tensor,
    rows: int,
    cols: tl.constexpr,
    block: tl.constexpr,
    height: tl.constexpr,
    stages: tl.constexpr,
    first: tl.constexpr,
    last: tl.constexpr,
) -> None:
    """height rows of x[rows, cols] per program, block columns of them at a time.

    Online maximum and sum: Milakov and Gimelshein 2018, here one pair for each lane, merged once at the end, so that no
    block waits for a reduction over its warps. Of exp(peak - new) and exp(v - new) one is always exp(0), which leaves
    one exponential for an element instead of two.
    """
    row = tl.program_id(0).to(tl.int64) * height + tl.arange(0, height)[:, None]
    col = tl.arange(0, block)[None, :]
    real = row < rows
    x += row * cols
    y += row * cols
    if block < cols:
        peak = tl.full((height, block), float("-inf"), tl.float32)
        total = tl.zeros((height, block), tl.float32)
        for start in tl.range(0, cols, block, num_stages=stages):
            at = start + col
            v = tl.load(x + at, mask=real & (at < cols), other=float("-inf"), eviction_policy=first).to(tl.float32)
            # -inf against -inf: the difference is NaN, the ratio 1. Such a lane weighs nothing beside a finite one.
            ratio = tl.where(v == peak, 1.0, tl.exp(-tl.abs(v - peak)))
            total = tl.where(v > peak, total * ratio + 1.0, total + ratio)
            peak = tl.maximum(peak, v)
        top = tl.max(peak, axis=1, keep_dims=True)
        scale = 1.0 / tl.sum(total * tl.exp(peak - top), axis=1, keep_dims=True)
        for start in tl.range(0, cols, block, num_stages=stages):
            at = start + col
            mask = real & (at < cols)
            v = tl.load(x + at, mask=mask, other=float("-inf"), eviction_policy=last).to(tl.float32)
            tl.store(y + at, tl.exp(v - top) * scale, mask=mask)
    else:
        mask = real & (col < cols)
        v = tl.load(x + col, mask=mask, other=float("-inf")).to(tl.float32)
        e = tl.exp(v - tl.max(v, axis=1, keep_dims=True))
        tl.store(y + col, e * (1.0 / tl.sum(e, axis=1, keep_dims=True)), mask=mask)


def build(op: Op, workload: Workload, config: Config) -> Run:
    tile = Tile.of(config, workload["cols"])
    fixed = {**tile.constexprs, **tile.options}

    def run(inputs: Tensors, outputs: Tensors) -> Tensors:
        (x,), (y,) = inputs, outputs
        if x.numel():
            softmax_rows[tile.grid(len(x))](x, y, len(x), **fixed)
        return outputs

    return run


def space(workload: Workload, machine: Machine) -> Space:
    return row_space(workload, machine, tensors=1)


KERNEL = Kernel(ops=("softmax",), build=build, space=space, supports=supports, device="cuda")
