"""Races over real processes: a folder of kernels whose cost is known."""

from __future__ import annotations

from pathlib import Path

import pytest
from samples import write_family

from perfsuite import registry
from perfsuite.kernel import Config
from perfsuite.op import Workload
from perfsuite.plan import FEWEST_PROCESSES, Effort
from perfsuite.policy import Policy
from perfsuite.race import FEWEST, verdict
from perfsuite.racing import Racers
from perfsuite.stats import BLOCK, Verdict
from perfsuite.worker import Candidate

SLOWED = """
import torch

from perfsuite.kernel import Kernel


def build(op, workload, config):
    def run(inputs, outputs):
        for _ in range(20):
            torch.mul(inputs[0], 2.0, out=outputs[0])
        return outputs

    return run


KERNEL = Kernel(ops=("twice",), build=build)
"""
pytestmark = pytest.mark.quiet
# Time enough on a busy machine: a race whose time is up ends undecided.
EFFORT = Effort(trials=1, seconds=0.01, rounds=400, race_seconds=30.0)


@pytest.fixture
def candidates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Candidate]:
    folder = write_family(tmp_path / "toys")
    (folder / "slowed.py").write_text(SLOWED)
    monkeypatch.setenv("PERFSUITE_KERNELS", str(folder))
    known = registry.discover()
    workload = Workload("twice", (("n", 1 << 16),))
    return [Candidate(workload, known.kernels[f"toys/{name}"], Config()) for name in ("eager", "eager", "slowed")]


@pytest.mark.parametrize("policy", [Policy(), Policy(cache="cold"), Policy(output="fresh")], ids=str)
def test_a_race_takes_its_blocks_from_several_processes_and_finds_the_slower(
    candidates: list[Candidate], policy: Policy
) -> None:
    racers = Racers([0], threads=1)
    try:
        one, same, slowed = racers.race(candidates, policy, EFFORT)
        workers = [worker._child.pid for worker in racers.workers if worker._child is not None]
    finally:
        racers.close()
    assert len(set(workers)) == FEWEST_PROCESSES == one.processes
    assert FEWEST <= len(one.samples) <= 400
    assert len(slowed.samples) <= len(one.samples)
    said = verdict(slowed.samples, one.samples, processes=FEWEST_PROCESSES)
    assert said is Verdict.SLOWER or len(slowed.samples) == 2 * BLOCK
    assert verdict(same.samples, one.samples, processes=FEWEST_PROCESSES) in (Verdict.TIE, Verdict.UNDECIDED)


def test_in_a_parade_everybody_takes_part_to_the_end(candidates: list[Candidate]) -> None:
    racers = Racers([0], threads=1, processes=2)
    try:
        measured = racers.rounds(candidates, Policy(), 10)
    finally:
        racers.close()
    assert [len(m.samples) for m in measured] == [12, 12, 12]  # whole blocks
