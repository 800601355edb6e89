"""`perfsuite lab record` for a user: what is recorded, how far it is, and what it gave."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

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
    files = {subject: folder / subject.filename for subject in chosen}
    missing = []
    for subject, path in files.items():
        if path.exists() and read(path).subject.key == subject.key:
            _say(console, f"{subject}: {path} has it; remove the file to record it again", quiet)
        else:
            missing.append(subject)
    if missing:
        try:
            _show(lab.record(missing, known.kernels, effort, folder), console, quiet)
        except KeyboardInterrupt:
            _say_stopped(folder)
            raise SystemExit(130) from None
    for subject in missing:
        _say(console, f"{subject}: {files[subject]}, {units.size(files[subject].stat().st_size)}", quiet)
    return list(files.values())


def _show(visits: lab.Recording, console: Console, quiet: bool) -> None:
    """A line for each failure while it goes on, one for each subject at the end; a bar for each on a terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    start, failed = time.monotonic(), Counter[Subject]()
    tasks: dict[Subject, TaskID] = {}
    with Progress(*columns, console=console, transient=True, disable=quiet or not console.is_terminal) as bar:
        for visited in visits:
            subject = visited.subject
            if subject not in tasks:
                tasks[subject] = bar.add_task(str(subject).replace("[", "\\["), total=None)
            bar.update(tasks[subject], completed=visited.at, total=visited.of)
            if visited.visits.failure:
                failed[subject] += 1
                _say(console, f"✗ {subject} {visited.config}: {visited.visits.failure}", quiet)
    for subject in tasks:
        _say(console, f"{subject}: {units.several(len(subject.space), 'config')}, {failed[subject]} failed", quiet)
    _say(console, f"recorded in {units.duration(time.monotonic() - start)}", quiet)


def _say(console: Console, text: str, quiet: bool) -> None:
    if not quiet:
        console.print(text, highlight=False, markup=False, soft_wrap=True)


def _say_stopped(folder: Path) -> None:
    print(f"perfsuite: stopped; what was recorded is kept in {folder}, in files that end in .part", file=sys.stderr)
    print("perfsuite: the same command goes on from there", file=sys.stderr)
