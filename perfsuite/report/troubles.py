"""What went wrong or was left out, grouped so that it can be read: failures, refusals, warnings, stale results."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

from perfsuite import units
from perfsuite.report.evidence import Evidence
from perfsuite.report.section import Cell, Grid, Section, cells
from perfsuite.trial import REMEDIES, Disturbance, FailureKind

_PRUNED = FailureKind.PRUNED
_NUMBER = re.compile(r"0x[0-9a-f]+|-?\d+(?:\.\d+)?(?:e[+-]?\d+)?")


@dataclass(frozen=True)
class Failures:
    """Failed trials of one kernel with reasons that differ in numbers only; `reason` is the first one in full."""

    kernel: str
    kind: FailureKind
    count: int
    example: str
    reason: str

    @property
    def headline(self) -> str:
        """The first line of the reason that says something."""
        return next((line.strip() for line in self.reason.splitlines() if line.strip()), "no reason given")


@dataclass(frozen=True)
class Refusals:
    """Workloads (or ops) that one kernel refuses for one reason."""

    kernel: str
    reason: str
    wanted: tuple[str, ...]


@dataclass(frozen=True)
class Warned:
    """Timed trials with one kind of disturbance, how many winners are among them, and what to do about it."""

    disturbance: Disturbance
    trials: int
    winners: int
    remedy: str


@dataclass(frozen=True)
class Stale:
    """Trials of one kernel as it was before its code changed; `gone`: there is no such kernel today."""

    kernel: str
    trials: int
    winners: int
    gone: bool


def failures(evidence: Evidence) -> tuple[Failures, ...]:
    """The most frequent first."""
    groups: dict[tuple[str, FailureKind, str], list[tuple[str, str]]] = {}
    for trial in evidence.failed:
        if trial.failure is not None:
            key = (trial.kernel, trial.failure.kind, _NUMBER.sub("#", trial.failure.reason))
            groups.setdefault(key, []).append((f"{trial.workload} {trial.config}", trial.failure.reason))
    found = [Failures(kernel, kind, len(all_), *all_[0]) for (kernel, kind, _), all_ in groups.items()]
    return tuple(sorted(found, key=lambda f: (-f.count, f.kernel, f.headline)))


def refusals(evidence: Evidence) -> tuple[Refusals, ...]:
    groups: dict[tuple[str, str], list[str]] = {}
    for wanted, kernel, reason in evidence.refusals:
        groups.setdefault((kernel, reason), []).append(wanted)
    return tuple(Refusals(kernel, reason, tuple(dict.fromkeys(all_))) for (kernel, reason), all_ in groups.items())


def warnings(evidence: Evidence) -> tuple[Warned, ...]:
    seen = Counter(w for t in evidence.used if t.measurement is not None for w in set(t.measurement.warnings))
    winning = Counter(
        warning
        for entry in evidence.entries
        for warning in {
            w
            for trial in (evidence.raced.get(i) for i in entry.trials)
            if trial is not None and trial.measurement is not None
            if (trial.kernel, trial.config) == (entry.kernel, entry.config)
            for w in trial.measurement.warnings
        }
    )
    return tuple(Warned(kind, count, winning[kind], REMEDIES[kind]) for kind, count in seen.most_common())


def stale(evidence: Evidence) -> tuple[Stale, ...]:
    trials = Counter(trial.kernel for trial in evidence.stale)
    won = Counter(entry.kernel for entry in evidence.outdated)
    return tuple(
        Stale(kernel, trials[kernel], won[kernel], kernel not in evidence.digests) for kernel in sorted({*trials, *won})
    )


def failed(evidence: Evidence) -> Section:
    found = failures(evidence)
    title = "Failures"
    if not found:
        return Section("failures", title, ("No trial failed.",) if evidence.used else ("Nothing was tried.",))
    total = sum(f.count for f in found)
    columns = ("Kernel", "code"), ("Kind", "text"), ("Trials", "number"), ("Reason", "text"), ("For example", "code")
    rows = [
        cells(
            f.kernel,
            f.kind,
            f"{f.count:,}",
            Cell(f.headline, folded=f.reason if f.reason != f.headline else ""),
            f.example,
        )
        for f in found
    ]
    words = f"{units.several(total, 'trial')} gave no time; a kernel that answers wrongly is never timed."
    return Section("failures", title, (words,), (), (Grid(columns, tuple(rows)),))


def refused(evidence: Evidence) -> Section | None:
    found = refusals(evidence)
    if not found:
        return None
    columns = ("Kernel", "code"), ("Reason", "text"), ("Workloads", "number")
    rows = [cells(r.kernel, r.reason, Cell(str(len(r.wanted)), folded="\n".join(r.wanted))) for r in found]
    words = "Kernels that said beforehand why they cannot run."
    return Section("refusals", "Refusals", (words,), (), (Grid(columns, tuple(rows)),))


def pruned(evidence: Evidence) -> Section | None:
    """How many configs were never run because the machine could not hold them, by an estimate or once compiled."""
    compiled = [(t.kernel, t.failure.reason) for t in evidence.used if t.failure and t.failure.kind == _PRUNED]
    groups: dict[tuple[str, str, str], list[str]] = {}
    for when, found in (("estimated", evidence.pruned), ("compiled", compiled)):
        for kernel, reason in found:
            groups.setdefault((kernel, when, _NUMBER.sub("#", reason)), []).append(reason)
    if not groups:
        return None
    columns = ("Kernel", "code"), ("Configs", "number"), ("As", "word"), ("Reason of the first", "text")
    rows = [cells(kernel, f"{len(all_):,}", when, all_[0]) for (kernel, when, _), all_ in groups.items()]
    words = (
        f"{units.several(len(evidence.pruned), 'config')} of the tuned workloads' spaces were left out because the "
        f"machine could not hold them, and {units.several(len(compiled), 'config')} because their compiled code spills "
        "registers or exceeds what a multiprocessor has. None of them was run."
    )
    return Section("pruned", "Pruned configurations", (words,), (), (Grid(columns, tuple(rows)),))


def disturbed(evidence: Evidence) -> Section:
    found = warnings(evidence)
    timed = sum(trial.measurement is not None for trial in evidence.used)
    columns = ("Disturbance", "code"), ("Timed trials", "number"), ("Winners", "number"), ("Remedy", "text")
    rows = [
        cells(str(w.disturbance), Cell(f"{w.trials:,}", units.percent(w.trials / timed)), str(w.winners), w.remedy)
        for w in found
    ]
    words = [f"Not controlled: {sentence}" for sentence in evidence.uncontrolled]
    if not found:
        words.insert(0, "No timed trial was disturbed." if timed else "Nothing was timed.")
    return Section(
        "disturbances", "What disturbed the times", tuple(words), (), (Grid(columns, tuple(rows)),) if rows else ()
    )


def left_out(evidence: Evidence) -> Section | None:
    found = stale(evidence)
    words = []
    if evidence.elsewhere:
        words.append(
            f"{units.several(evidence.elsewhere, 'trial')} of other machines, environments or policies: times of "
            "different ones do not compare. Probes count under every warm policy with the same threads."
        )
    if found:
        words.append("Trials of code that has changed since are not used; `perfsuite tune` measures the code of today.")
    if not words:
        return None
    columns = ("Kernel", "code"), ("Trials", "number"), ("Former winners", "number"), ("Today", "text")
    rows = [
        cells(s.kernel, f"{s.trials:,}", str(s.winners), "there is no such kernel" if s.gone else "its code differs")
        for s in found
    ]
    return Section("stale", "Left out", tuple(words), (), (Grid(columns, tuple(rows)),) if rows else ())
