"""The row's exponentials stay in the cache: x is read once and y written once, with one exponential per element."""

from __future__ import annotations

from perfsuite.machine import Machine
from perfsuite.op import Workload

from . import native


def _refuses(workload: Workload, machine: Machine) -> str | None:
    row, cache = 4 * workload["cols"], machine.cache("L2")
    if cache and row > cache:
        return f"keeps a row of {row / 2**20:.1f} MiB, more than the L2 cache of {cache / 2**20:.1f} MiB"
    return None


KERNEL = native.Algorithm(
    "Resident", ("softmax", "masked_softmax"), ("stream", "block"), aligned_rows=("bf16", "f16"), refuses=_refuses
).kernel()
