"""`perfsuite lab record` for a user: what is recorded, how far it is, and what it gave."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from perfsuite import detect, places, registry, units
from perfsuite.lab import record as lab
from perfsuite.lab.table import Subject, read
from perfsuite.policy import Policy


def record(
    patterns: Sequence[str], policy: Policy, effort: lab.Effort, out: Path | None, console: Console, *, quiet: bool
) -> list[Path]:
    """Record a table for each kernel and workload of the patterns; the files, those that were there before too.

    Ctrl-C keeps what is recorded and says how to go on.
    """
    known, folder = registry.discover(), out or places.lab()
    chosen = lab.subjects(known, patterns, detect.machine(), policy)
    written = []
    for subject in chosen:
        path = folder / subject.filename
        if path.exists() and read(path).subject.key == subject.key:
            _say(console, f"{subject}: {path} has it; remove the file to record it again", quiet)
        else:
            try:
                _one(subject, lab.record(subject, known.kernels[subject.kernel], effort, folder), console, quiet)
            except KeyboardInterrupt:
                _say_stopped(path)
                raise SystemExit(130) from None
            _say(console, f"{subject}: {path}, {units.size(path.stat().st_size)}", quiet)
        written.append(path)
    return written


def _one(subject: Subject, steps: lab.Recording, console: Console, quiet: bool) -> None:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    start, failed = time.monotonic(), 0
    with Progress(*columns, console=console, transient=True, disable=quiet or not console.is_terminal) as bar:
        task = bar.add_task(str(subject).replace("[", "\\["), total=None)
        for step in steps:
            bar.update(task, completed=step.at, total=step.of)
            if step.failure:
                failed += 1
                _say(console, f"✗ {step.subject} {step.config}: {step.failure}", quiet)
    count = units.several(len(subject.space), "config")
    _say(console, f"{subject}: {count}, {failed} failed, in {units.duration(time.monotonic() - start)}", quiet)


def _say(console: Console, text: str, quiet: bool) -> None:
    if not quiet:
        console.print(text, highlight=False, markup=False, soft_wrap=True)


def _say_stopped(path: Path) -> None:
    print(f"perfsuite: stopped; what was recorded is kept in {path}.part", file=sys.stderr)
    print("perfsuite: the same command goes on from there", file=sys.stderr)
