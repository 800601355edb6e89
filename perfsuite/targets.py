"""What the norms and softmax should reach on one thread of a CPU, and where: data for `perfsuite compare --targets`."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from perfsuite.op import Op, Workload

ROWS = (1, 16, 64, 512, 1024, 8192, 16384)
COLS = (64, 197, 768, 1000, 1024, 4096, 14336, 50257, 128256)
# Beside the grid: one row that no core's cache holds.
LONG = (1, 1 << 22)
MOST_BYTES = 1 << 30
DTYPES = ("f32", "bf16")
FORWARD = ("softmax", "layer_norm", "rms_norm")
BACKWARD = ("layer_norm_backward", "rms_norm_backward")
# Norms of images, NCHW and channels-last: on the shapes that their ops name models for.
_IMAGE_NORMS = ("batch_norm", "batch_norm_inference", "group_norm", "instance_norm")
IMAGE_FORWARD = tuple(f"{norm}{layout}" for norm in _IMAGE_NORMS for layout in ("", "_nhwc"))
IMAGE_BACKWARD = tuple(f"{norm}_backward{layout}" for norm in _IMAGE_NORMS for layout in ("", "_nhwc"))
OPS = (*FORWARD, *BACKWARD, *IMAGE_FORWARD, *IMAGE_BACKWARD)
# Where the bytes of a workload live: in caches of a core and its neighbours, or beyond the last of them.
L2, L3, BEYOND = "L2", "L3", "beyond"


@dataclass(frozen=True)
class Bound:
    """What a ratio of times may be at most: its geometric mean over the shapes, and that of any one shape."""

    mean: float
    worst: float


@dataclass(frozen=True)
class Target:
    """For some ops, dtypes and places: time over the floor (None: no target), and time over the fastest of the others.

    The floor is the fastest probe that moves as many bytes: a copy, for gradients two reads and a write. The others are
    eager, inductor and the peers.
    """

    ops: tuple[str, ...]
    dtypes: tuple[str, ...]
    places: tuple[str, ...]
    floor: Bound | None
    other: Bound


# 1.25 times faster on average, nowhere more than 3 % slower; gradients 1.5 times faster, nowhere slower.
_FORWARD_OTHER, _BACKWARD_OTHER = Bound(1.0 / 1.25, 1.03), Bound(1.0 / 1.5, 1.0)
TARGETS = (
    Target(FORWARD, ("f32",), (BEYOND,), Bound(1.10, 1.25), _FORWARD_OTHER),
    Target(FORWARD, ("f32",), (L2, L3), Bound(1.30, 1.6), _FORWARD_OTHER),
    Target(FORWARD, ("bf16",), (L2, L3, BEYOND), Bound(1.30, 1.7), _FORWARD_OTHER),
    Target(BACKWARD, DTYPES, (L2, L3, BEYOND), Bound(1.30, 1.7), _BACKWARD_OTHER),
    Target(IMAGE_FORWARD, DTYPES, (L2, L3, BEYOND), None, _FORWARD_OTHER),
    Target(IMAGE_BACKWARD, DTYPES, (L2, L3, BEYOND), None, _BACKWARD_OTHER),
)


def target(op: str, dtype: str, place: str) -> Target | None:
    return next((t for t in TARGETS if op in t.ops and dtype in t.dtypes and place in t.places), None)


def place(level: str) -> str:
    """Where bytes live, by the memory level (`L1d`, `L2`, `L3`, `DRAM`) that holds them."""
    return {"L1d": L2, "L1": L2, "L2": L2, "DRAM": BEYOND}.get(level, L3)


def workloads(ops: Mapping[str, Op]) -> Iterator[Workload]:
    """Every shape of every op and dtype whose compulsory bytes are at most MOST_BYTES, and those of images."""
    shapes = (*itertools.product(ROWS, COLS), LONG)
    for name, dtype, (rows, cols) in itertools.product((*FORWARD, *BACKWARD), DTYPES, shapes):
        workload = Workload(name, (("rows", rows), ("cols", cols)), dtype)
        if ops[name].least_bytes(workload) <= MOST_BYTES:
            yield ops[name].complete(workload)
    for name in (*IMAGE_FORWARD, *IMAGE_BACKWARD):
        yield from (w for w in ops[name].workloads if not w.test and w.dtype in DTYPES)
