"""Verdicts, races and the table of winners: no device, simulated times."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from samples import MACHINE, trial

from perfsuite.kernel import Config
from perfsuite.race import BLOCK, Samples, race, verdict
from perfsuite.stats import Verdict, compare, confidence_sequence
from perfsuite.table import Table
from perfsuite.trial import Trial
from perfsuite.winners import decide


def noisy(generator: random.Random, seconds: float, sigma: float, count: int) -> list[float]:
    return [seconds * generator.lognormvariate(0.0, sigma) for _ in range(count)]


@pytest.mark.parametrize("error", [0.01, 0.05])
def test_the_confidence_sequence_covers_the_mean_at_every_number_of_values(error: float) -> None:
    """Looked at after each of 60 values, from the third on; 2.3 sigma above the error in 2000 sequences."""
    generator = random.Random(1)
    missed = 0
    for _ in range(2000):
        values = [generator.gauss(1.0, 0.3) for _ in range(60)]
        looks = (confidence_sequence(values[:n], error) for n in range(3, 61))
        missed += any(not low <= 1.0 <= high for low, high in looks)
    assert missed <= 2000 * error + 2.3 * (2000 * error) ** 0.5


def test_processes_that_differ_widen_the_interval() -> None:
    generator = random.Random(5)
    base = noisy(generator, 1e-3, 0.005, 60)
    slower = [t * 1.02 for t in noisy(generator, 1e-3, 0.005, 60)]
    sources = [at // BLOCK % 3 for at in range(60)]
    assert compare(slower, base, sources=sources) is Verdict.SLOWER
    moved = [t * (1.0, 1.06, 1.0)[source] for t, source in zip(base, sources)]
    assert compare(moved, base) is Verdict.SLOWER
    assert compare(moved, base, sources=sources) is Verdict.UNDECIDED


def test_blocks_whose_rounds_resemble_each_other_widen_the_interval() -> None:
    """Four rounds in the same memory say little more than one: taken for sixty, they made these equals differ."""
    generator = random.Random(6)
    sources = [at // BLOCK % 3 for at in range(60)]
    alone = together = 0
    for _ in range(100):
        luck = [generator.gauss(0.0, 0.03) for _ in range(0, 60, BLOCK)]
        base = noisy(generator, 1e-3, 0.002, 60)
        moved = [t * 2.718 ** luck[at // BLOCK] for at, t in enumerate(noisy(generator, 1e-3, 0.002, 60))]
        alone += compare(moved, base) in (Verdict.FASTER, Verdict.SLOWER)
        together += compare(moved, base, sources=sources) in (Verdict.FASTER, Verdict.SLOWER)
    assert alone > 5
    assert together <= 2


def test_verdicts_on_equal_and_different_kernels() -> None:
    generator = random.Random(2)
    false = found = 0
    for _ in range(200):
        times = noisy(generator, 1e-3, 0.02, 60)
        false += compare(times, noisy(generator, 1e-3, 0.02, 60)) in (Verdict.FASTER, Verdict.SLOWER)
        found += compare(noisy(generator, 1.05e-3, 0.02, 60), times) is Verdict.SLOWER
    assert false == 0
    assert found >= 190


@given(st.lists(st.floats(1e-6, 1.0), min_size=3, max_size=40))
def test_a_kernel_ties_with_itself_and_verdicts_mirror(times: list[float]) -> None:
    assert compare(times, times) is Verdict.TIE
    other = [2.0 * t for t in times]
    assert compare(times, other) is Verdict.FASTER
    assert compare(other, times) is Verdict.SLOWER


def test_unpaired_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="3 and 2"):
        compare([1.0, 1.0, 1.0], [1.0, 1.0])


def run_race(seconds: list[float], rounds: int = 60, sigma: float = 0.01, seed: int = 3) -> Samples:
    generator = random.Random(seed)
    steps = race(len(seconds), rounds, processes=3)
    active = next(steps)
    while True:
        try:
            active = steps.send(([noisy(generator, seconds[at], sigma, BLOCK) for at in active], False))
        except StopIteration as end:
            samples: Samples = end.value
            return samples


def test_slow_entrants_drop_out_of_a_race_early() -> None:
    samples = run_race([1e-3, 1.012e-3, 2e-3, 1.05e-3])
    assert len(samples[2]) == 2 * BLOCK
    assert len(samples[3]) < 60
    assert len(samples[1]) <= len(samples[0]) <= 60


def test_a_race_is_not_given_up_while_its_mean_is_unknown() -> None:
    """With noise of 15 % the mean of a dozen rounds may be anything: 5 % more time showed in 56 races of 75."""
    found = 0
    for seed in range(40):
        base, slower = run_race([1e-3, 1.05e-3], rounds=4000, sigma=0.15, seed=seed)
        found += verdict(slower, base, processes=3) is Verdict.SLOWER
    assert found >= 38


def test_a_race_of_one_ends_after_its_first_rounds() -> None:
    assert len(run_race([1e-3])[0]) == BLOCK


DEFAULTS = frozenset({"softmax/eager"})
TODAY = {"softmax/eager": "d0", "softmax/a": "d0", "softmax/b": "d0"}


def raced(race: str = "r1", created: float = 1e9, digest: str = "d0", **seconds: float) -> list[Trial]:
    generator = random.Random(4)
    return [
        trial(f"softmax/{name}", noisy(generator, value, 0.004, 40), race=race, created=created, digest=digest)
        for name, value in seconds.items()
    ]


def winner(trials: list[Trial]) -> tuple[str, Verdict, int]:
    (entry,) = decide(MACHINE, trials, TODAY, DEFAULTS).entries
    return entry.kernel, entry.verdict, len(entry.ties)


def test_the_fastest_wins_and_is_named_faster() -> None:
    assert winner(raced(eager=2e-3, a=1e-3, b=1.5e-3)) == ("softmax/a", Verdict.FASTER, 0)


def test_a_default_that_dropped_out_after_a_few_noisy_rounds_has_lost() -> None:
    a, b, eager = raced(a=1e-3, b=1.005e-3, eager=1e-3)
    noisy_eager = trial("softmax/eager", (2e-3, 9e-3, 2.1e-3, 2e-3), race="r1")
    assert eager.measurement is not None
    assert winner([a, b, noisy_eager])[:2] == ("softmax/a", Verdict.FASTER)


def test_a_tie_goes_to_the_default() -> None:
    assert winner(raced(eager=1.001e-3, a=1e-3)) == ("softmax/eager", Verdict.DEFAULT, 1)


def test_a_tie_without_the_default_goes_to_the_first_name() -> None:
    assert winner(raced(eager=2e-3, b=1e-3, a=1.001e-3)) == ("softmax/a", Verdict.FASTER, 1)


def test_a_tie_goes_to_the_config_with_fewer_resources() -> None:
    eager, one, other = raced(eager=2e-3, a=1e-3, b=1.001e-3)
    wide = trial("softmax/a", one.measurement.samples, config=Config.of(unroll=16, stream=True), race="r1")  # type: ignore[union-attr]
    narrow = trial("softmax/a", other.measurement.samples, config=Config.of(unroll=2, stream=True), race="r1")  # type: ignore[union-attr]
    (entry,) = decide(MACHINE, [eager, wide, narrow], TODAY, DEFAULTS).entries
    assert (entry.config, entry.ties) == (narrow.config, (("softmax/a", wide.config),))


def test_the_newest_race_counts_and_a_stale_one_does_not() -> None:
    old, new = raced(eager=2e-3, a=1e-3), raced("r2", 2e9, eager=1e-3, a=2e-3)
    assert winner(old + new)[0] == "softmax/eager"
    stale = raced("r3", 3e9, "other", eager=3e-3, a=1e-3)
    assert winner(old + stale)[0] == "softmax/a"
    assert decide(MACHINE, stale, TODAY, DEFAULTS).entries == ()


def test_the_same_trials_give_the_same_table_in_any_order() -> None:
    trials = raced(eager=1.001e-3, a=1e-3, b=1.002e-3)
    assert decide(MACHINE, trials, TODAY, DEFAULTS) == decide(MACHINE, trials[::-1], TODAY, DEFAULTS)


def test_a_table_is_saved_and_loaded_and_a_wrong_one_explained(tmp_path: Path) -> None:
    table = decide(MACHINE, raced(eager=2e-3, a=1e-3), TODAY, DEFAULTS)
    path = tmp_path / "deep" / "table.json"
    table.save(path)
    assert Table.load(path) == table
    path.write_text('{"format": 99}')
    with pytest.raises(ValueError, match="format 99"):
        Table.load(path)
    path.write_text("half a tab")
    with pytest.raises(ValueError, match="`perfsuite tune` writes a new one"):
        Table.load(path)
