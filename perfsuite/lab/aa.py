"""A kernel against itself on live hardware: how often a race tells equals apart, and misses a planted loss."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rich.console import Console
from rich.table import Table as Grid

from perfsuite import detect, registry, units
from perfsuite.op import Workload
from perfsuite.plan import EFFORTS, Effort, refused
from perfsuite.policy import Policy
from perfsuite.race import verdict
from perfsuite.racing import Racers
from perfsuite.registry import Registry
from perfsuite.stats import Verdict
from perfsuite.worker import Candidate, alone

# (kernel, workload), from 5 us to 50 ms on a core of 2025, whose work grows with the first length.
SUBJECTS = (
    ("softmax/native_two_pass_pairs", "softmax[rows=200,cols=64,f32]"),
    ("norms/native_rows", "rms_norm[rows=512,cols=1024,f32]"),
    ("softmax/native_two_pass_online", "softmax[rows=2000,cols=1024,bf16]"),
    ("integer/native_brgemm", "int8_linear[m=5120,k=2048,n=2048,f32]"),
)
PLANTED = (0.0, 0.02, 0.03, 0.05)
BESIDE = ("none", "hog", "builds")
_SPELL = 10
# The other process works and rests for this long on average, in seconds.
_PERIOD = 0.4
_HOG = f"""
import random, time
data = bytearray(1 << 24)
while True:
    end = time.perf_counter() + random.expovariate(1 / {_PERIOD})
    while time.perf_counter() < end:
        data[:] = data[::-1]
    time.sleep(random.expovariate(1 / {_PERIOD}))
"""
# It ends with its parent, however that ends (PR_SET_PDEATHSIG).
_PINNED = """
import ctypes, os, signal
os.sched_setaffinity(0, {cores})
ctypes.CDLL(None).prctl(1, signal.SIGKILL)
"""
_BUILDS = """
import itertools, tempfile
from pathlib import Path
from perfsuite.toolchain import native
with tempfile.TemporaryDirectory() as folder:
    source = Path(folder) / "beside.cpp"
    source.write_text("#include <regex>\\nint run() { return std::regex_match(\\"a\\", std::regex(\\"a\\")) + N; }")
    for n in itertools.count():
        native.build(source, "avx2", {"N": n})
"""


@dataclass(frozen=True)
class Duel:
    """One race of a kernel against itself with `planted` more rows (0.0: an A/A race).

    `seconds` is the median time of a call, `ratio` the median over the rounds of the second's time over the first's.
    """

    kernel: str
    workload: str
    planted: float
    verdict: Verdict
    rounds: int
    seconds: float
    ratio: float
    retaken: int


def pairs(words: Sequence[str], kernel: str | None) -> tuple[tuple[str, str], ...]:
    """(kernel, workload) pairs from words in turn, by default SUBJECTS; ValueError if nothing is left."""
    if len(words) % 2:
        raise ValueError(f"{' '.join(words)}: give pairs of a kernel and a workload, such as {' '.join(SUBJECTS[0])!r}")
    given = tuple(zip(words[::2], words[1::2])) or SUBJECTS
    chosen = tuple(pair for pair in given if kernel in (None, pair[0], pair[0].partition("/")[2]))
    if not chosen:
        names = ", ".join(dict.fromkeys(name for name, _ in given))
        raise ValueError(f"--kernel {kernel} is none of {names}; name a workload for it too: KERNEL WORKLOAD")
    return chosen


def effort(rounds: int | None, seconds: float | None) -> Effort:
    """The races of `tune` by default, or shorter or longer ones."""
    usual = EFFORTS["default"]
    return replace(usual, rounds=rounds or usual.rounds, race_seconds=seconds or usual.race_seconds)


def run(
    subjects: Sequence[tuple[str, str]], races: int, effort: Effort, policy: Policy, what: str = "none"
) -> Iterator[Duel]:
    """The duels of this machine, with `what` beside them on the cores that the timed kernel leaves free."""
    with beside(what, detect.divided_cores(policy.threads)[1]):
        yield from duels(registry.discover(), subjects, races, effort, policy)


def shown(duels: Iterator[Duel], console: Console, *, quiet: bool = False) -> Iterator[Duel]:
    """The duels, with a line on each as it ends."""
    for duel in duels:
        if not quiet:
            console.print(
                f"{duel.kernel} {duel.workload} +{duel.planted:.0%}: {duel.verdict.value} after "
                f"{units.several(duel.rounds, 'round')}, {duel.ratio:.4f} x {units.seconds(duel.seconds)}",
                highlight=False,
                markup=False,
                soft_wrap=True,
            )
        yield duel


def duels(
    known: Registry, subjects: Sequence[tuple[str, str]], races: int, effort: Effort, policy: Policy
) -> Iterator[Duel]:
    """`races` races of each subject for each planted loss, in an order that mixes them all."""
    machine = detect.machine()
    jobs = []
    for name, spelled in subjects:
        kernel, workload = known.kernels[name], known.ops[Workload.parse(spelled).op].complete(Workload.parse(spelled))
        reason = refused(kernel, workload, machine)
        if reason is not None:
            raise ValueError(f"{name} cannot run {workload}: {reason}")
        config = kernel.space(workload, machine).configs[0]
        one = Candidate(workload, kernel, config)
        jobs += [(planted, one, Candidate(more(workload, planted), kernel, config)) for planted in PLANTED]
    # Spells of races of one job: making its inputs anew for each would take longer than racing.
    spells = [job for job in jobs for _ in range(-(-races // _SPELL))]
    random.Random(races).shuffle(spells)
    racers = Racers(detect.divided_cores(policy.threads)[0], policy.threads, effort.processes)
    try:
        left = dict.fromkeys(jobs, races)
        for job in spells:
            for _ in range(min(_SPELL, left[job])):
                left[job] -= 1
                with alone():
                    yield _duel(racers, *job, effort, policy)
    finally:
        racers.close()


def _duel(racers: Racers, planted: float, one: Candidate, other: Candidate, effort: Effort, policy: Policy) -> Duel:
    first, second = racers.race([one, other], policy, effort, judged=(0, 1))
    ratio = statistics.median(b / a for a, b in zip(first.samples, second.samples))
    said = verdict(second.samples, first.samples, processes=first.processes)
    retaken = len(first.disturbed) + len(second.disturbed)
    rounds = min(len(first.samples), len(second.samples))
    return Duel(str(one.kernel), str(one.workload), planted, said, rounds, first.median, ratio, retaken)


def more(workload: Workload, share: float) -> Workload:
    """The workload with `share` more rows, its first length; at least one more where any are asked for."""
    (rows, length), *others = workload.sizes
    longer = length + max(1, round(length * share)) if share else length
    return Workload(workload.op, ((rows, longer), *others), workload.dtype)


@contextlib.contextmanager
def beside(what: str, cores: Sequence[int]) -> Iterator[None]:
    """Keep the cores busy meanwhile: `hog` half of the time with memory traffic, `builds` with the compiler."""
    if what not in BESIDE:
        raise ValueError(f"--beside {what!r} is none of {', '.join(BESIDE)}")
    if what == "none":
        yield
        return
    if not cores:
        raise ValueError(f"--beside {what}: the timed kernel uses every core; leave one free with --threads")
    pin = _PINNED.format(cores=set(cores))
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "PERFSUITE_CACHE": cache}
        command = [sys.executable, "-c", pin + (_HOG if what == "hog" else _BUILDS)]
        child = subprocess.Popen(command, env=environment, start_new_session=True)
        try:
            yield
            if child.poll() is not None:
                raise RuntimeError(f"the process beside ended with exit code {child.returncode}")
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()


def summary(duels: Sequence[Duel]) -> dict[str, Any]:
    """Counts and rates over all duels and for each kernel: `false` of the A/A races, `found` by planted share."""
    by_kernel: dict[str, list[Duel]] = {}
    for duel in duels:
        by_kernel.setdefault(f"{duel.kernel} {duel.workload}", []).append(duel)
    return {
        "races": len(duels),
        **_rates(duels),
        "kernels": [
            {
                "kernel": name,
                "seconds": statistics.median(d.seconds for d in mine),
                "rounds": statistics.median(d.rounds for d in mine),
                **_rates(mine),
            }
            for name, mine in sorted(by_kernel.items(), key=lambda item: item[1][0].seconds)
        ],
    }


def _rates(duels: Sequence[Duel]) -> dict[str, Any]:
    said = {planted: Counter(d.verdict for d in duels if d.planted == planted) for planted in PLANTED}
    equals = said[0.0]
    wrong = equals[Verdict.FASTER] + equals[Verdict.SLOWER]
    return {
        "aa": equals.total(),
        "false": wrong,
        "ties": equals[Verdict.TIE],
        "found": {
            f"{planted:.0%}": {
                "races": counts.total(),
                "slower": counts[Verdict.SLOWER],
                "faster": counts[Verdict.FASTER],
            }
            for planted, counts in said.items()
            if planted
        },
    }


def show(rates: dict[str, Any], console: Console) -> None:
    """Print a line per kernel and one of all."""
    planted = list(rates["found"])
    grid = Grid(box=None, header_style="dim", padding=(0, 2, 0, 0))
    for column in (
        "kernel against itself",
        "time",
        "rounds",
        "A/A races",
        "false",
        "ties",
        *(f"+{p} found" for p in planted),
    ):
        grid.add_column(column, justify="left" if column.startswith("kernel") else "right", overflow="fold")
    for row in [*rates["kernels"], {"kernel": "all", **rates}]:
        times = (units.seconds(row["seconds"]), f"{row['rounds']:.0f}") if "seconds" in row else ("", "")
        found = (f"{row['found'][p]['slower']}/{row['found'][p]['races']}" for p in planted)
        words = (row["kernel"], *times, str(row["aa"]), str(row["false"]), str(row["ties"]), *found)
        grid.add_row(*(word.replace("[", "\\[") for word in words))
    console.print(grid)
