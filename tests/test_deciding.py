"""Verdicts, races and the table of winners: no device, simulated times."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from samples import MACHINE, trial

from perfsuite.kernel import Config
from perfsuite.race import Samples, level, race, verdict
from perfsuite.stats import BLOCK, Contrast, Verdict, confidence_sequence, moderated, quickest, quiet
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


def said(times: Sequence[float], against: Sequence[float], sources: Sequence[int] = ()) -> Verdict:
    return Contrast.of(times, against, sources).verdict(0.01, 0.01)


def test_processes_that_differ_widen_the_interval() -> None:
    generator = random.Random(5)
    base = noisy(generator, 1e-3, 0.005, 60)
    slower = [t * 1.02 for t in noisy(generator, 1e-3, 0.005, 60)]
    sources = [at % 3 for at in range(60)]
    assert said(slower, base, sources) is Verdict.SLOWER
    moved = [t * (1.0, 1.06, 1.0)[source] for t, source in zip(base, sources)]
    assert said(moved, base) is Verdict.SLOWER
    assert said(moved, base, sources) is Verdict.UNDECIDED


def test_rounds_that_share_their_luck_are_not_taken_for_independent_ones() -> None:
    """Four rounds in the same memory say little more than one: taken for sixty, they made these equals differ."""
    generator = random.Random(6)
    alone = together = 0
    for _ in range(100):
        luck = [generator.gauss(0.0, 0.03) for _ in range(0, 60, BLOCK)]
        base = noisy(generator, 1e-3, 0.002, 60)
        moved = [t * 2.718 ** luck[at // BLOCK] for at, t in enumerate(noisy(generator, 1e-3, 0.002, 60))]
        alone += said(moved, base) in (Verdict.FASTER, Verdict.SLOWER)
        together += verdict(moved, base, processes=3) in (Verdict.FASTER, Verdict.SLOWER)
    assert alone > 5
    assert together <= 2


def test_the_quickest_rounds_tell_kernels_apart_where_a_third_of_all_rounds_is_disturbed() -> None:
    """Their mean needs over 200 rounds for these 3 %."""
    generator = random.Random(7)

    def disturbed(seconds: float, count: int) -> list[float]:
        extra = (generator.expovariate(4.0) if generator.random() < 0.3 else 0.0 for _ in range(count))
        return [t * (1.0 + more) for t, more in zip(noisy(generator, seconds, 0.01, count), extra)]

    false = found = by_mean = 0
    for _ in range(100):
        times = disturbed(1e-3, 80)
        false += verdict(disturbed(1e-3, 80), times) in (Verdict.FASTER, Verdict.SLOWER)
        slower = disturbed(1.03e-3, 80)
        found += verdict(slower, times) is Verdict.SLOWER
        by_mean += said(slower, times) is Verdict.SLOWER
    assert false <= 1
    assert found >= 95
    assert by_mean < 50
    assert quiet(disturbed(1e-3, 400)) == pytest.approx(1e-3, rel=0.01)


def test_verdicts_on_equal_and_different_kernels() -> None:
    generator = random.Random(2)
    false = found = 0
    for _ in range(200):
        times = noisy(generator, 1e-3, 0.02, 60)
        false += said(times, noisy(generator, 1e-3, 0.02, 60)) in (Verdict.FASTER, Verdict.SLOWER)
        found += said(noisy(generator, 1.05e-3, 0.02, 60), times) is Verdict.SLOWER
    assert false == 0
    assert found >= 190


@given(st.lists(st.floats(1e-6, 1.0), min_size=3, max_size=40))
def test_a_kernel_ties_with_itself_and_verdicts_mirror(times: list[float]) -> None:
    assert said(times, times) is Verdict.TIE
    other = [2.0 * t for t in times]
    assert said(times, other) is Verdict.FASTER
    assert said(other, times) is Verdict.SLOWER


def test_unpaired_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="3 and 2"):
        said([1.0, 1.0, 1.0], [1.0, 1.0])


@given(st.lists(st.floats(1e-6, 1.0), min_size=1, max_size=40), st.integers(1, 5))
def test_every_few_samples_have_one_quickest(times: list[float], of: int) -> None:
    found = quickest(times, of)
    assert len(found) == max(1, len(times) // of)
    assert min(found) == min(times[: len(found) * of])
    assert min(times) * 0.999 <= quiet(times, of) <= max(times) * 1.001


def run_race(
    seconds: Sequence[float], rounds: int = 60, sigma: float = 0.01, seed: int = 3, judged: Sequence[int] = ()
) -> Samples:
    generator = random.Random(seed)
    steps = race(len(seconds), rounds, judged, processes=3)
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
        base, slower = run_race([1e-3, 1.05e-3], rounds=4000, sigma=0.15, seed=seed, judged=(0, 1))
        found += verdict(slower, base, processes=3) is Verdict.SLOWER
    assert found >= 38


def test_a_race_hardly_ever_picks_one_that_is_2_percent_slower_and_ends_before_a_verdict_would() -> None:
    generator = random.Random(8)
    wrong = spent = judging = 0
    for seed in range(100):
        seconds = [1e-3 * (1.0 + generator.uniform(0.0, 0.12)) for _ in range(16)]
        samples = run_race(seconds, rounds=4000, sigma=0.04, seed=seed)
        stayed = [at for at, taken in enumerate(samples) if len(taken) == max(map(len, samples))]
        pick = min(stayed, key=lambda at: level(samples[at]))
        wrong += seconds[pick] > 1.02 * min(seconds)
        spent += sum(map(len, samples))
        judging += sum(map(len, run_race(seconds, 4000, 0.04, seed, judged=range(16)))) if seed < 10 else 0
    assert wrong <= 3
    assert spent / 100 < judging / 10 / 2


def test_the_chance_to_be_faster_is_as_often_right_as_it_says() -> None:
    """Of contrasts whose true mean may be anything, those that give it 5 to 15 % are right in about 10 %."""
    generator = random.Random(9)
    right = []
    for _ in range(20_000):
        truth = generator.uniform(-0.1, 0.1)
        base = noisy(generator, 1.0, 0.03, 8)
        chance = Contrast.of([t * 2.718281828**truth for t in noisy(generator, 1.0, 0.03, 8)], base).chance(0.02)
        if 0.05 < chance < 0.15:
            right.append(truth < -0.0198)
    assert len(right) > 500
    assert 0.06 < sum(right) / len(right) < 0.14


def test_few_values_borrow_what_all_kernels_of_a_race_say_of_the_noise() -> None:
    lucky, usual, unlucky = (Contrast(0.02, variance, 6) for variance in (1e-8, 1e-4, 4e-4))
    drawn = moderated([lucky, usual, unlucky])
    assert [c.mean for c in drawn] == [0.02] * 3
    assert 1e-8 < drawn[0].variance < drawn[1].variance == pytest.approx(1e-4)
    assert drawn[2].variance < 4e-4
    assert lucky.chance() < 1e-6 < drawn[0].chance() < 0.01
    assert moderated([lucky, usual]) == [lucky, usual]


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
