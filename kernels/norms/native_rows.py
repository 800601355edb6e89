"""Row normalisation in C++: a few rows at a time, statistics and output from one trip to memory (rows.cpp).

One data flow serves every op; what differs is fixed when the source is compiled.
"""

from __future__ import annotations

from perfsuite.op import ITEMSIZE, Workload

from .rows import NORMS, DataFlow


def _tile(workload: Workload) -> tuple[int, int]:
    row_bytes = workload["cols"] * ITEMSIZE[workload.dtype]
    rows = 4 if row_bytes <= 2048 else 2 if row_bytes <= 4096 else 1
    return rows, 4 // rows


# Bytes are a quarter of the traffic or less: not worth streaming.
_QUANTISED = {"rms_norm_int8": "int8_t", "rms_norm_fp8": "fp8"}
FLOW = DataFlow(
    "rows.cpp",
    {**NORMS} | {name: {**NORMS["rms_norm"], "QUANTISED": 1, "BYTE": byte} for name, byte in _QUANTISED.items()},
    vectors=8,
    tile=_tile,
)

KERNEL = FLOW.kernel()
