"""How well searches and decisions did on recorded tables: values that `lab score` computes and a report shows."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

# First entry of a leaderboard's file. 1: first format.
FORMAT = 1
RACING = "racing"


@dataclass(frozen=True)
class Standing:
    """One search over all tables and seeds. `tuner` is whose it is, empty for ours; regret is 0.05 for 5 % slower.

    `to_5` and `to_1` are the median evaluations until its best is within 5 % and 1 % of the optimum, `mean_to_5` and
    `mean_to_1` the geometric means; one that never arrives counts with the whole space. `few_to_5` is that over the
    tables of `few` good configs, None where there are none or nobody counted. `seconds_to_5` is the median time that
    those evaluations take, builds included, `share_to_5` the median of them over those that are allowed: 40, or a tenth
    of the space if that is more. `regret` is that after 40 evaluations, `pick_regret` that of the pick after all that
    are allowed, `by_evaluations` and `by_seconds` those along the leaderboard's axes, each of the geometric mean of
    slowdowns. `false_winners` is the share of picks more than 2 % slower than the best config that the search had
    evaluated, `tables_within` that of tables on which the median search needs no more than it is allowed.
    """

    name: str
    tuner: str
    to_5: float
    mean_to_5: float
    few_to_5: float | None
    to_1: float
    mean_to_1: float
    seconds_to_5: float
    share_to_5: float
    regret: float
    false_winners: float
    pick_regret: float
    tables_within: float
    by_evaluations: tuple[float, ...]
    by_seconds: tuple[float, ...]


@dataclass(frozen=True)
class Target:
    """What is asked of the searches, the figure that was found, and whether it is met; None: it could not be judged."""

    words: str
    figure: str
    met: bool | None

    @property
    def verdict(self) -> str:
        return "not judged" if self.met is None else "met" if self.met else "missed"


@dataclass(frozen=True)
class Way:
    """One way to decide among finalists: samples of a decision in the mean, and the share of false winners.

    `repeats` of each finalist; of a race at most so many, since it ends when it has decided.
    """

    name: str
    repeats: int
    samples: float
    false_winners: float
    decisions: int = 1

    @property
    def error(self) -> float:
        """The standard error of the share."""
        return math.sqrt(self.false_winners * (1.0 - self.false_winners) / self.decisions)


def equal_ways(ways: Sequence[Way]) -> tuple[Way, ...]:
    """The race of tuning, and of each other way the one with the fewest repeats and no more false winners.

    Where none has as few, the one with the most repeats that were tried. Empty without ways.
    """
    named: dict[str, list[Way]] = {}
    for way in sorted(ways, key=lambda w: w.repeats):
        named.setdefault(way.name, []).append(way)
    if RACING not in named:
        return ()
    race = named.pop(RACING)[-1]
    equals = (next((w for w in way if w.false_winners <= race.false_winners), way[-1]) for way in named.values())
    return (race, *equals)


@dataclass(frozen=True)
class Played:
    """A table that was played: its configs, and how many of them are within 5 % of the optimum."""

    name: str
    configs: int
    within_5: int
    passes: int
    machine: str

    @property
    def few(self) -> bool:
        """Whether at most one config in ten is within 5 %: where any are found soon, searches hardly differ."""
        return 10 * self.within_5 <= self.configs


@dataclass(frozen=True)
class Leaderboard:
    """Standings best first. `missing` are the peers that are not installed, `ways` the races and fixed repeats."""

    default: str
    repeats: int
    tables: tuple[Played, ...]
    standings: tuple[Standing, ...]
    ways: tuple[Way, ...]
    targets: tuple[Target, ...]
    missing: tuple[str, ...]
    evaluations: tuple[int, ...]
    seconds: tuple[float, ...]

    def to_json(self) -> dict[str, Any]:
        return {"format": FORMAT, **asdict(self)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Leaderboard:
        if data.get("format") != FORMAT:
            raise ValueError(f"a leaderboard has the format {FORMAT}, this one {data.get('format')}")
        curves = ("by_evaluations", "by_seconds")
        return cls(
            default=data["default"],
            repeats=data["repeats"],
            tables=tuple(Played(**table) for table in data["tables"]),
            standings=tuple(
                Standing(**{"few_to_5": None, **s, **{c: tuple(s[c]) for c in curves}}) for s in data["standings"]
            ),
            ways=tuple(Way(**way) for way in data["ways"]),
            targets=tuple(Target(**target) for target in data["targets"]),
            missing=tuple(data["missing"]),
            evaluations=tuple(data["evaluations"]),
            seconds=tuple(data["seconds"]),
        )

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.to_json(), indent=1) + "\n")


def load(path: Path) -> Leaderboard | None:
    """The leaderboard of a file; None where there is no such file. ValueError names a file that is none."""
    try:
        return Leaderboard.from_json(json.loads(path.read_text()))
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as wrong:
        raise ValueError(f"{path} is no leaderboard of `perfsuite lab score`: {wrong}") from wrong
