"""Stacks of short rows: what is done once per row, such as a maximum across lanes, is done for all rows of a stack."""

from __future__ import annotations

from perfsuite.machine import Machine
from perfsuite.op import Workload

from . import native

# Longer rows gain nothing.
_LONGEST = 256


def _refuses(workload: Workload, machine: Machine) -> str | None:
    if workload["cols"] > _LONGEST:
        return f"is for rows of {_LONGEST} columns at most"
    return None


KERNEL = native.Algorithm(
    "Stacks", ("softmax",), ("stream",), aligned_rows=tuple(native.ELEMENTS), refuses=_refuses
).kernel()
