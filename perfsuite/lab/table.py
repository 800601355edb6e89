"""A recorded table: every config of one kernel on one workload with its raw samples, and its compact file.

The file is compressed JSON: a line that names the format, then the table. Times have five significant digits, a
hundredth of what any two samples differ by; configs are places in their dimensions.
"""

from __future__ import annotations

import json
import lzma
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from perfsuite.kernel import Config, Dimension, Space
from perfsuite.machine import Machine
from perfsuite.op import Workload
from perfsuite.policy import Policy

# First line of a table's file. 1: first format.
HEADER = {"perfsuite": "lab table", "format": 1}
SUFFIX = ".json.xz"
# Half of the passes stand for what a search and a race see, the other half for the truth.
FEWEST_PASSES = 2


class TableError(ValueError):
    """A file is no recorded table, or is damaged."""


@dataclass(frozen=True)
class Subject:
    """What a table is about: `kernel` is `family/name`, `digest` of its code, `space` what there was to choose from."""

    machine: Machine
    workload: Workload
    kernel: str
    digest: str
    policy: Policy
    space: Space

    def __str__(self) -> str:
        return f"{self.workload} {self.kernel}"

    @property
    def key(self) -> tuple[object, ...]:
        """What two recordings must share to be one."""
        chosen_from = (self.space.dimensions, self.space.configs)
        return (self.machine, self.workload, self.kernel, self.digest, self.policy, *chosen_from)

    @property
    def filename(self) -> str:
        """`norms-native_rows--rms_norm-rows64-cols1024-f32--MACHINE.json.xz`; a policy not the default is named too."""
        policy = "" if self.policy == Policy() else f"--{self.policy}"
        words = (str(self.kernel), f"{self.workload}{policy}".replace("=", ""), self.machine.slug)
        return "--".join(re.sub(r"[^a-z0-9_-]+", "-", word.lower()).strip("-") for word in words) + SUFFIX


@dataclass(frozen=True)
class Visits:
    """One config's samples in seconds, a tuple for each pass; `failure` says why there are none.

    A sample is the mean of `calls` calls; `build_seconds` is what the first build and check took.
    """

    passes: tuple[tuple[float, ...], ...] = ()
    calls: int = 1
    build_seconds: float = 0.0
    failure: str = ""


@dataclass(frozen=True)
class Raced:
    """Rounds that some configs ran side by side: `entrants` are their places in the space.

    For each process the samples of each entrant, in seconds, one for each round.
    """

    entrants: tuple[int, ...] = ()
    processes: tuple[tuple[tuple[float, ...], ...], ...] = ()


@dataclass(frozen=True, eq=False)
class LabTable:
    """`visits` belong to the configs of the subject's space, in its order; `raced` are the best of them.

    `created` is in seconds since the epoch.
    """

    subject: Subject
    visits: tuple[Visits, ...]
    created: float
    raced: Raced = Raced()

    def __post_init__(self) -> None:
        if len(self.visits) != len(self.subject.space):
            raise ValueError(f"{len(self.subject.space)} configs, and visits of {len(self.visits)}")

    @cached_property
    def passes(self) -> int:
        """The passes that every config that works was visited in; 0 where none works."""
        return min((len(v.passes) for v in self.visits if not v.failure), default=0)

    def save(self, path: Path) -> None:
        """Write the file whole or not at all."""
        data = f"{json.dumps(HEADER)}\n{json.dumps(self.to_json(), separators=(',', ':'))}\n".encode()
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f"{path.name}.new")
        draft.write_bytes(lzma.compress(data))
        draft.replace(path)

    def to_json(self) -> dict[str, Any]:
        s = self.subject
        places = [{value: at for at, value in enumerate(d.values)} for d in s.space.dimensions]
        return {
            "machine": s.machine.to_json(),
            "workload": s.workload.to_json(),
            "kernel": s.kernel,
            "digest": s.digest,
            "policy": s.policy.to_json(),
            "created": self.created,
            "dimensions": [d.to_json() for d in s.space.dimensions],
            # The default comes first.
            "configs": [[where[value] for where, (_, value) in zip(places, c.values)] for c in s.space],
            "samples": [[[_rounded(t) for t in taken] for taken in v.passes] for v in self.visits],
            "calls": [v.calls for v in self.visits],
            "build_seconds": [_rounded(v.build_seconds) for v in self.visits],
            "failures": {str(at): v.failure for at, v in enumerate(self.visits) if v.failure},
            "entrants": self.raced.entrants,
            "rounds": [[[_rounded(t) for t in taken] for taken in process] for process in self.raced.processes],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> LabTable:
        dimensions = tuple(Dimension.from_json(d) for d in data["dimensions"])
        configs = [
            Config(tuple((d.name, d.values[at]) for d, at in zip(dimensions, places, strict=True)))
            for places in data["configs"]
        ]
        subject = Subject(
            Machine.from_json(data["machine"]),
            Workload.from_json(data["workload"]),
            data["kernel"],
            data["digest"],
            Policy.from_json(data["policy"]),
            Space(dimensions, frozenset(configs).__contains__, configs[0]),
        )
        columns = zip(configs, data["samples"], data["calls"], data["build_seconds"], strict=True)
        known = {
            config: Visits(
                tuple(tuple(map(float, taken)) for taken in passes), calls, seconds, data["failures"].get(str(at), "")
            )
            for at, (config, passes, calls, seconds) in enumerate(columns)
        }
        places = {config: at for at, config in enumerate(subject.space)}
        raced = Raced(
            tuple(places[configs[at]] for at in data.get("entrants", ())),
            tuple(tuple(tuple(map(float, taken)) for taken in process) for process in data.get("rounds", ())),
        )
        return cls(subject, tuple(known[config] for config in subject.space), float(data["created"]), raced)


def _rounded(seconds: float) -> float:
    return float(f"{seconds:.5g}")


def read(path: Path) -> LabTable:
    """The table of a file; TableError says what is wrong with it."""
    try:
        header, _, body = lzma.decompress(path.read_bytes()).decode().partition("\n")
        if json.loads(header) != HEADER:
            raise ValueError(f"its first line is not {json.dumps(HEADER)}")
        return LabTable.from_json(json.loads(body))
    except (OSError, EOFError, lzma.LZMAError, ValueError, KeyError, TypeError, AttributeError, IndexError) as wrong:
        says = f"it lacks {wrong}" if isinstance(wrong, KeyError) else str(wrong)
        raise TableError(f"{path} is no table of `perfsuite lab record`: {says}") from wrong


@dataclass(frozen=True)
class Shelf:
    """The tables that were found, and what is wrong with the files that are left out."""

    tables: tuple[LabTable, ...]
    problems: tuple[str, ...] = ()


def shelf(places: Sequence[Path]) -> Shelf:
    """The tables of files and folders. A bad file of a folder is a problem, one named itself a TableError.

    ValueError where there is no table at all, which says what records one.
    """
    tables, problems = [], []
    for path, named in _files(places):
        try:
            table = read(path)
            if table.passes < FEWEST_PASSES:
                raise TableError(f"{path} has {table.passes} passes; half of at least {FEWEST_PASSES} are the truth")
            tables.append(table)
        except TableError as wrong:
            if named:
                raise
            problems.append(str(wrong))
    if not tables:
        where = " or ".join(map(str, places))
        raise ValueError("; ".join([*problems, f"{where} has no tables: `perfsuite lab record PATTERN` records some"]))
    return Shelf(tuple(tables), tuple(problems))


def _files(places: Sequence[Path]) -> Iterator[tuple[Path, bool]]:
    """Every file, and whether it was named itself."""
    for place in places:
        if place.is_dir():
            yield from ((path, False) for path in sorted(place.glob(f"*{SUFFIX}")))
        elif place.exists() or place.suffix:
            yield place, True
