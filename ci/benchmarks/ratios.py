"""The tuned kernel against PyTorch eager and against the fastest copy of the same bytes: lower is better.

Tuning is short (`perfsuite tune --quick`), because it is repeated for each commit: it tries the default and a few more
configs of each kernel. Then the best config of every kernel, eager and a copy run in one interleaved race (`perfsuite
compare`), in one process on the same input, so that a faster or slower machine changes no ratio. The fastest of that
race is tracked, not the winner that the tuner names: on a disturbed machine its short race may stay undecided, which
names eager, and the ratio would jump to 1. Taking the fastest flatters it by as much as the race's noise.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

WORKLOADS = (
    "softmax[rows=1024,cols=1024,f32]",
    "softmax[rows=1024,cols=1024,bf16]",
    "layer_norm[rows=1024,cols=768,f32]",
    "rms_norm[rows=512,cols=4096,f32]",
    "add_rms_norm[rows=512,cols=4096,bf16]",
)
_TUNING = "120s"
_ROUNDS = "40"

Ratios = dict[str, dict[str, float]]


class Tuned:
    """Medians of the ratios in the rounds of one race: one thread, warm cache, outputs reused."""

    params = WORKLOADS
    param_names = ("workload",)
    unit = "ratio"

    def setup_cache(self) -> Ratios:
        with tempfile.TemporaryDirectory() as folder:
            database = str(Path(folder) / "perfsuite.db")
            _perfsuite("tune", "--quick", "--no-ceilings", "--budget", _TUNING, "--db", database, *WORKLOADS)
            rows = _perfsuite("compare", "--rounds", _ROUNDS, "--db", database, *WORKLOADS)
        kernels = sorted((row for row in rows if row["role"] != "floor"), key=lambda row: -row["seconds"])
        return {row["workload"]: row for row in kernels}  # of each workload the last, which is the fastest

    setup_cache.timeout = 900  # type: ignore[attr-defined]

    def track_tuned_over_eager(self, ratios: Ratios, workload: str) -> float:
        return ratios[workload]["against_eager"]

    def track_tuned_over_copy(self, ratios: Ratios, workload: str) -> float:
        return ratios[workload]["against_floor"]


def _perfsuite(*words: str) -> Any:
    """What a command of perfsuite answers as JSON."""
    command = [sys.executable, "-m", "perfsuite.cli", words[0], "--json", *words[1:]]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
