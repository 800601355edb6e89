"""What `perfsuite compare` does: every kernel's best config side by side, with the fastest probe of the same bytes."""

from __future__ import annotations

import math
import os
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from perfsuite import budget, detect, places, registry, targets, units
from perfsuite.builds import Builds
from perfsuite.comparison import FLOOR, OTHER, OURS, Journal, Row
from perfsuite.kernel import Config, Kernel
from perfsuite.machine import Machine
from perfsuite.op import ITEMSIZE, Op, Workload
from perfsuite.plan import PROBES, elsewhere, refused, require_device
from perfsuite.policy import Policy
from perfsuite.racing import Racers
from perfsuite.registry import Registry
from perfsuite.results import Results
from perfsuite.roofline import Ceilings
from perfsuite.seeds import Seeds
from perfsuite.stats import BLOCK
from perfsuite.timeline import Recorder
from perfsuite.trial import Failure
from perfsuite.worker import Candidate, WorkerDied, alone

PEERS = "peers"
# How many of each role a trial heat leaves for the rounds that count: two that are close may change places. Who took so
# much longer than the fastest of its role cannot: eager gradients of 1 GiB take seconds, and took most of the run.
_FINALISTS = {FLOOR: 2, OURS: 3, OTHER: 2}
_NEAR = 1.5
# Larger tensors are not touched beside a race.
_MOST_AHEAD = 64 << 20
_VECTORS = {"copy": 2, "triad": 3}


@dataclass(frozen=True)
class Wish:
    """What is to be compared, and how.

    With `peers`, the other libraries of the folder `peers` that are installed take part. With `grid`, the shapes of
    `targets` that the patterns name are raced, in an order that may be cut anywhere, and only the best of a trial heat
    run all rounds. `seconds` ends the comparison. `out` keeps what was measured: what is there is not measured again.
    """

    patterns: tuple[str, ...]
    policy: Policy
    rounds: int
    db: str | None = None
    peers: bool = False
    grid: bool = False
    seconds: float = math.inf
    out: Path | None = None


@dataclass(frozen=True)
class Entrant:
    """A candidate, and whether it is perfsuite's own, another's, or the floor."""

    role: str
    candidate: Candidate


@dataclass
class Draw:
    """Who takes part in the race on a workload."""

    known: Registry
    machine: Machine
    policy: Policy
    seeds: Seeds
    ceilings: Ceilings
    _said: set[str] = field(default_factory=set)

    def entrants(self, workload: Workload) -> list[Entrant]:
        """Of every kernel that can run it, the best known config; where none is, the nearest shape's and the default.

        And the probes that move as many bytes, unless it is one itself.
        """
        found = [
            Entrant(OTHER if _foreign(kernel) else OURS, candidate) for kernel, candidate in self._candidates(workload)
        ]
        if self.known.ops[workload.op].family != PROBES:
            probe = self._probe(workload)
            found += [Entrant(FLOOR, candidate) for _, candidate in self._candidates(probe)]
        return found

    def slow_to_build(self, workload: Workload) -> list[Candidate]:
        """What torch.compile takes long for, to be built beside the race before; nothing whose call takes bandwidth."""
        if self.known.ops[workload.op].least_bytes(workload) > _MOST_AHEAD:
            return []
        return [c for kernel, c in self._candidates(workload) if kernel.name.startswith("inductor")]

    def level(self, workload: Workload) -> str:
        """The memory level that holds the bytes: by the knees of the measured copies, else by the reported caches."""
        size = self.known.ops[workload.op].least_bytes(workload)
        measured = self.ceilings.level(size)
        if measured is not None:
            return measured.name
        if self.policy.cache == "cold" or self.policy.device != "cpu":
            return "DRAM"
        return next((name for name in ("L1d", "L2", "L3") if size <= self.machine.cache(name)), "DRAM")

    def _candidates(self, workload: Workload) -> Iterator[tuple[Kernel, Candidate]]:
        for kernel in self.known.kernels_for(workload.op):
            refusal = elsewhere(kernel, self.policy) or refused(kernel, workload, self.machine)
            if refusal is None:
                for config in self._configs(workload, kernel):
                    yield kernel, Candidate(workload, kernel, config)
            elif kernel.family == PEERS:
                self._say(f"{kernel} is left out on {workload.op} {workload.dtype}: {refusal}")

    def _configs(self, workload: Workload, kernel: Kernel) -> tuple[Config, ...]:
        best = self.seeds.best(workload, str(kernel))
        if best is not None:
            return (best,)
        space = kernel.space(workload, self.machine)
        nearest = self.seeds.elsewhere(workload, str(kernel), space)[:1]
        return tuple(dict.fromkeys((*(known.best for known in nearest), space.configs[0])))

    def _probe(self, workload: Workload) -> Workload:
        """A copy of as many bytes, half read and half written; a triad for what reads two tensors to write one."""
        op = self.known.ops[workload.op]
        name = "triad" if _reads_twice(op) else "copy"
        elements = op.least_bytes(workload) // _VECTORS[name] // ITEMSIZE["f32"]
        return Workload(name, (("elements", elements), ("passes", 1)))

    def _say(self, what: str) -> None:
        if what not in self._said:
            self._said.add(what)
            print(f"perfsuite: {what}", file=sys.stderr)


def _reads_twice(op: Op) -> bool:
    """Whether it reads two tensors of the first input's axes for each that it writes: gradients do."""
    reads, writes = (sum(o.axes == op.inputs[0].axes for o in operands) for operands in (op.inputs, op.outputs))
    return reads == 2 * writes > 0


def _foreign(kernel: Kernel) -> bool:
    return kernel.family == PEERS or kernel.name.startswith(("eager", "inductor"))


def compare(wish: Wish) -> Journal:
    """Race what the wish names; a line on standard error for every race, and the journal of them all.

    Raises ValueError where nothing that was asked for could be raced.
    """
    start = time.monotonic()
    if wish.peers:
        # In the environment, because the worker finds its kernels itself.
        ours = str(Path(__file__).with_name(PEERS))
        os.environ["PERFSUITE_KERNELS"] = os.pathsep.join(filter(None, [os.environ.get("PERFSUITE_KERNELS"), ours]))
    machine, known = detect.machine(), registry.discover()
    require_device(wish.policy, machine)
    workloads = _workloads(known, wish)
    journal = Journal.resume(wish.out, machine, wish.policy, wish.peers)
    left = [w for w in workloads if not journal.has(str(w), known.digests)]
    draw = _draw(known, machine, wish)
    timed, free = detect.divided_cores(wish.policy.threads)
    racers, builds = Racers(timed, wish.policy.threads), Builds.beside(free, wish.policy, Recorder())
    try:
        for at, (workload, following) in enumerate(zip(left, [*left[1:], None]), start=len(workloads) - len(left) + 1):
            if time.monotonic() - start > wish.seconds:
                remain = units.several(len(workloads) - at + 1, "race")
                print(f"perfsuite: the time is up; the same command goes on with {remain}", file=sys.stderr)
                break
            builds.ahead(draw.slow_to_build(following) if following else ())
            rows = _raced(racers, draw.entrants(workload), wish, draw.level(workload))
            if rows:
                journal.add(rows)
                print(f"perfsuite: {at}/{len(workloads)} {_said(rows)}", file=sys.stderr)
    finally:
        racers.close()
        builds.close()
    if left and not journal.races:
        raise ValueError("nothing that was asked for could be raced: the lines above say why")
    return journal


def _workloads(known: Registry, wish: Wish) -> list[Workload]:
    if not wish.grid:
        return [job.workload for job in known.select(wish.patterns)]
    grid = list(targets.workloads(known.ops))
    if wish.patterns:
        grid = [w for w in grid if any(known.names(pattern, w, "") for pattern in wish.patterns)]
    if not grid:
        ops = ", ".join(targets.OPS)
        raise ValueError(f"there are no targets for {' '.join(wish.patterns)}, but for the grid of shapes of {ops}")
    return budget.spread(grid, known.ops)


def _draw(known: Registry, machine: Machine, wish: Wish) -> Draw:
    with Results.open(places.database_url(wish.db)) as results:
        trials = [t for t in results.trials(policy=wish.policy) if known.digests.get(t.kernel) == t.digest]
    here = [t for t in trials if t.machine == machine]
    ceilings = Ceilings.of(here, known.ops, wish.policy)
    return Draw(known, machine, wish.policy, Seeds(machine, trials), ceilings)


def _raced(racers: Racers, entrants: Sequence[Entrant], wish: Wish, level: str) -> list[Row]:
    """The rows of one race, fastest first; none where it ended early, which is said.

    A candidate that cannot be built or run is left out with a word.
    """
    able = []
    for entrant in entrants:
        failed = racers.workers[0].build(entrant.candidate, wish.policy)
        if failed is None:
            able.append(entrant)
        elif isinstance(failed.outcome, Failure):
            print(f"perfsuite: {entrant.candidate} is left out: {failed.outcome.reason}", file=sys.stderr)
    if all(entrant.role == FLOOR for entrant in able):
        return []
    try:
        with alone():
            if wish.grid:
                able = _finalists(able, _samples(racers, able, wish.policy, BLOCK))
            samples = _samples(racers, able, wish.policy, wish.rounds)
    except WorkerDied as died:
        print(f"perfsuite: {entrants[0].candidate.workload}: the race ended early: {died}", file=sys.stderr)
        return []
    return _rows(able, samples, level)


def _samples(racers: Racers, able: Sequence[Entrant], policy: Policy, rounds: int) -> list[Sequence[float]]:
    return [m.samples for m in racers.rounds([entrant.candidate for entrant in able], policy, rounds)]


def _finalists(able: Sequence[Entrant], samples: Sequence[Sequence[float]]) -> list[Entrant]:
    """The fastest of each role, and who is near it."""
    left = []
    for role, most in _FINALISTS.items():
        medians = sorted(
            ((statistics.median(times), entrant) for entrant, times in zip(able, samples) if entrant.role == role),
            key=lambda pair: pair[0],
        )
        left += [entrant for seconds, entrant in medians[:most] if seconds <= _NEAR * medians[0][0]]
    return left


def _rows(able: Sequence[Entrant], samples: Sequence[Sequence[float]], level: str) -> list[Row]:
    def fastest(role: str) -> Sequence[float] | None:
        of = [times for entrant, times in zip(able, samples) if entrant.role == role]
        return min(of, key=statistics.median, default=None)

    floor, other = fastest(FLOOR), fastest(OTHER)
    eager = next((s for e, s in zip(able, samples) if e.candidate.kernel.default and e.role == OTHER), None)
    workload = next(str(e.candidate.workload) for e in able if e.role != FLOOR)
    return [
        Row(
            workload,
            level,
            entrant.role,
            str(entrant.candidate.kernel),
            str(entrant.candidate.config),
            entrant.candidate.kernel.digest,
            statistics.median(times),
            *(_ratio(times, against) for against in (floor, other, eager)),
        )
        for entrant, times in sorted(zip(able, samples), key=lambda pair: statistics.median(pair[1]))
    ]


def _ratio(times: Sequence[float], against: Sequence[float] | None) -> float | None:
    """Median over the rounds of times / against."""
    return None if against is None else statistics.median(a / b for a, b in zip(times, against))


def _said(rows: Sequence[Row]) -> str:
    """`softmax[rows=1,cols=64,f32]: 1.2 us, 1.21x floor, 0.52x best other (softmax/native_resident)`."""
    best = next((row for row in rows if row.role == OURS), rows[0])
    named = {"floor": best.against_floor, "best other": best.against_other}
    ratios = [f"{ratio:.2f}x {name}" for name, ratio in named.items() if ratio is not None]
    return f"{best.workload}: {', '.join([units.seconds(best.seconds), *ratios])} ({best.kernel})"
