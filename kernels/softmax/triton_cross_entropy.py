"""Cross-entropy in Triton: the logits are read once, by several programs a row where rows are few.

The second launch is one program, which adds the rows up in a fixed order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from perfsuite.kernel import Config, Kernel, Run, Space, Tensors
from perfsuite.machine import Machine
from perfsuite.op import Op, Workload
from perfsuite.toolchain.triton import jit, resident
from perfsuite.toolchain.triton_rows import Tile, row_space, supports

from .triton_online import added, merged

if TYPE_CHECKING:
    import triton.language as tl

# Parts of rows that the second launch holds at once, and its warps: 8 in a thread.
_AT_ONCE, _WARPS = 2048, 8


@jit
def loss_parts(
    logits: tl.tensor,
    labels: tl.tensor,
    parts: tl.tensor,
    rows: int,
    ignored: int,
    cols: tl.constexpr,
    smoothed: tl.constexpr,
    block: tl.constexpr,
    height: tl.constexpr,
    part: tl.constexpr,
    split: tl.constexpr,
    stages: tl.constexpr,
) -> None:
    """Maximum, sum of exponentials and sum of `part` columns of `height` rows per program, to parts[3, split, rows].

    Nothing is read of rows whose label is `ignored`.
    """
    row = tl.program_id(0).to(tl.int64) * height + tl.arange(0, height)[:, None]
    mine = tl.program_id(1)
    kept = tl.load(labels + row, mask=row < rows, other=ignored) != ignored
    peak = tl.full((height, block), float("-inf"), tl.float32)
    total = tl.zeros((height, block), tl.float32)
    plain = tl.zeros((height, block), tl.float32)
    for start in tl.range(0, part, block, num_stages=stages):
        at = mine * part + start + tl.arange(0, block)[None, :]
        mask = kept & (at < cols)
        v = tl.load(logits + row * cols + at, mask=mask, other=float("-inf")).to(tl.float32)
        peak, total = added(v, peak, total)
        if smoothed:
            plain += tl.where(mask, v, 0.0)
    top, total = merged(peak, total, 1)
    parts += mine * rows + row
    tl.store(parts, top, mask=row < rows)
    tl.store(parts + split * rows, total, mask=row < rows)
    if smoothed:
        tl.store(parts + 2 * split * rows, tl.sum(plain, axis=1, keep_dims=True), mask=row < rows)


@jit
def loss_joined(
    logits: tl.tensor,
    labels: tl.tensor,
    parts: tl.tensor,
    loss: tl.tensor,
    lse: tl.tensor,
    ignored: int,
    smoothing: float,
    z_loss: float,
    rows: tl.constexpr,
    cols: tl.constexpr,
    smoothed: tl.constexpr,
    height: tl.constexpr,
    split: tl.constexpr,
) -> None:
    """The log-sum-exp of every row, and the mean loss, from what `loss_parts` left."""
    losses = tl.zeros((1, height), tl.float32)
    count = tl.zeros((1, height), tl.float32)
    for start in tl.range(0, rows, height):
        row = start + tl.arange(0, height).to(tl.int64)[None, :]
        real = row < rows
        at = tl.arange(0, split)[:, None] * rows + row
        label = tl.load(labels + row, mask=real, other=ignored)
        kept = label != ignored
        peak = tl.load(parts + at, mask=real, other=0.0)
        top, total = merged(peak, tl.load(parts + split * rows + at, mask=real, other=0.0), 0)
        each = top + tl.log(total)
        each = tl.where(tl.abs(each) == float("inf"), float("nan"), each)
        # A label that is no column makes the loss NaN, and reads nothing.
        found = kept & (label >= 0) & (label < cols)
        picked = tl.load(logits + row * cols + label, mask=found, other=0.0).to(tl.float32)
        value = each - (1.0 - smoothing) * tl.where(found, picked, float("nan"))
        if smoothed:
            plain = tl.load(parts + 2 * split * rows + at, mask=real, other=0.0)
            value += z_loss * each * each - smoothing / cols * tl.sum(plain, axis=0, keep_dims=True)
        losses += tl.where(kept, value, 0.0)
        count += tl.where(kept, 1.0, 0.0)
        tl.store(lse + row, tl.where(kept, each, 0.0), mask=real)
    one = tl.zeros((1, 1), tl.int32)
    mean = tl.sum(losses, axis=1, keep_dims=True) / tl.sum(count, axis=1, keep_dims=True)
    tl.store(loss + one, mean)


def build(op: Op, workload: Workload, config: Config) -> Run:
    rows, tile, attributes = workload["rows"], Tile.of(config, workload["cols"]), dict(op.attributes)
    smoothing, z_loss = attributes["label_smoothing"], attributes["z_loss"]
    shared: dict[str, Any] = {"ignored": attributes["ignore_index"], "smoothed": bool(smoothing or z_loss)}
    taking = {**shared, **tile.taking, "height": tile.height}
    del taking["first"]
    height = min(1 << max(0, rows - 1).bit_length(), max(1, _AT_ONCE // tile.split))
    joining = {
        **shared,
        "smoothing": smoothing,
        "z_loss": z_loss,
        "rows": rows,
        "cols": tile.cols,
        "height": height,
        "split": tile.split,
        "num_warps": _WARPS,
    }

    def run(inputs: Tensors, outputs: Tensors) -> Tensors:
        (logits, labels), (loss, lse) = inputs, outputs
        parts = torch.empty(3, tile.split, rows, dtype=torch.float32, device=logits.device)
        if rows:
            loss_parts[tile.grid(rows)](logits, labels, parts, rows, **taking)
        loss_joined[(1,)](logits, labels, parts, loss, lse, **joining)
        return outputs

    return resident(op, workload, run)


def space(workload: Workload, machine: Machine) -> Space:
    return row_space(workload, machine, tensors=1)


KERNEL = Kernel(
    ops=("cross_entropy", "cross_entropy_smoothed"), build=build, space=space, supports=supports, device="cuda"
)
