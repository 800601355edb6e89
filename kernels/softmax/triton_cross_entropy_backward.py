"""The gradient of cross-entropy in Triton: one pass over the logits, which needs no more than the saved log-sum-exp."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from perfsuite.kernel import Config, Kernel, Run, Space, Tensors
from perfsuite.machine import Machine
from perfsuite.op import Op, Workload
from perfsuite.toolchain.triton import jit, resident
from perfsuite.toolchain.triton_rows import Tile, row_space, supports

if TYPE_CHECKING:
    import triton.language as tl

# Labels that a program counts at once.
_LABELS = 1024


@jit
def logit_gradients(
    logits: tl.tensor,
    labels: tl.tensor,
    lse: tl.tensor,
    dloss: tl.tensor,
    dlogits: tl.tensor,
    ignored: int,
    smoothing: float,
    z_loss: float,
    rows: tl.constexpr,
    cols: tl.constexpr,
    labels_at_once: tl.constexpr,
    block: tl.constexpr,
    height: tl.constexpr,
    part: tl.constexpr,
    stages: tl.constexpr,
) -> None:
    """`part` columns of `height` rows per program. Nothing is read of rows whose label is `ignored`.

    Every program counts the labels that count: 8 bytes of each row, from the L2 cache, where a launch of its own would
    take longer than the kernel does on few rows.
    """
    count = tl.zeros((labels_at_once,), tl.int32)
    for start in tl.range(0, rows, labels_at_once):
        each = start + tl.arange(0, labels_at_once)
        count += (tl.load(labels + each, mask=each < rows, other=ignored) != ignored).to(tl.int32)
    weight = tl.load(dloss) / tl.sum(count, axis=0)
    row = tl.program_id(0).to(tl.int64) * height + tl.arange(0, height)[:, None]
    real = row < rows
    label = tl.load(labels + row, mask=real, other=ignored)
    kept = label != ignored
    level = tl.load(lse + row, mask=real, other=0.0)
    slope = weight * (1.0 + 2.0 * z_loss * level)
    for start in tl.range(0, part, block, num_stages=stages):
        at = tl.program_id(1) * part + start + tl.arange(0, block)[None, :]
        v = tl.load(logits + row * cols + at, mask=kept & (at < cols), other=0.0).to(tl.float32)
        gradient = slope * tl.exp(v - level) - weight * (smoothing / cols)
        gradient = tl.where(at == label, gradient - weight * (1.0 - smoothing), gradient)
        tl.store(dlogits + row * cols + at, tl.where(kept, gradient, 0.0), mask=real & (at < cols))


def build(op: Op, workload: Workload, config: Config) -> Run:
    rows, tile, attributes = workload["rows"], Tile.of(config, workload["cols"]), dict(op.attributes)
    fixed: dict[str, Any] = {
        "ignored": attributes["ignore_index"],
        "smoothing": attributes["label_smoothing"],
        "z_loss": attributes["z_loss"],
        "rows": rows,
        "labels_at_once": min(_LABELS, 1 << max(0, rows - 1).bit_length()),
        **tile.taking,
        "height": tile.height,
    }
    del fixed["first"], fixed["split"]

    def run(inputs: Tensors, outputs: Tensors) -> Tensors:
        if inputs[0].numel():
            logit_gradients[tile.grid(rows)](*inputs, *outputs, **fixed)
        return outputs

    return resident(op, workload, run)


def space(workload: Workload, machine: Machine) -> Space:
    return row_space(workload, machine, tensors=1)


KERNEL = Kernel(
    ops=("cross_entropy_backward", "cross_entropy_smoothed_backward"),
    build=build,
    space=space,
    supports=supports,
    device="cuda",
)
