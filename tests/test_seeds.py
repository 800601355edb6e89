"""What a search is told of its space by trials on other workloads and machines."""

from __future__ import annotations

from dataclasses import replace

from samples import MACHINE, trial

from perfsuite.kernel import Config, Dimension, Space
from perfsuite.machine import Machine
from perfsuite.op import Workload
from perfsuite.seeds import Seeds
from perfsuite.trial import Failure, FailureKind, Trial

TILES = Space((Dimension("tile", (1, 2, 4, 8, 16)),))


def searched(workload: str, best: int, kernel: str = "softmax/native", machine: Machine = MACHINE) -> list[Trial]:
    """Trials of all TILES, each step away from the best one a fifth slower."""
    steps = [(config, abs(config["tile"].bit_length() - best.bit_length())) for config in TILES]
    return [
        replace(trial(kernel, (1e-6 * 1.2**away,), workload=workload, config=config), machine=machine)
        for config, away in steps
    ]


def nearest(trials: list[Trial], workload: str = "softmax[rows=64,cols=1000,f32]") -> list[int]:
    """The best tile of every place that is known, the most alike first."""
    known = Seeds(MACHINE, trials).elsewhere(Workload.parse(workload), "softmax/native", TILES)
    assert all(0.0 < one.likeness < 1.0 and set(one.costs) == set(TILES) for one in known)
    assert [one.likeness for one in known] == sorted((one.likeness for one in known), reverse=True)
    return [int(one.best["tile"]) for one in known]


def test_the_nearest_workloads_and_machines_come_first() -> None:
    here, near, far = (f"softmax[rows=64,cols={cols},f32]" for cols in (1000, 1024, 65536))
    there = replace(MACHINE, cpu="Another 1")
    assert nearest(searched(far, 16) + searched(near, 2)) == [2, 16]
    # Another machine, dtype or op tells something, but less than the same one.
    strangers = searched(here, 4, machine=there) + searched("softmax[rows=64,cols=1000,bf16]", 8)
    strangers += searched("log_softmax[rows=64,cols=1000,f32]", 16)
    assert nearest(strangers + searched(near, 2))[0] == 2
    assert sorted(nearest(strangers)) == [4, 8, 16]
    assert len(nearest([one for cols in range(1, 12) for one in searched(f"softmax[rows=9,cols={cols},f32]", 1)])) == 6


def test_what_says_nothing_of_a_space_is_left_out() -> None:
    here, near = "softmax[rows=64,cols=1000,f32]", "softmax[rows=64,cols=1024,f32]"
    own = searched(here, 1) + searched(near, 1, kernel="softmax/other")
    strange = [replace(one, config=Config.of(tile=99)) for one in searched(near, 1)]
    broken = trial("softmax/native", Failure(FailureKind.CRASH, "no"), workload=near, config=Config.of(tile=16))
    seeds = Seeds(MACHINE, [*own, *strange, broken])
    assert seeds.elsewhere(Workload.parse(here), "softmax/native", TILES) == ()
    assert seeds.best(Workload.parse(here), "softmax/native") == Config.of(tile=1)
    assert seeds.best(Workload.parse("softmax[rows=1,cols=1,f32]"), "softmax/native") is None
