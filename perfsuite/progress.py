"""What `perfsuite tune` shows while it runs: a live panel on a terminal, a line per workload when piped."""

from __future__ import annotations

import math
import time
from types import TracebackType
from typing import Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from perfsuite import units
from perfsuite.events import Entered, Event, Raced, Started, Tried
from perfsuite.op import Workload
from perfsuite.trial import Failure

STAGES = {
    "probes": "the machine's ceilings",
    "survey": "the default kernels once",
    "search": "the searches, those with most to gain first",
}


class Progress(Protocol):
    """Told of every event while tuning runs."""

    def __enter__(self) -> Progress: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def show(self, event: Event) -> None: ...


def progress(console: Console, budget: float | None, *, quiet: bool = False) -> Progress:
    """The live panel on a terminal, plain lines elsewhere, nothing when quiet."""
    if quiet:
        return Silent()
    return Panel(console, budget) if console.is_terminal else Lines(console)


class Silent:
    """For `--json`: standard output carries the one object alone."""

    def __enter__(self) -> Silent:
        return self

    def __exit__(self, *_: object) -> None:
        return

    def show(self, event: Event) -> None:
        return


class Lines(Silent):
    """One line when a workload is done, one for each failed trial: readable in a log."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._last: dict[Workload, Tried] = {}

    def show(self, event: Event) -> None:
        if isinstance(event, Started):
            self._print(f"{event.jobs} workloads, at most {event.trials} trials, {len(event.refusals)} refusals")
        elif isinstance(event, Entered):
            self._print(f"{STAGES[event.stage]}: {units.several(event.workloads, 'workload')}")
        elif isinstance(event, Tried):
            self._last[event.workload] = event
            failure = describe_failure(event)
            if failure:
                self._print(failure)
        elif isinstance(event, Raced):
            self._print(f"{describe(self._last[event.workload])}{' (known)' if event.known else ''}")

    def _print(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)


class Panel:
    """Workload, trial k of n, best so far with its speed-up and share of the ceiling, time left."""

    def __init__(self, console: Console, budget: float | None) -> None:
        self._console, self._budget = console, budget
        self._live = Live(console=console, refresh_per_second=8, transient=True)
        self._start = time.monotonic()
        self._total, self._done, self._new, self._failed = 1, 0, 0, 0
        self._last: Tried | None = None
        self._tried: dict[Workload, Tried] = {}
        self._stage = ""

    def __enter__(self) -> Panel:
        self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.__exit__(kind, error, trace)

    def show(self, event: Event) -> None:
        if isinstance(event, Started):
            self._total = max(1, event.trials)
        elif isinstance(event, Entered):
            self._stage = STAGES[event.stage]
        elif isinstance(event, Tried):
            self._last = self._tried[event.workload] = event
            self._done += 1
            self._new += not event.known
            failure = describe_failure(event)
            if failure:
                self._failed += 1
                self._console.print(Text(failure, style="red"), highlight=False)
        elif isinstance(event, Raced) and not event.known:
            self._console.print(
                Text("✓ ", style="green") + Text(describe(self._tried[event.workload])), highlight=False
            )
        self._live.update(self._render())

    def _render(self) -> Group:
        head = Table.grid(padding=(0, 2))
        if self._stage:
            head.add_row("[dim]stage[/]", self._stage)
        if self._last is not None:
            now = self._last
            head.add_row("[dim]workload[/]", f"[bold]{_escaped(str(now.workload))}[/]")
            head.add_row("[dim]trying[/]", f"{_escaped(f'{now.kernel} {now.config}')} [dim]({now.at} of {now.of})[/]")
            head.add_row("[dim]best[/]", f"[bold green]{_best(now)}[/]")
        bar = Table.grid(padding=(0, 1))
        counts = f"{self._done}/{self._total} trials, {self._new} new" + f", {self._failed} failed" * bool(self._failed)
        bar.add_row(ProgressBar(self._total, min(self._done, self._total), width=36), counts, f"[dim]{self._left()}[/]")
        return Group(head, bar)

    def _left(self) -> str:
        elapsed = time.monotonic() - self._start
        # Known trials cost nothing: the pace is that of the new ones.
        pace = elapsed / self._new if self._new else 0.0
        left = pace * max(0, self._total - self._done)
        if self._budget is not None:
            left = min(left, max(0.0, self._budget - elapsed)) if self._new else max(0.0, self._budget - elapsed)
        return f"about {units.duration(left)} left" if left else ""


def describe(event: Tried) -> str:
    """One line on the best of a workload so far."""
    return f"{event.workload}: {_best(event)}, {event.of} trials"


def describe_failure(event: Tried) -> str | None:
    """One line on a trial that failed just now."""
    if event.known or not isinstance(event.outcome, Failure):
        return None
    reason = " ".join(event.outcome.reason.split())
    shown = reason if len(reason) <= 240 else reason[:237] + "..."
    return f"✗ {event.workload} {event.kernel} {event.config}: {event.outcome.kind}: {shown}"


def _best(event: Tried) -> str:
    if not math.isfinite(event.best):
        return "nothing has worked yet"
    parts = [units.seconds(event.best)]
    if math.isfinite(event.default):
        parts.append(f"{event.default / event.best:.2f}x eager")
    if event.ideal:
        parts.append(f"{100.0 * event.ideal / event.best:.0f} % of the ceiling")
    return ", ".join(parts)


def _escaped(text: str) -> str:
    return text.replace("[", "\\[")
