"""Records complete spaces: several passes over every config, each in a fresh process and in an order of its own.

Further passes over the configs near the best, and yet further ones over those that a race would decide among, make sure
of the truth about them. So the noise in a table is that of a machine over time and over processes, not of one visit.
"""

from __future__ import annotations

import contextlib
import math
import os
import random
import shutil
import statistics
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from perfsuite import detect
from perfsuite.kernel import Config, Kernel
from perfsuite.lab.table import FEWEST_PASSES, LabTable, Subject, TableError, Visits, read
from perfsuite.machine import Machine
from perfsuite.plan import EFFORTS, elsewhere, refused
from perfsuite.policy import Policy
from perfsuite.registry import Job, Registry
from perfsuite.trial import Failure
from perfsuite.worker import Attempt, Candidate, Worker, alone

# A space of fewer configs is tried whole by any strategy, and tells none from another.
FEWEST_CONFIGS = 60
# What has not been recorded to the end lies beside the table: its samples, and what was compiled for it.
_PART, _BUILDS = ".part", ".builds"
# Compilers' caches. A table records what a build costs, which a warm cache hides.
_CACHES = {"PERFSUITE_CACHE": "native", "TORCHINDUCTOR_CACHE_DIR": "inductor", "TRITON_CACHE_DIR": "triton"}
_LONGEST_REASON = 200


# A config within this factor of the best may be the best in truth, and the further passes are for it.
_NEAR = 1.25
# As many are the best: a race would have to decide among them.
_BEST = EFFORTS["default"].finalists


@dataclass(frozen=True)
class Effort:
    """How much to record: passes over the space, samples of every config in each, seconds of timing in each visit.

    `near` further passes go over the configs near the best alone, `best` yet further ones over the finalists of a race
    alone: the truth about these decides who is a false winner. A visit's median is 2 to 5 % off here, so that the truth
    is known to 1 % after two dozen visits and to half of that after a hundred.
    """

    passes: int = 8
    samples: int = 8
    seconds: float = 0.01
    near: int = 16
    best: int = 72

    def __post_init__(self) -> None:
        if self.passes < FEWEST_PASSES:
            raise ValueError(
                f"--passes {self.passes}: one half of the passes is the truth for the other; give 2 or more"
            )

    @property
    def all(self) -> int:
        return self.passes + self.near + self.best


@dataclass(frozen=True)
class Visited:
    """One config was visited: the `at`-th visit `of` those that the table needs, and the config's visits so far."""

    subject: Subject
    config: Config
    at: int
    of: int
    visits: Visits


Recording = Generator[Visited, None, None]


def subjects(known: Registry, patterns: Sequence[str], machine: Machine, policy: Policy) -> tuple[Subject, ...]:
    """What the patterns name and this machine can run; ValueError if that is nothing.

    A workload spelled out stands for all its kernels with FEWEST_CONFIGS or more; a pattern that names kernels or
    families, together with spelled-out workloads, restricts them to those kernels.
    """
    workloads = [p for p in patterns if "[" in p]
    others = [p for p in patterns if "[" not in p]
    jobs = known.select(workloads or others)
    if workloads and others:
        jobs = tuple(Job(j.workload, tuple(k for k in j.kernels if _any(known, others, j, str(k)))) for j in jobs)
    found: list[Subject] = []
    small: list[Subject] = []
    for job in jobs:
        for kernel in job.kernels:
            if elsewhere(kernel, policy) or refused(kernel, job.workload, machine):
                continue
            subject = Subject(
                machine, job.workload, str(kernel), kernel.digest, policy, kernel.space(job.workload, machine)
            )
            (found if len(subject.space) >= FEWEST_CONFIGS else small).append(subject)
    if not found:
        largest = max((len(s.space) for s in small), default=0)
        raise ValueError(
            f"{' '.join(patterns)} names no kernel that runs here with {FEWEST_CONFIGS} configs or more"
            + (f"; the largest space has {largest}" if largest else "")
        )
    return tuple(found)


def _any(known: Registry, patterns: Sequence[str], job: Job, kernel: str) -> bool:
    return any(known.names(pattern, job.workload, kernel) for pattern in patterns)


def record(chosen: Sequence[Subject], kernels: Mapping[str, Kernel], effort: Effort, folder: Path) -> Recording:
    """Record the tables of the subjects, all under one policy, into the folder; goes on where a recording stopped.

    Each pass is one process for all of them. Stopped between two visits, it keeps all visits in files whose names end
    in .part. ValueError if of one subject nothing works; the others' tables are written.
    """
    drafts = [_Draft.begun(subject, folder) for subject in chosen]
    builds = folder / _BUILDS
    with _fresh_caches(builds):
        for number in range(effort.all):
            policy = chosen[0].policy
            worker = Worker(detect.divided_cores(policy.threads)[0], policy.threads)
            try:
                for draft in drafts:
                    yield from draft.record(kernels[draft.subject.kernel], number, effort, worker)
            finally:
                worker.close()
    shutil.rmtree(builds, ignore_errors=True)
    problems = [problem for draft in drafts if (problem := draft.end(folder))]
    if problems:
        raise ValueError("; ".join(problems))


@dataclass
class _Draft:
    """A table that is being recorded; `part` is the file that keeps it meanwhile."""

    subject: Subject
    part: Path
    visits: list[Visits]
    created: float

    @classmethod
    def begun(cls, subject: Subject, folder: Path) -> _Draft:
        """What an earlier recording left of this very subject, else nothing yet."""
        part = folder / (subject.filename + _PART)
        with contextlib.suppress(TableError):
            left = read(part)
            if left.subject.key == subject.key:
                return cls(subject, part, list(left.visits), left.created)
        return cls(subject, part, [Visits()] * len(subject.space), time.time())

    def table(self) -> LabTable:
        return LabTable(self.subject, tuple(self.visits), self.created)

    def end(self, folder: Path) -> str:
        """Write the table; what is wrong if nothing works."""
        table = self.table()
        self.part.unlink(missing_ok=True)
        if not table.passes:
            return f"{self.subject}: no config works; the first one: {table.visits[0].failure}"
        table.save(folder / self.subject.filename)
        return ""

    def record(self, kernel: Kernel, number: int, effort: Effort, worker: Worker) -> Recording:
        """Visit every config that belongs to this pass and has not been in it, in the pass's own order; keep it all."""
        wanted = self._wanted(effort)
        order = [at for at, count in enumerate(wanted) if len(self.visits[at].passes) == number < count]
        random.Random(f"{self.subject} {number}").shuffle(order)
        try:
            for at in order:
                candidate = Candidate(self.subject.workload, kernel, self.subject.space.configs[at])
                with alone():
                    attempt = worker.measure(candidate, self.subject.policy, effort.seconds)
                self.visits[at] = _with(self.visits[at], attempt, effort.samples)
                done = sum(len(v.passes) for v in self.visits)
                yield Visited(self.subject, candidate.config, done, sum(wanted), self.visits[at])
        finally:
            if order:
                self.table().save(self.part)

    def _wanted(self, effort: Effort) -> list[int]:
        """The passes that each config is to be in; none, once it has failed."""
        wanted = [0 if v.failure else effort.passes for v in self.visits]
        for further, chosen in ((effort.near, self._near), (effort.best, self._best)):
            if not all(len(v.passes) >= count for v, count in zip(self.visits, wanted)):
                break
            for at in chosen(wanted):
                wanted[at] += further
        return wanted

    def _near(self, passes: Sequence[int]) -> list[int]:
        """The configs within _NEAR of the best, by the first passes."""
        medians = self._medians(passes)
        return [at for at, median in enumerate(medians) if median <= _NEAR * min(medians) < math.inf]

    def _best(self, passes: Sequence[int]) -> list[int]:
        """The _BEST configs, by the first passes, of those that were in the most."""
        medians = self._medians(passes)
        most = max(passes)
        return sorted((at for at in range(len(medians)) if passes[at] == most > 0), key=medians.__getitem__)[:_BEST]

    def _medians(self, passes: Sequence[int]) -> list[float]:
        """Of each config's first passes, in seconds; infinite where there are none."""
        return [
            statistics.median(chain.from_iterable(v.passes[:count])) if v.passes else math.inf
            for v, count in zip(self.visits, passes)
        ]


def _with(before: Visits, attempt: Attempt, samples: int) -> Visits:
    """The visits with one more; a config that fails once is one that fails."""
    if isinstance(attempt.outcome, Failure):
        return Visits(failure=f"{attempt.outcome.kind}: {attempt.outcome.reason}"[:_LONGEST_REASON])
    taken = attempt.outcome.samples
    # Spread over the visit, so that they differ as much as those of a search do.
    chosen = tuple(taken[len(taken) * k // samples] for k in range(samples)) if len(taken) > samples else taken
    seconds = before.build_seconds if before.passes else attempt.build_seconds
    return Visits((*before.passes, chosen), attempt.outcome.calls, seconds)


@contextlib.contextmanager
def _fresh_caches(folder: Path) -> Iterator[None]:
    """What is compiled meanwhile goes to caches of its own in the folder."""
    before = {name: os.environ.get(name) for name in _CACHES}
    os.environ.update({name: str(folder.resolve() / cache) for name, cache in _CACHES.items()})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
