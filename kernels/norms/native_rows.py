"""Row normalisation in C++: a few rows at a time, statistics and output from one trip to memory (rows.cpp).

One data flow serves every op; what differs is fixed when the source is compiled.
"""

from __future__ import annotations

from .rows import DataFlow

# What an op does to a row: divide it by a statistic, multiply by a vector, add one, add a second matrix before all that
# and store the sum.
FLOW = DataFlow(
    "rows.cpp",
    {
        "layer_norm": {"STATISTIC": "VARIANCE", "WEIGHT": 1, "BIAS": 1, "RESIDUAL": 0},
        "rms_norm": {"STATISTIC": "MEAN_SQUARE", "WEIGHT": 1, "BIAS": 0, "RESIDUAL": 0},
        "simple_rms_norm": {"STATISTIC": "MEAN_SQUARE", "WEIGHT": 0, "BIAS": 0, "RESIDUAL": 0},
        "crms_norm": {"STATISTIC": "COMPRESSED", "WEIGHT": 0, "BIAS": 0, "RESIDUAL": 0},
        "l1_norm": {"STATISTIC": "MEAN_DISTANCE", "WEIGHT": 1, "BIAS": 1, "RESIDUAL": 0},
        "add_layer_norm": {"STATISTIC": "VARIANCE", "WEIGHT": 1, "BIAS": 1, "RESIDUAL": 1},
        "add_rms_norm": {"STATISTIC": "MEAN_SQUARE", "WEIGHT": 1, "BIAS": 0, "RESIDUAL": 1},
    },
    vectors=8,
)

KERNEL = FLOW.kernel()
