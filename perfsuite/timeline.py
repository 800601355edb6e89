"""How a tuning spent its time: what ran when, on the lane of the builds and on that of the timing."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BUILD, MEASURE = "build", "measure"
# What the timing lane does, in the order in which it begins, and what it waits for: a build, or its turn where another
# process measures on this machine.
WAITS = ("wait", "turn")
STAGES = ("probes", "survey", "search", "race", *WAITS)
# Shorter spans are not kept: most turns come at once.
_SHORTEST = 1e-3

# 1: first format.
FORMAT = 1


@dataclass(frozen=True)
class Span:
    """`what` is `build` on the lane of builds, one of STAGES on the other; times in seconds since the start."""

    lane: str
    what: str
    start: float
    end: float
    workload: str = ""
    kernel: str = ""

    @property
    def seconds(self) -> float:
        return self.end - self.start


@dataclass(frozen=True)
class Timeline:
    """A tuning that took `seconds` of its `budget` (None: there was none); `created` is seconds since the epoch."""

    policy: str
    budget: float | None
    created: float
    seconds: float
    spans: tuple[Span, ...]

    @property
    def spent(self) -> dict[str, float]:
        """Seconds of each stage, of all builds, and of neither (`rest`: starting, planning, writing)."""
        sums = {what: sum(s.seconds for s in self.spans if s.lane == MEASURE and s.what == what) for what in STAGES}
        builds = sum(s.seconds for s in self.spans if s.lane == BUILD)
        return {**sums, "build": builds, "rest": max(0.0, self.seconds - sum(sums.values()))}

    @property
    def measured(self) -> float:
        """Seconds in which something was timed or checked: the stages without the waits."""
        return sum(s.seconds for s in self.spans if s.lane == MEASURE and s.what not in WAITS)

    @property
    def overlap(self) -> float:
        """Seconds in which a build ran while something was timed or checked."""
        builds = sorted((s.start, s.end) for s in self.spans if s.lane == BUILD)
        timed = sorted((s.start, s.end) for s in self.spans if s.lane == MEASURE and s.what not in WAITS)
        both = 0.0
        while builds and timed:
            (begun, ended), (start, end) = builds[-1], timed[-1]
            both += max(0.0, min(ended, end) - max(begun, start))
            (builds if begun > start else timed).pop()
        return both

    def to_json(self) -> dict[str, Any]:
        spans = [[s.lane, s.what, round(s.start, 3), round(s.end, 3), s.workload, s.kernel] for s in self.spans]
        said = {"policy": self.policy, "budget": self.budget, "created": self.created, "seconds": self.seconds}
        return {"format": FORMAT, **said, "spans": spans}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Timeline:
        if data.get("format") != FORMAT:
            raise ValueError(f"the timeline has format {data.get('format')!r}, this perfsuite reads {FORMAT}")
        spans = tuple(Span(*span) for span in data["spans"])
        return cls(data["policy"], data["budget"], data["created"], data["seconds"], spans)

    def save(self, path: Path) -> None:
        """Write beside the target and rename: a reader never sees half a timeline."""
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{path.name}.{os.getpid()}")
        temporary.write_text(json.dumps(self.to_json()) + "\n")
        temporary.replace(path)

    @classmethod
    def load(cls, path: Path) -> Timeline:
        """Raises ValueError with what to do when the file is not a timeline."""
        try:
            return cls.from_json(json.loads(path.read_text()))
        except (json.JSONDecodeError, KeyError, TypeError, ValueError) as wrong:
            raise ValueError(
                f"{path} is not a timeline that can be read ({wrong}); `perfsuite tune` writes a new one"
            ) from wrong


@dataclass
class Recorder:
    """Collects the spans of a tuning while it runs; two threads may write, one on each lane."""

    start: float = field(default_factory=time.monotonic)
    spans: list[Span] = field(default_factory=list)

    @property
    def now(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.start

    @contextlib.contextmanager
    def span(self, lane: str, what: str, workload: object = "", kernel: object = "") -> Iterator[None]:
        start = self.now
        try:
            yield
        finally:
            if (end := self.now) - start >= _SHORTEST:
                self.spans.append(Span(lane, what, start, end, str(workload), str(kernel)))

    def timeline(self, policy: object, budget: float | None) -> Timeline:
        """What was recorded so far."""
        return Timeline(str(policy), budget, time.time() - self.now, self.now, tuple(self.spans))
