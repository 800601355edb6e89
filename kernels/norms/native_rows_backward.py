"""Gradients of row norms in C++: a few rows at a time, statistics and gradients from one trip to memory.

The parameters' gradients have the same bits for any number of threads (rows_backward.cpp).
"""

from __future__ import annotations

from .rows import DataFlow

# AVX2's 16 registers hold four sums of each of two vectors, AVX-512's 32 those of four.
FLOW = DataFlow(
    "rows_backward.cpp",
    {
        "layer_norm_backward": {"STATISTIC": "VARIANCE", "BIAS": 1},
        "rms_norm_backward": {"STATISTIC": "MEAN_SQUARE", "BIAS": 0},
    },
    vectors=4,
)

KERNEL = FLOW.kernel()
