"""One command's worth of work for a user: open what is needed, do it, say what comes next."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table as Grid

from perfsuite import bundle, detect, leaderboard, places, registry, search, units
from perfsuite.events import Finished
from perfsuite.machine import Machine
from perfsuite.plan import EFFORTS, Plan
from perfsuite.policy import Policy
from perfsuite.progress import progress
from perfsuite.results import Results
from perfsuite.table import Entry, Table
from perfsuite.timeline import Recorder, Timeline
from perfsuite.tune import tune as tuned
from perfsuite.winners import decide


@dataclass(frozen=True)
class Wish:
    """What the user asked `tune` for, word for word."""

    patterns: tuple[str, ...] = ()
    effort: str = "default"
    budget: str | None = None
    threads: int = 1
    strategy: str | None = None
    policy: str = ""
    db: str | None = None
    ceilings: bool = True

    def plan(self, machine: Machine, known: registry.Registry) -> Plan:
        effort = EFFORTS[self.effort]
        # What is named is searched whole; an effort's own budget is for everything.
        usual = None if self.patterns else effort.budget
        budget = units.parse_duration(self.budget) if self.budget else usual
        policy = Policy.parse(self.policy, self.threads)
        jobs = known.select(self.patterns)
        strategy = self.strategy or search.DEFAULT
        return Plan(machine, known, jobs, policy, effort, strategy, budget, self.ceilings)


def tune(wish: Wish, console: Console, *, quiet: bool = False) -> dict[str, Any]:
    """Tune, write the table, and return the summary; Ctrl-C keeps everything and says how to go on."""
    recorder = Recorder()
    machine, known = detect.machine(), registry.discover()
    plan = wish.plan(machine, known)
    url = places.database_url(wish.db)
    for problem in known.problems:
        print(f"perfsuite: {problem.path} is left out: {problem.reason}", file=sys.stderr)
    finished: Finished | None = None
    with Results.open(url) as results:
        events = tuned(plan, results, recorder)
        try:
            with progress(console, plan.budget, quiet=quiet) as shown:
                for event in events:
                    shown.show(event)
                    finished = event if isinstance(event, Finished) else None
        except KeyboardInterrupt:
            events.close()
            _write_timeline(recorder, plan, url)
            _write_table(results, machine, known, url)
            print(f"perfsuite: stopped; everything measured is kept in {_shown(url)}.", file=sys.stderr)
            print(f"perfsuite: the same command goes on from there: {_command()}", file=sys.stderr)
            raise SystemExit(130) from None
        _write_timeline(recorder, plan, url)
        table = _write_table(results, machine, known, url)
    assert finished is not None
    if not quiet:
        _say(finished, len(table.entries), url, console)
    summary = {**asdict(finished), "complete": finished.complete}
    return {**summary, "database": _shown(url), "table": str(places.table_path(machine, url))}


def _say(finished: Finished, winners: int, url: str, console: Console) -> None:
    option = "" if url == places.database_url() else f" --db {_shown(url)}"
    lines = [
        f"{units.several(finished.trials_new, 'new trial')}, {finished.trials_known} known, {finished.failed} failed, "
        f"{units.several(finished.races, 'race')} in {units.duration(finished.seconds)}; "
        f"{units.several(winners, 'winner')} known.",
    ]
    if finished.trials_new:
        lines.append(spending(finished))
    if not finished.complete:
        lines.append(f"The budget ended before the search did; the same command goes on: {_command()}")
    lines.append(f"Next: perfsuite best{option}, perfsuite report{option}")
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def spending(finished: Finished) -> str:
    """Where the time went, and what it was enough for."""
    budget = "No budget" if finished.budget is None else f"{units.duration(finished.budget)} budget"
    said = {"probes": "ceilings", "survey": "survey", "search": "search", "race": "races"}
    said |= {"wait": "waiting for builds", "turn": "waiting for another process"}
    parts = [f"{word} {units.duration(s)}" for what, word in said.items() if (s := finished.spent[what]) >= 0.5]
    built = f"builds beside these {units.duration(finished.spent['build'])}"
    done = finished.searched + finished.shortened
    whole = done + finished.left
    counts = [f"{done} of {units.several(whole, 'workload')} searched"]
    counts += [f"{finished.shortened} of them in part"] * bool(finished.shortened)
    counts += [f"{finished.left} left"] * bool(finished.left)
    counts += [f"{units.several(finished.probes_left, 'ceiling')} left"] * bool(finished.probes_left)
    parts.append(f"the rest {units.duration(finished.spent['rest'])}")
    return f"{budget}: {', '.join(parts)}; {built}; {', '.join(counts)}."


def _command() -> str:
    return " ".join(["perfsuite", *(f"'{word}'" if "[" in word else word for word in sys.argv[1:])])


def _shown(url: str) -> str:
    return url.removeprefix("sqlite:///")


def _write_timeline(recorder: Recorder, plan: Plan, url: str) -> None:
    """Keep how the time was spent; a run that found everything known leaves the last one that worked."""
    if recorder.spans:
        recorder.timeline(plan.policy, plan.budget).save(places.timeline_path(plan.machine, url))


def _timeline(machine: Machine, url: str) -> Timeline | None:
    path = places.timeline_path(machine, url)
    return Timeline.load(path) if path.exists() else None


def _write_table(results: Results, machine: Machine, known: registry.Registry, url: str) -> Table:
    table = decide(machine, results.trials(machine, stage="race"), known.digests, known.defaults)
    table.save(places.table_path(machine, url))
    return table


def best(pattern: str | None, db: str | None) -> tuple[Entry, ...]:
    """The winners of the workloads that the pattern names, as the database knows them now."""
    machine, known = detect.machine(), registry.discover()
    with Results.open(places.database_url(db)) as results:
        table = decide(machine, results.trials(machine, stage="race"), known.digests, known.defaults)
    if pattern is None:
        return table.entries
    return tuple(e for e in table.entries if known.names(pattern, e.workload, e.kernel))


def show_best(entries: Sequence[Entry], console: Console) -> None:
    if not entries:
        console.print("No winners are known for this: run `perfsuite tune` on it first.", highlight=False)
        return
    grid = Grid(box=None, header_style="dim", padding=(0, 2, 0, 0))
    for column in ("workload", "kernel", "config", "time", "against eager", "ties"):
        grid.add_column(column, overflow="fold", justify="right" if column in ("time", "ties") else "left")
    for e in entries:
        words = (str(e.workload), e.kernel, str(e.config), units.seconds(e.seconds), e.verdict.value, str(len(e.ties)))
        grid.add_row(*(word.replace("[", "\\[") for word in words))
    console.print(grid)


def report(out: Path | None, words: str, threads: int, db: str | None) -> Path:
    """Write the report of this machine under one policy; the path of its index.html."""
    from perfsuite import doctor
    from perfsuite import report as pages
    from perfsuite.plan import elsewhere, refused

    machine, known = detect.machine(), registry.discover()
    policy = Policy.parse(words, threads)
    url = places.database_url(db)
    with Results.open(url) as results:
        trials = results.trials(machine)
    table = decide(machine, trials, known.digests, known.defaults)
    tuned_workloads = {t.workload for t in trials if t.policy == policy}
    refusals = [
        (str(workload), str(kernel), reason)
        for workload in sorted(tuned_workloads, key=str)
        for kernel in (known.kernels_for(workload.op) if workload.op in known.ops else ())
        if (reason := refused(kernel, workload, machine)) is not None
    ]
    fit = [
        (workload, kernel)
        for workload in tuned_workloads
        for kernel in (known.kernels_for(workload.op) if workload.op in known.ops else ())
        if elsewhere(kernel, policy) is None and refused(kernel, workload, machine) is None
    ]
    pruned = [(str(kernel), reason) for workload, kernel in fit for _, reason in kernel.space(workload, machine).pruned]
    evidence = pages.Evidence(
        machine=machine,
        policy=policy,
        trials=trials,
        table=table,
        ops=known.ops,
        digests=known.digests,
        refusals=refusals,
        pruned=pruned,
        defaults=known.defaults,
        uncontrolled=doctor.uncontrolled(machine),
        searches=leaderboard.load(places.score_path()),
        timeline=_timeline(machine, url),
    )
    return pages.write(evidence, out or places.folder(machine, url) / "report")


def export(path: Path, db: str | None, *, here: bool) -> int:
    """Write a bundle; with `here`, of this machine's trials whose code is today's."""
    with Results.open(places.database_url(db)) as results:
        if not here:
            return bundle.write(path, results.trials())
        digests = registry.discover().digests
        return bundle.write(path, (t for t in results.trials(detect.machine()) if digests.get(t.kernel) == t.digest))


def import_(path: Path, db: str | None) -> tuple[int, int]:
    """Add a bundle's trials in one transaction; (new ones, known ones)."""
    trials = list(bundle.read(path))
    with Results.open(places.database_url(db)) as results:
        new = results.add(*trials)
    return new, len(trials) - new
