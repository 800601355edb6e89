"""Fresh tunings whose picks are raced together."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console
from samples import write_family

from perfsuite.kernel import Config
from perfsuite.lab import repeat
from perfsuite.policy import Policy
from perfsuite.stats import Verdict
from perfsuite.table import Entry

pytestmark = pytest.mark.quiet

THRICE = """
import torch

from perfsuite.kernel import Config, Dimension, Kernel, Space


def build(op, workload, config):
    def run(inputs, outputs):
        for _ in range(config["times"]):
            torch.mul(inputs[0], 2.0, out=outputs[0])
        return outputs

    return run


def space(workload, machine):
    return Space((Dimension("times", (9, 5, 3)),))


KERNEL = Kernel(ops=("twice",), build=build, space=space)
"""


def test_runs_that_pick_the_same_are_one_tie_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_family(tmp_path / "toys")
    (folder / "thrice.py").write_text(THRICE)
    monkeypatch.setenv("PERFSUITE_KERNELS", str(folder))
    console = Console(record=True, width=200)
    plan = repeat.plan_of(["twice[n=65536,f32]"], "quick", Policy())
    entries = repeat.collected(plan, 2, console)
    assert [e.kernel for e in entries] == ["toys/eager"] * 2
    found = repeat.summary(tuple(repeat.raced(entries, plan.registry, Policy(), 12)))
    (picks,) = found["workloads"].values()
    assert [(p["kernel"], p["runs"], p["ratio"], p["tied"]) for p in picks] == [("toys/eager", 2, 1.0, True)]
    repeat.show(found, console)
    assert "one tie set at 2%" in console.export_text()


def test_a_slower_pick_is_no_tie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_family(tmp_path / "toys")
    (folder / "thrice.py").write_text(THRICE)
    monkeypatch.setenv("PERFSUITE_KERNELS", str(folder))
    plan = repeat.plan_of(["twice[n=65536,f32]"], "quick", Policy())
    workload = plan.jobs[0].workload
    slowest = plan.registry.kernels["toys/thrice"].space(workload, plan.machine).configs[0]
    entry, slow = (
        Entry(workload, Policy(), kernel, config, "", 1e-5, Verdict.FASTER)
        for kernel, config in (("toys/eager", Config()), ("toys/thrice", slowest))
    )
    picks = tuple(repeat.raced([entry, slow], plan.registry, Policy(), 24))
    assert [(p.kernel, p.tied) for p in picks] == [("toys/eager", True), ("toys/thrice", False)]
    assert not repeat.summary(picks)["one_tie_set"]
