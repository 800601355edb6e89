"""Three passes, every exponential once: the maximum, exponentials into y with their sum, y divided by it.

Traffic 3 reads and 2 writes. It has no streaming stores, because y is read again at once.
"""

from __future__ import annotations

from perfsuite.machine import Machine
from perfsuite.op import Workload

from . import native


def _refuses(workload: Workload, machine: Machine) -> str | None:
    return (
        None if workload.dtype == "f32" else f"keeps exponentials in y, where {workload.dtype} would round them twice"
    )


KERNEL = native.Algorithm("ThreePassReload", ("softmax",), refuses=_refuses).kernel()
