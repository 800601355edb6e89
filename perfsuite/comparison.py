"""What a comparison found: a row per entrant of a race, and a file that keeps the rows as they come."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from perfsuite.machine import Machine
from perfsuite.policy import Policy

OURS, OTHER, FLOOR = "ours", "other", "floor"


@dataclass(frozen=True)
class Row:
    """One entrant of the race on one workload, with its median time in seconds.

    `role` is `ours`, `other` (eager, inductor or a peer) or `floor` (a probe that moves as many bytes). `level` is the
    memory level that holds the workload's bytes. The ratios are medians over the rounds: to the fastest floor, to the
    fastest of the others, to eager; None where there is none.
    """

    workload: str
    level: str
    role: str
    kernel: str
    config: str
    digest: str
    seconds: float
    against_floor: float | None
    against_other: float | None
    against_eager: float | None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class Journal:
    """The races of one machine under one policy, by workload; kept in a file of JSON lines where there is a path.

    The first line is the machine, the policy and whether peers took part, each further one the rows of a race. Of two
    races on one workload the later counts.
    """

    machine: Machine
    policy: Policy
    peers: bool = False
    races: dict[str, tuple[Row, ...]] = field(default_factory=dict)
    path: Path | None = None

    @classmethod
    def load(cls, path: Path) -> Journal:
        """Raises ValueError for what is no such file, OSError for what cannot be read."""
        try:
            # What an interruption left of a last line was never finished.
            first, *lines = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
            heading = json.loads(first)
            races = [tuple(Row(**row) for row in json.loads(line)) for line in lines]
            machine, policy = Machine.from_json(heading["machine"]), Policy.from_json(heading["policy"])
        except (ValueError, KeyError, TypeError) as wrong:
            raise ValueError(f"{path} holds no comparison ({wrong}): name another file") from wrong
        return cls(machine, policy, bool(heading["peers"]), {race[0].workload: race for race in races}, path)

    @classmethod
    def resume(cls, path: Path | None, machine: Machine, policy: Policy, peers: bool = False) -> Journal:
        """Go on where the file ends, or begin it. Raises ValueError if its races were others than these would be."""
        if path is None or not path.exists():
            journal = cls(machine, policy, peers, path=path)
            journal._write({"machine": machine.to_json(), "policy": policy.to_json(), "peers": peers})
            return journal
        journal = cls.load(path)
        if (journal.machine, journal.policy) != (machine, policy):
            raise ValueError(f"{path} was measured on another machine, environment or policy: name another file")
        if journal.peers != peers:
            how = "with" if journal.peers else "without"
            raise ValueError(f"{path} was measured {how} --peers: do the same, or name another file")
        os.truncate(path, path.read_bytes().rfind(b"\n") + 1)
        return journal

    def has(self, workload: str, digests: Mapping[str, str]) -> bool:
        """Whether the workload was raced by kernels whose code is today's."""
        race = self.races.get(workload, ())
        return bool(race) and all(digests.get(row.kernel) == row.digest for row in race)

    def add(self, rows: Iterable[Row]) -> None:
        race = tuple(rows)
        self.races[race[0].workload] = race
        self._write([row.to_json() for row in race])

    def _write(self, data: Any) -> None:
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a") as file:
                file.write(json.dumps(data) + "\n")
