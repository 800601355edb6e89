"""Row normalisation in C++: a few rows at a time, statistics and output from one trip to memory (rows.cpp).

One data flow serves every op; what differs is fixed when the source is compiled.
"""

from __future__ import annotations

from perfsuite.op import ITEMSIZE, Workload

from .rows import DataFlow


def _tile(workload: Workload) -> tuple[int, int]:
    row_bytes = workload["cols"] * ITEMSIZE[workload.dtype]
    rows = 4 if row_bytes <= 2048 else 2 if row_bytes <= 4096 else 1
    return rows, 4 // rows


# What an op does to a row: divide it by a statistic, multiply by a vector, add one, add a second matrix before all that
# and store the sum, store integers (of which a quarter of the traffic or less is not worth streaming).
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
        "rms_norm_int8": {"STATISTIC": "MEAN_SQUARE", "WEIGHT": 1, "BIAS": 0, "RESIDUAL": 0, "QUANTISED": 1},
    },
    vectors=8,
    tile=_tile,
)

KERNEL = FLOW.kernel()
