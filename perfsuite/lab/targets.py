"""What is asked of the default search and of the race, judged on a score."""

from __future__ import annotations

from collections.abc import Sequence

from perfsuite import units
from perfsuite.lab import seeded
from perfsuite.leaderboard import Standing, Target, Way, equal_ways

# The default needs at most this share of random's evaluations; a race at most this share of a fixed tuner's samples.
OF_RANDOM = OF_FIXED = 1.0 / 3.0
FALSE_WINNERS = 0.01
TUNERS = ("Optuna", "Kernel Tuner")


def judge(standings: Sequence[Standing], ways: Sequence[Way], default: str, few: int = 0) -> tuple[Target, ...]:
    """Every target with its figure; one whose rows are not in the score is not judged.

    `few` tables have few good configs.
    """
    rows = {standing.name: standing for standing in standings}
    return (
        _soon(rows.get(default)),
        _against_random(rows.get(default), rows.get("random")),
        _against_random(rows.get(seeded.NAME), rows.get("random"), ", seeded as in tuning"),
        _where_few(rows.get(seeded.NAME), rows.get("random"), few),
        *(_against_tuner(rows.get(default), tuner, standings) for tuner in TUNERS),
        *_deciding(ways),
    )


def _soon(ours: Standing | None) -> Target:
    words = "within 5 % of the optimum after 10 % of the space or 40 evaluations, in the median"
    if ours is None:
        return Target(words, "the default was not played", None)
    return Target(words, f"after {units.percent(ours.share_to_5)} of them", ours.share_to_5 <= 1.0)


def _against_random(ours: Standing | None, random: Standing | None, how: str = "") -> Target:
    words = f"at most a third of random's evaluations to 5 %{how}"
    if ours is None or random is None:
        return Target(words, "one of the two was not played", None)
    share = ours.mean_to_5 / random.mean_to_5
    return Target(words, f"{ours.mean_to_5:.1f} of {random.mean_to_5:.1f}: {units.percent(share)}", share <= OF_RANDOM)


def _where_few(ours: Standing | None, random: Standing | None, few: int) -> Target:
    words = f"the same on the {units.several(few, 'space')} with at most one config in ten within 5 %"
    if ours is None or random is None or ours.few_to_5 is None or random.few_to_5 is None:
        return Target(words, "one of the two was not played", None)
    share = ours.few_to_5 / random.few_to_5
    return Target(words, f"{ours.few_to_5:.1f} of {random.few_to_5:.1f}: {units.percent(share)}", share <= OF_RANDOM)


def _against_tuner(ours: Standing | None, tuner: str, standings: Sequence[Standing]) -> Target:
    words = f"no more evaluations to 5 % than {tuner}'s best"
    theirs = min((s for s in standings if s.tuner == tuner), key=lambda s: s.mean_to_5, default=None)
    if ours is None or theirs is None:
        return Target(words, f"{tuner} was not played", None)
    figure = f"{ours.mean_to_5:.1f} against {theirs.mean_to_5:.1f} ({theirs.name})"
    return Target(words, figure, ours.mean_to_5 <= theirs.mean_to_5)


def _deciding(ways: Sequence[Way]) -> tuple[Target, ...]:
    few, fewer = "at most 1 % false winners", "at most a third of the samples of {} with as few false winners"
    if not ways:
        return Target(few, "no race was held", None), Target(fewer.format("fixed repeats"), "no race was held", None)
    race, *others = equal_ways(ways)
    figure = f"{units.percent(race.false_winners)} +- {units.percent(race.error)}"
    first = Target(few, figure, race.false_winners <= FALSE_WINNERS)
    return first, *(_against_fixed(race, fixed, fewer.format(fixed.name)) for fixed in others)


def _against_fixed(race: Way, fixed: Way, words: str) -> Target:
    share = race.samples / fixed.samples
    reached = "" if fixed.false_winners <= race.false_winners else ", which still have more false winners"
    figure = f"{race.samples:,.0f} of {fixed.samples:,.0f}{reached}: {units.percent(share)}"
    return Target(words, figure, share <= OF_FIXED)
