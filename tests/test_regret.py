"""Regret: what a winner costs under a policy that it was not chosen for."""

from __future__ import annotations

from dataclasses import replace

import pytest
from synthetic import MACHINE, SOFTMAX, TODAY, timed

from perfsuite.kernel import Config
from perfsuite.policy import Policy
from perfsuite.report import Evidence, regret
from perfsuite.stats import Verdict
from perfsuite.table import Entry, Table
from perfsuite.trial import Trial


def _won(policy: Policy, seconds: dict[str, float], race: bool = True) -> tuple[Entry, list[Trial]]:
    """The fastest of these kernels under a policy, searched and (all of them, or the winner alone) raced."""
    workload = SOFTMAX[0]
    searched = [timed(workload, kernel, Config(), 1.1 * s, policy=policy) for kernel, s in seconds.items()]
    best = min(seconds, key=seconds.__getitem__)
    raced = [
        replace(timed(workload, kernel, Config(), s, policy=policy), stage="race", race=f"under {policy}")
        for kernel, s in seconds.items()
        if race or kernel == best
    ]
    ids = tuple(t.id for t in raced)
    entry = Entry(workload, policy, best, Config(), TODAY, seconds[best], Verdict.FASTER, trials=ids)
    return entry, [*searched, *raced]


@pytest.mark.parametrize("race", [True, False])
def test_regret_is_the_chosen_winners_time_where_the_other_won(evidence: Evidence, race: bool) -> None:
    warm = _won(Policy(), {"softmax/native_resident": 1e-6, "softmax/eager": 2e-6}, race)
    cold = _won(Policy(cache="cold"), {"softmax/native_resident": 9e-6, "softmax/eager": 6e-6}, race)
    threads = _won(Policy(threads=2), {"softmax/native_resident": 1e-6}, race)
    table = Table(MACHINE, (warm[0], cold[0], threads[0]))
    evidence = replace(evidence, trials=[*warm[1], *cold[1], *threads[1]], table=table)
    found, unknown = regret.regrets(evidence)
    ratios = {(r.chosen.policy.cache, r.right.policy.cache, r.right.policy.threads): r.ratio for r in found}
    assert ratios["cold", "warm", 1] == pytest.approx(2.0)
    assert ratios["warm", "cold", 1] == pytest.approx(1.5)
    assert unknown == 1, "what won under cold caches was not tried on two threads"
    assert found[0].ratio == max(r.ratio for r in found) and all(r.paired == (race or r.same) for r in found)
    section = regret.section(evidence)
    assert section is not None
    text = f"at worst 2.00× (`{SOFTMAX[0]}`, chosen cold, 1 thread, called warm, 1 thread)"
    assert "1 workload won" in section.words[0] and text in section.words[0]
    assert "Not counted: 1 winner " in section.words[-1]
    rows = [[cell.text for cell in row] for row in section.grids[1].rows]
    mark = "" if race else "~"
    worst = [str(SOFTMAX[0]), "cold, 1 thread", "eager", "warm, 1 thread", "native_resident", f"{mark}2.00×"]
    assert rows[0] == worst and len(rows) == 3


def test_regret_needs_two_policies_and_todays_code(evidence: Evidence) -> None:
    assert regret.section(evidence) is None
    warm = _won(Policy(), {"softmax/eager": 2e-6})
    cold = _won(Policy(cache="cold"), {"softmax/eager": 6e-6})
    stale = replace(cold[0], digest="yesterday")
    both = replace(evidence, trials=[*warm[1], *cold[1]], table=Table(MACHINE, (warm[0], cold[0])))
    assert [r.ratio for r in regret.regrets(both)[0]] == [1.0, 1.0]
    assert regret.section(replace(both, table=Table(MACHINE, (warm[0], stale)))) is None
