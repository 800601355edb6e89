"""Gradients of row norms in C++: a few rows at a time, statistics and gradients from one trip to memory.

The parameters' gradients have the same bits for any number of threads (rows_backward.cpp).
"""

from __future__ import annotations

from perfsuite.op import Workload

from .rows import DataFlow


def _together(workload: Workload) -> int:
    """Of f32 rows of 768 elements, one at a time took 1.1 times as long as two, and four 1.5 times.

    Of bf16 rows, which need twice the registers, two took 1.4 times as long as one.
    """
    return 2 if workload.dtype == "f32" else 1


# AVX2's 16 registers hold four sums of each of two vectors, AVX-512's 32 those of four.
FLOW = DataFlow(
    "rows_backward.cpp",
    {
        "layer_norm_backward": {"STATISTIC": "VARIANCE", "BIAS": 1},
        "rms_norm_backward": {"STATISTIC": "MEAN_SQUARE", "BIAS": 0},
    },
    vectors=4,
    together=_together,
)

KERNEL = FLOW.kernel()
