"""A long-lived child process that builds, checks and times kernels, so that a crash or a hang is only a failed trial.

The parent's end is `Worker`; `python -m perfsuite.worker` is the child, which `bench` implements.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import platformdirs

from perfsuite.kernel import Config, Kernel
from perfsuite.op import Workload
from perfsuite.policy import Policy
from perfsuite.trial import Disturbance, Failure, FailureKind, Measurement, outcome_from_json

# Seconds that each stage may take before the child is killed; $PERFSUITE_LIMIT_CHECK and the like change them. The
# first torch.compile of a process needs 20 s.
LIMITS = {"start": 120.0, "build": 180.0, "check": 60.0, "measure": 60.0}
_SAID = {"start": "starting", "build": "building", "check": "its first call", "measure": "timing"}
_TAIL = 600


@dataclass(frozen=True)
class Candidate:
    """What a worker is asked to run: a kernel with a config on a workload."""

    workload: Workload
    kernel: Kernel
    config: Config

    def __str__(self) -> str:
        return f"{self.workload} {self.kernel} {self.config}"

    def to_json(self) -> dict[str, Any]:
        return {"workload": self.workload.to_json(), "kernel": str(self.kernel), "config": self.config.to_json()}


@dataclass(frozen=True)
class Attempt:
    """What came of a request: the outcome, and the seconds that building took."""

    outcome: Measurement | Failure
    build_seconds: float = 0.0


@dataclass(frozen=True)
class Heat:
    """Who races, and under which policy; the id tells a worker that it has them built already."""

    id: str
    candidates: tuple[Candidate, ...]
    policy: Policy

    def to_json(self) -> dict[str, Any]:
        candidates = [candidate.to_json() for candidate in self.candidates]
        return {"race": self.id, "candidates": candidates, "policy": self.policy.to_json()}


@dataclass(frozen=True)
class Taken:
    """One sample of a race in seconds, those that were taken again before it, and what disturbed them."""

    sample: float
    again: tuple[float, ...] = ()
    marks: tuple[Disturbance, ...] = ()


@dataclass(frozen=True)
class Block:
    """For each active candidate what it did in each round, and how long it all took, building apart."""

    taken: tuple[tuple[Taken, ...], ...]
    seconds: float


class WorkerDied(Exception):
    """The child ended or was killed; carries the failure that this is."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.reason)
        self.failure = failure


def limits() -> dict[str, float]:
    """LIMITS as the environment changes them."""
    return {stage: float(os.environ.get(f"PERFSUITE_LIMIT_{stage.upper()}", limit)) for stage, limit in LIMITS.items()}


@dataclass
class Worker:
    """The parent's end. A dead child is replaced at the next request.

    `cores` are where it runs; `cache_bytes` is the last-level cache that a cold policy must outrun.
    """

    cores: Sequence[int]
    threads: int = 1
    limits: Mapping[str, float] = field(default_factory=limits)
    cache_bytes: int = 64 << 20
    _child: subprocess.Popen[bytes] | None = None
    _errors: IO[bytes] | None = None
    _read: bytes = b""

    def build(self, candidate: Candidate, policy: Policy, longest: float = 1e9) -> Attempt | None:
        """Build, to fill the compilers' caches; None when it went well and a call takes no more than `longest` s."""
        request = {"do": "build", **candidate.to_json(), "policy": policy.to_json()}
        try:
            answer = self._ask({**request, "longest": longest})
        except WorkerDied as died:
            return Attempt(died.failure)
        return _attempt(answer) if "outcome" in answer else None

    def measure(self, candidate: Candidate, policy: Policy, seconds: float, least: float = 0.0) -> Attempt:
        """Build, check, time for about `seconds`, check again; a time below `least` is refused as implausible."""
        request = {"do": "measure", **candidate.to_json(), "policy": policy.to_json()}
        try:
            return _attempt(self._ask({**request, "seconds": seconds, "least": least}))
        except WorkerDied as died:
            return Attempt(died.failure)

    def race(self, heat: Heat, active: Sequence[int], rounds: int, seed: int) -> Block:
        """Interleaved rounds in random order among the active candidates. Raises WorkerDied."""
        answer = self._ask({"do": "race", **heat.to_json(), "active": list(active), "rounds": rounds, "seed": seed})
        if "outcome" in answer:
            raise WorkerDied(_failed(answer["outcome"]))
        rows = [
            tuple(Taken(float(sample), tuple(again), tuple(map(Disturbance, marks))) for sample, again, marks in row)
            for row in answer["taken"]
        ]
        return Block(tuple(rows), float(answer["seconds"]))

    def close(self) -> None:
        """Kill the child at once; it holds nothing that could be lost."""
        if self._child is not None:
            self._child.kill()
            self._child.wait()
            for pipe in (self._child.stdin, self._child.stdout, self._errors):
                if pipe is not None:
                    pipe.close()
        self._child = None

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        child = self._started()
        assert child.stdin is not None
        try:
            child.stdin.write(json.dumps({**request, "cache_bytes": self.cache_bytes}).encode() + b"\n")
            child.stdin.flush()
        except BrokenPipeError:
            raise WorkerDied(self._crash("start")) from None
        return self._answer(child, "build")

    def _answer(self, child: subprocess.Popen[bytes], stage: str) -> dict[str, Any]:
        """The child's answer; each line that only names a stage starts that stage's clock."""
        deadline = time.monotonic() + self.limits[stage]
        while True:
            line = self._line(child, deadline)
            if line is None:
                self.close()
                limit = self.limits[stage]
                reason = f"{_SAID[stage]} did not end within {limit:g} s: the kernel hangs or is far too slow"
                raise WorkerDied(Failure(FailureKind.TIMEOUT, reason))
            if not line:
                raise WorkerDied(self._crash(stage))
            message: dict[str, Any] = json.loads(line)
            if "stage" not in message:
                return message
            stage = message["stage"]
            deadline = time.monotonic() + self.limits[stage]

    def _line(self, child: subprocess.Popen[bytes], deadline: float) -> bytes | None:
        """One line of the child's output; None after the deadline, empty when the child has ended."""
        assert child.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(child.stdout, selectors.EVENT_READ)
            while b"\n" not in self._read:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    return None
                more = os.read(child.stdout.fileno(), 1 << 20)
                if not more:
                    return b""
                self._read += more
        line, _, self._read = self._read.partition(b"\n")
        return line

    def _crash(self, stage: str) -> Failure:
        assert self._child is not None and self._errors is not None
        code = self._child.wait()
        self._errors.seek(0)
        tail = self._errors.read().decode(errors="replace").strip()[-_TAIL:]
        self.close()
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        return Failure(FailureKind.CRASH, f"the process {how} while {_SAID[stage]}" + (f": {tail}" if tail else ""))

    def _started(self) -> subprocess.Popen[bytes]:
        if self._child is not None and self._child.poll() is None:
            return self._child
        self.close()
        self._read = b""
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115, close() closes it
        command = [sys.executable, "-m", "perfsuite.bench", ",".join(map(str, self.cores)), str(self.threads)]
        self._child = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=_environment(self.threads),
            # Its own session: Ctrl-C reaches the parent alone, which then stops the child.
            start_new_session=True,
        )
        self._answer(self._child, "start")
        return self._child


def _environment(threads: int) -> dict[str, str]:
    """Set before the child's libraries load: threads of OpenMP and MKL, and no pool of compile processes."""
    package = str(Path(__file__).resolve().parents[1])
    path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH", "")]))
    return {
        **os.environ,
        "PYTHONPATH": path,
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "TORCHINDUCTOR_COMPILE_THREADS": "1",
    }


def _attempt(answer: Mapping[str, Any]) -> Attempt:
    return Attempt(outcome_from_json(answer["outcome"]), float(answer.get("build_seconds", 0.0)))


def _failed(outcome: Mapping[str, Any]) -> Failure:
    return Failure(FailureKind(outcome["kind"]), outcome["reason"])


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Hold this machine's lock on measuring: two processes that tune at once take turns, undisturbed."""
    import fcntl

    path = Path(platformdirs.user_cache_dir("perfsuite", appauthor=False)) / "measuring.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
