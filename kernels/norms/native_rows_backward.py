"""Gradients of row norms in C++: a few rows at a time, statistics and gradients from one trip to memory.

The parameters' gradients have the same bits for any number of threads (rows_backward.cpp).
"""

from __future__ import annotations

from perfsuite.op import Workload

from .rows import NORMS, DataFlow


def _tile(workload: Workload) -> tuple[int, int]:
    """Two rows, which halve what the parameters' sums are loaded and stored: one took 1.1 times as long, at any length.

    Four run out of registers (1.5 times), and so do two vectors of bf16, which are four of f32.
    """
    return 2, 1 if workload.dtype == "bf16" else 2


# AVX2's 16 registers hold four sums of each of two vectors, AVX-512's 32 those of four.
FLOW = DataFlow(
    "rows_backward.cpp",
    {f"{name}_backward": flow for name, flow in NORMS.items()},
    vectors=4,
    tile=_tile,
    anywhere=("f32", "f16"),
)

KERNEL = FLOW.kernel()
