"""Records complete spaces: several passes over every config, each in a fresh process and in an order of its own.

Further passes over the configs near the best tell who these are. The finalists of a race then run rounds side by side,
which make sure of the truth about them: on a shared machine visits that are minutes apart differ by 20 % and more,
neighbours in a round do not. So the noise in a table is that of a machine over time and processes, not of one visit.
"""

from __future__ import annotations

import contextlib
import math
import os
import random
import shutil
import statistics
import time
import uuid
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from perfsuite import detect
from perfsuite.kernel import Config, Kernel
from perfsuite.lab.table import FEWEST_PASSES, LabTable, Raced, Subject, TableError, Visits, read
from perfsuite.machine import Machine
from perfsuite.plan import EFFORTS, elsewhere, refused
from perfsuite.policy import Policy
from perfsuite.registry import Job, Registry
from perfsuite.trial import Failure
from perfsuite.worker import Attempt, Candidate, Heat, Worker, WorkerDied, alone

# A space of fewer configs is tried whole by any strategy, and tells none from another.
FEWEST_CONFIGS = 60
# What has not been recorded to the end lies beside the table: its samples, and what was compiled for it.
_PART, _BUILDS = ".part", ".builds"
# Compilers' caches. A table records what a build costs, which a warm cache hides.
_CACHES = {"PERFSUITE_CACHE": "native", "TORCHINDUCTOR_CACHE_DIR": "inductor", "TRITON_CACHE_DIR": "triton"}
_LONGEST_REASON = 200


# A config within this factor of the best may be the best in truth, and the further passes are for it.
_NEAR = 1.25
# So many of the best run rounds side by side; the others would soon leave any race.
_RACED = 24


@dataclass(frozen=True)
class Effort:
    """How much to record: passes over the space, samples of every config in each, seconds of timing in each visit.

    `near` further passes go over the configs near the best alone. The best of all then run `rounds` side by side in
    each of so many `processes`: the truth about these decides who is a false winner.
    """

    passes: int = 8
    samples: int = 32
    seconds: float = EFFORTS["default"].seconds
    near: int = 8
    processes: int = 20
    rounds: int = 80

    def __post_init__(self) -> None:
        if self.passes < FEWEST_PASSES:
            raise ValueError(
                f"--passes {self.passes}: one half of the passes is the truth for the other; give 2 or more"
            )


@dataclass(frozen=True)
class Step:
    """One more visit or process with rounds, the `at`-th `of` those that the table needs so far as is known.

    `failure` says why the config of a visit does not work.
    """

    subject: Subject
    at: int
    of: int
    config: Config | None = None
    failure: str = ""


Recording = Generator[Step, None, None]


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


def record(subject: Subject, kernel: Kernel, effort: Effort, folder: Path) -> Recording:
    """Record the table of the subject, whose kernel is given, into the folder; goes on where a recording stopped.

    Stopped between two steps, it keeps all of them in a file whose name ends in .part. ValueError if nothing works.
    """
    path = folder / subject.filename
    part, builds = (path.with_name(path.name + ending) for ending in (_PART, _BUILDS))
    draft = _Draft.begun(subject, part)
    try:
        with _fresh_caches(builds):
            for number in range(effort.passes + effort.near):
                yield from draft.record(kernel, number, effort)
                draft.table().save(part)
            for number in range(effort.processes):
                yield from draft.race(kernel, number, effort)
                draft.table().save(part)
    except (KeyboardInterrupt, GeneratorExit):
        draft.table().save(part)
        raise
    table = draft.table()
    part.unlink()
    shutil.rmtree(builds, ignore_errors=True)
    if not table.passes:
        raise ValueError(f"{subject}: no config works; the first one: {table.visits[0].failure}")
    table.save(path)


@dataclass
class _Draft:
    """A table that is being recorded."""

    subject: Subject
    visits: list[Visits]
    created: float
    raced: Raced = field(default_factory=Raced)

    @classmethod
    def begun(cls, subject: Subject, part: Path) -> _Draft:
        """What an earlier recording left of this very subject, else nothing yet."""
        with contextlib.suppress(TableError):
            left = read(part)
            if left.subject.key == subject.key:
                return cls(subject, list(left.visits), left.created, left.raced)
        return cls(subject, [Visits()] * len(subject.space), time.time())

    def table(self) -> LabTable:
        return LabTable(self.subject, tuple(self.visits), self.created, self.raced)

    def record(self, kernel: Kernel, number: int, effort: Effort) -> Recording:
        """Visit every config that belongs to this pass and has not been in it, in the pass's own order and process."""
        wanted = self._wanted(effort)
        order = [at for at, count in enumerate(wanted) if len(self.visits[at].passes) == number < count]
        random.Random(f"{self.subject} {number}").shuffle(order)
        policy = self.subject.policy
        with _worker(policy) as worker:
            for at in order:
                candidate = self._candidate(kernel, at)
                with alone():
                    attempt = worker.measure(candidate, policy, effort.seconds)
                self.visits[at] = _with(self.visits[at], attempt, effort.samples)
                done = sum(len(v.passes) for v in self.visits)
                needed = sum(wanted) + effort.processes
                yield Step(self.subject, done, needed, candidate.config, self.visits[at].failure)

    def race(self, kernel: Kernel, number: int, effort: Effort) -> Recording:
        """Rounds that the best configs run side by side in a process of its own; nothing where one config is left."""
        entrants = self.raced.entrants or self._finalists()
        if len(self.raced.processes) > number or len(entrants) < 2:
            return
        policy = self.subject.policy
        heat = Heat(uuid.uuid4().hex, tuple(self._candidate(kernel, at) for at in entrants), policy)
        with _worker(policy) as worker, alone():
            try:
                block = worker.race(heat, range(len(entrants)), effort.rounds, number)
            except WorkerDied as died:
                raise ValueError(f"{self.subject}: the race of its best configs ended early: {died}") from died
        held = tuple(tuple(one.sample for one in taken) for taken in block.taken)
        self.raced = Raced(entrants, (*self.raced.processes, held))
        done = sum(len(v.passes) for v in self.visits)
        yield Step(self.subject, done + number + 1, done + effort.processes)

    def _candidate(self, kernel: Kernel, at: int) -> Candidate:
        return Candidate(self.subject.workload, kernel, self.subject.space.configs[at])

    def _finalists(self) -> tuple[int, ...]:
        """The fastest in all passes."""
        working = [at for at, v in enumerate(self.visits) if not v.failure]
        medians = {at: _best(self.visits[at], len(self.visits[at].passes)) for at in working}
        return tuple(sorted(working, key=medians.__getitem__)[:_RACED])

    def _wanted(self, effort: Effort) -> list[int]:
        """The passes that each config is to be in; none, once it has failed."""
        bests = [_best(v, effort.passes) for v in self.visits]
        near = _NEAR * min(bests)
        whole = all(v.failure or len(v.passes) >= effort.passes for v in self.visits)
        return [
            0 if v.failure else effort.passes + effort.near * (whole and best <= near)
            for v, best in zip(self.visits, bests)
        ]


@contextlib.contextmanager
def _worker(policy: Policy) -> Iterator[Worker]:
    """A fresh process where `tune` measures."""
    worker = Worker(detect.divided_cores(policy.threads)[0], policy.threads)
    try:
        yield worker
    finally:
        worker.close()


def _best(visits: Visits, passes: int) -> float:
    """Median seconds of the first passes; infinite where there are none."""
    return statistics.median(chain.from_iterable(visits.passes[:passes])) if visits.passes else math.inf


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
