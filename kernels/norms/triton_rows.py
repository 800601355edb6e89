"""Row norms in Triton: a row is held on the chip when it fits one block, else its inputs are read twice."""

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
def norm_rows(
    x: tl.tensor,
    residual: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    y: tl.tensor,
    h: tl.tensor,
    rows: int,
    cols: tl.constexpr,
    eps: float,
    centred: tl.constexpr,
    added: tl.constexpr,
    block: tl.constexpr,
    height: tl.constexpr,
    stages: tl.constexpr,
    first: tl.constexpr,
    last: tl.constexpr,
) -> None:
    """height rows of x[rows, cols] per program, block columns of them at a time.

    centred subtracts the mean and adds `bias` (LayerNorm); added adds `residual` first and stores the sum to `h`.
    What the flags do without may be any pointer. Looped, each lane keeps Welford's running mean and squared deviation
    (Welford 1962), merged once at the end (Chan, Golub, LeVeque 1983).
    """
    row = tl.program_id(0).to(tl.int64) * height + tl.arange(0, height)[:, None]
    col = tl.arange(0, block)[None, :]
    real = row < rows
    offset = row * cols
    if block < cols:
        mean = tl.zeros((height, block), tl.float32)
        square = tl.zeros((height, block), tl.float32)
        for start in tl.range(0, cols, block, num_stages=stages):
            at = start + col
            mask = real & (at < cols)
            v = tl.load(x + offset + at, mask=mask, other=0.0, eviction_policy=first).to(tl.float32)
            if added:
                v += tl.load(residual + offset + at, mask=mask, other=0.0, eviction_policy=first).to(tl.float32)
                tl.store(h + offset + at, v, mask=mask)
            if centred:
                gap = tl.where(mask, v - mean, 0.0)
                mean += gap * (1.0 / (start // block + 1))
                square += tl.where(mask, gap * (v - mean), 0.0)
            else:
                square += v * v
        if centred:
            # How many elements of the row each lane has seen.
            seen = ((cols - col + block - 1) // block).to(tl.float32)
            centre = tl.sum(mean * seen, axis=1, keep_dims=True) / cols
            square += seen * (mean - centre) * (mean - centre)
        scale = tl.rsqrt(tl.sum(square, axis=1, keep_dims=True) / cols + eps)
        for start in tl.range(0, cols, block, num_stages=stages):
            at = start + col
            mask = real & (at < cols)
            v = tl.load(x + offset + at, mask=mask, other=0.0, eviction_policy=last).to(tl.float32)
            if added:
                v += tl.load(residual + offset + at, mask=mask, other=0.0, eviction_policy=last).to(tl.float32)
            if centred:
                v -= centre
            v *= scale * tl.load(weight + at, mask=at < cols, other=0.0).to(tl.float32)
            if centred:
                v += tl.load(bias + at, mask=at < cols, other=0.0).to(tl.float32)
            tl.store(y + offset + at, v, mask=mask)
    else:
        mask = real & (col < cols)
        v = tl.load(x + offset + col, mask=mask, other=0.0).to(tl.float32)
        if added:
            v += tl.load(residual + offset + col, mask=mask, other=0.0).to(tl.float32)
            tl.store(h + offset + col, v, mask=mask)
        if centred:
            v = tl.where(mask, v - tl.sum(v, axis=1, keep_dims=True) / cols, 0.0)
        scale = tl.rsqrt(tl.sum(v * v, axis=1, keep_dims=True) / cols + eps)
        v *= scale * tl.load(weight + col, mask=col < cols, other=0.0).to(tl.float32)
        if centred:
            v += tl.load(bias + col, mask=col < cols, other=0.0).to(tl.float32)
        tl.store(y + offset + col, v, mask=mask)


# The flags of each op, and how many tensors its second pass reads.
FLAGS = {
    "layer_norm": ({"centred": True, "added": False}, 3),
    "rms_norm": ({"centred": False, "added": False}, 2),
    "add_rms_norm": ({"centred": False, "added": True}, 3),
}


def build(op: Op, workload: Workload, config: Config) -> Run:
    tile = Tile.of(config, workload["cols"])
    given = [operand.name for operand in (*op.inputs, *op.outputs)]
    places = [given.index(name) if name in given else 0 for name in ("x", "residual", "weight", "bias", "y", "h")]
    fixed = {"eps": op.attribute("eps"), **FLAGS[op.name][0], **tile.constexprs, **tile.options}

    def run(inputs: Tensors, outputs: Tensors) -> Tensors:
        rows, tensors = len(inputs[0]), (*inputs, *outputs)
        if inputs[0].numel():
            norm_rows[tile.grid(rows)](*[tensors[place] for place in places], rows, **fixed)
        return outputs

    return run


def space(workload: Workload, machine: Machine) -> Space:
    return row_space(workload, machine, tensors=FLAGS[workload.op][1])


KERNEL = Kernel(ops=tuple(FLAGS), build=build, space=space, supports=supports, device="cuda")
