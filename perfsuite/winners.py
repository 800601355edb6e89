"""The winner as a query: from the trials of the races to a table, the same for the same trials wherever it is asked."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from perfsuite.kernel import Config
from perfsuite.machine import Machine
from perfsuite.op import Workload
from perfsuite.policy import Policy
from perfsuite.race import level, verdict
from perfsuite.stats import Verdict
from perfsuite.table import Entry, Table
from perfsuite.trial import Trial


def decide(machine: Machine, trials: Iterable[Trial], digests: Mapping[str, str], defaults: frozenset[str]) -> Table:
    """The table of the newest complete race of each workload and policy.

    A race in which any kernel's code is not today's (`digests`) is stale and not used. `defaults` are the baselines.
    """
    races: dict[tuple[Workload, Policy], dict[str, list[Trial]]] = defaultdict(lambda: defaultdict(list))
    for trial in trials:
        if trial.stage == "race" and trial.machine == machine and trial.measurement is not None:
            races[trial.workload, trial.policy][trial.race].append(trial)
    entries = []
    for _, by_id in sorted(races.items(), key=lambda item: (str(item[0][0]), str(item[0][1]))):
        fresh = [run for run in by_id.values() if all(digests.get(t.kernel) == t.digest for t in run)]
        if fresh:
            newest = max(fresh, key=lambda run: (max(t.created for t in run), run[0].race))
            entries.append(_entry(newest, defaults))
    return Table(machine, tuple(entries))


def _entry(race: Sequence[Trial], defaults: frozenset[str]) -> Entry:
    """The winner: the first, in the order of preference, of the fastest and those that tie with it.

    The default comes first, then fewer resources, then names: a tuned kernel replaces the default only if FASTER.
    """
    ordered = sorted(race, key=lambda t: (t.kernel not in defaults, _resources(t.config), t.kernel, str(t.config)))
    # Who left the race before its end was slower than the leader, which is what its few samples stand for.
    rounds = max(len(_samples(t)) for t in ordered)
    stayed = [t for t in ordered if len(_samples(t)) == rounds]
    fastest = min(stayed, key=lambda t: level(_samples(t)))
    baseline = next((t for t in ordered if t.kernel in defaults), None)
    tied = [t for t in stayed if t is fastest or _against(t, fastest) is Verdict.TIE]
    winner, said = tied[0], Verdict.DEFAULT
    if baseline is not None and winner is not baseline:
        said = _against(winner, baseline) if baseline in stayed else Verdict.FASTER
        if said is not Verdict.FASTER:
            winner, said = baseline, Verdict.DEFAULT
    return Entry(
        winner.workload,
        winner.policy,
        winner.kernel,
        winner.config,
        winner.digest,
        winner.seconds,
        said,
        tuple((t.kernel, t.config) for t in tied if t is not winner),
        tuple(t.id for t in ordered),
    )


def _resources(config: Config) -> tuple[int, float]:
    """How much a config asks for: how many things are tuned, and the sum of the numbers (unrolling, warps, blocks)."""
    numbers = [value for _, value in config.values if isinstance(value, (int, float)) and not isinstance(value, bool)]
    return len(config.values), float(sum(numbers))


def _samples(trial: Trial) -> tuple[float, ...]:
    return trial.measurement.samples if trial.measurement else ()


def _against(trial: Trial, other: Trial) -> Verdict:
    processes = trial.measurement.processes if trial.measurement else 1
    return verdict(_samples(trial), _samples(other), processes=processes)
