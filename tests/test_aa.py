"""Kernels against themselves: planted losses, counts, and the process beside."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from perfsuite import detect, registry
from perfsuite.lab import aa
from perfsuite.op import Workload
from perfsuite.plan import Effort
from perfsuite.policy import Policy
from perfsuite.stats import Verdict


def test_more_rows_are_planted() -> None:
    workload = Workload("softmax", (("rows", 200), ("cols", 64)))
    assert str(aa.more(workload, 0.02)) == "softmax[rows=204,cols=64,f32]"
    assert aa.more(workload, 0.0) == workload
    assert aa.more(Workload("softmax", (("rows", 3), ("cols", 4))), 0.02)["rows"] == 4


def duel(planted: float, verdict: Verdict, seconds: float = 1e-3) -> aa.Duel:
    return aa.Duel("f/k", f"w{seconds}", planted, verdict, 20, seconds, 1.0 + planted, 0)


def test_false_verdicts_and_found_losses_are_counted() -> None:
    rates = aa.summary(
        [
            duel(0.0, Verdict.TIE),
            duel(0.0, Verdict.UNDECIDED),
            duel(0.0, Verdict.SLOWER),
            duel(0.0, Verdict.FASTER, 2e-3),
            duel(0.02, Verdict.SLOWER),
            duel(0.02, Verdict.TIE),
            duel(0.05, Verdict.SLOWER, 2e-3),
        ]
    )
    assert (rates["races"], rates["aa"], rates["false"], rates["ties"]) == (7, 4, 2, 1)
    assert rates["found"]["2%"] == {"races": 2, "slower": 1, "faster": 0}
    assert [k["false"] for k in rates["kernels"]] == [1, 1]
    assert [k["found"]["5%"]["races"] for k in rates["kernels"]] == [0, 1]


def test_real_duels_take_place_for_every_planted_loss() -> None:
    subject = ("softmax/eager", "softmax[rows=64,cols=64,f32]")
    effort = Effort(trials=1, seconds=0.01, rounds=16, race_seconds=1.0)
    duels = list(aa.duels(registry.discover(), [subject], 2, effort, Policy()))
    assert sorted(d.planted for d in duels) == sorted([*aa.PLANTED] * 2)
    assert all(12 <= d.rounds <= 16 and d.seconds > 0.0 for d in duels)
    with pytest.raises(ValueError, match="cannot run"):
        list(aa.duels(registry.discover(), [("softmax/triton_rows", subject[1])], 1, effort, Policy()))


@pytest.mark.parametrize("what", ["hog", "builds"])
def test_the_process_beside_works_and_ends(what: str) -> None:
    cores = detect.allowed_cores()[:1]
    with aa.beside(what, cores):
        time.sleep(1.0)
        (child,) = [p for p in psutil.Process().children() if "-c" in p.cmdline()]
        assert child.cpu_affinity() == list(cores)
    assert not child.is_running()


def test_the_process_beside_ends_with_a_killed_parent() -> None:
    code = "import time; from perfsuite.lab import aa\nwith aa.beside('hog', (0,)): time.sleep(60)"
    parent = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.monotonic() + 30.0
    while not (children := psutil.Process(parent.pid).children()) and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(0.5)
    parent.kill()
    parent.wait()
    assert len(children) == 1
    psutil.wait_procs(children, timeout=10)
    assert not children[0].is_running()


def test_pairs_are_chosen_by_words_and_by_kernel() -> None:
    assert aa.pairs((), None) == aa.SUBJECTS
    assert aa.pairs((), "native_rows") == aa.pairs((), "norms/native_rows") != ()
    assert aa.pairs(("f/k", "op[n=1]"), None) == (("f/k", "op[n=1]"),)
    with pytest.raises(ValueError, match="give pairs"):
        aa.pairs(("f/k",), None)
    with pytest.raises(ValueError, match="is none of softmax/native_two_pass_pairs"):
        aa.pairs((), "nonsense")


def test_nothing_can_be_beside_a_kernel_that_uses_every_core(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="leave one free"), aa.beside("hog", ()):
        pass
    with pytest.raises(ValueError, match="is none of none, hog, builds"), aa.beside("party", (0,)):
        pass
