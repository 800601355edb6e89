"""What happened: a `Trial` is one attempt, with its `Measurement` or the `Failure` that there is instead."""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from functools import cached_property
from typing import Any

from perfsuite.kernel import Config
from perfsuite.machine import Machine
from perfsuite.op import Workload
from perfsuite.policy import Policy
from perfsuite.stats import quiet


class Disturbance(StrEnum):
    """What disturbed a measurement; REMEDIES says what to do about each."""

    STEAL = "steal"
    SWITCHES = "switches"
    FAULTS = "faults"
    CLOCK = "clock"
    UNSTEADY = "unsteady"
    STALLED = "stalled"


REMEDIES: dict[Disturbance, str] = {
    Disturbance.STEAL: "the hypervisor lent the core to another guest: use a quieter or dedicated host",
    Disturbance.SWITCHES: "other processes ran on the timed core: close them, or give perfsuite a free core (taskset)",
    Disturbance.FAULTS: "pages were mapped while timing: the kernel allocates; compare it under `--policy fresh`",
    Disturbance.CLOCK: "the core ran slower for a while: fix the clock, or stop what shares the core",
    Disturbance.UNSTEADY: "times did not settle: set the frequency governor to performance and fix turbo",
    Disturbance.STALLED: "a thread waited long at a barrier: leave a core free (--threads) or stop other processes",
}


class FailureKind(StrEnum):
    BUILD = "build"
    PRUNED = "pruned"
    CRASH = "crash"
    TIMEOUT = "timeout"
    ERROR = "error"
    WRONG = "wrong"
    IMPLAUSIBLE = "implausible"


@dataclass(frozen=True)
class Failure:
    """Why there is no time: what kind of failure, and the text that explains it."""

    kind: FailureKind
    reason: str


@dataclass(frozen=True)
class Measurement:
    """All samples, each the seconds of one call (a mean over `calls` calls where one is too short for the clock).

    `disturbed` are samples that were taken again: kept, and in no statistic. In a race the samples come in blocks, one
    from each of `processes` processes in turn.
    """

    samples: tuple[float, ...]
    calls: int = 1
    warnings: tuple[Disturbance, ...] = ()
    processes: int = 1
    disturbed: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not self.samples or min(self.samples) <= 0.0:
            raise ValueError("a measurement needs at least one sample, and every sample is more than 0 s")

    @cached_property
    def median(self) -> float:
        return statistics.median(self.samples)

    @cached_property
    def quiet(self) -> float:
        return quiet(self.samples)

    @cached_property
    def spread(self) -> float:
        """Interquartile range over the median; 0 for fewer than four samples."""
        if len(self.samples) < 4:
            return 0.0
        low, _, high = statistics.quantiles(self.samples, n=4)
        return (high - low) / self.median

    def to_json(self) -> dict[str, Any]:
        """Fields that came later are left out at their defaults, so that older trials keep their ids."""
        data = {"samples": self.samples, "calls": self.calls, "warnings": self.warnings}
        later = {"processes": (self.processes, 1), "disturbed": (self.disturbed, ())}
        return {**data, **{name: value for name, (value, usual) in later.items() if value != usual}}


@dataclass(frozen=True)
class Trial:
    """One attempt at one workload with one kernel and config under one policy on one machine.

    `kernel` is `family/name`; `digest` is of the kernel's code as it was. `stage` is `search` or `race`; the
    trials of one race share its `race` id, and their samples are aligned by round. `build_seconds` is what making
    the callable took, `created` seconds since the epoch, `commit` the git commit of the checkout, or empty.
    """

    machine: Machine
    workload: Workload
    kernel: str
    config: Config
    policy: Policy
    digest: str
    outcome: Measurement | Failure
    created: float
    stage: str = "search"
    race: str = ""
    build_seconds: float = 0.0
    commit: str = ""

    @property
    def measurement(self) -> Measurement | None:
        return self.outcome if isinstance(self.outcome, Measurement) else None

    @property
    def failure(self) -> Failure | None:
        return self.outcome if isinstance(self.outcome, Failure) else None

    @property
    def seconds(self) -> float:
        """Median time of one call; infinity for a failed trial."""
        return self.outcome.median if isinstance(self.outcome, Measurement) else float("inf")

    @property
    def cost(self) -> float:
        """What a search minimises: the time of one call when little disturbs it; infinity for a failed trial."""
        return self.outcome.quiet if isinstance(self.outcome, Measurement) else float("inf")

    @cached_property
    def id(self) -> str:
        """Digest of everything in the trial: importing it twice changes nothing."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()[:24]

    def to_json(self) -> dict[str, Any]:
        return {
            "machine": self.machine.to_json(),
            "workload": self.workload.to_json(),
            "kernel": self.kernel,
            "config": self.config.to_json(),
            "policy": self.policy.to_json(),
            "digest": self.digest,
            "outcome": outcome_to_json(self.outcome),
            "created": self.created,
            "stage": self.stage,
            "race": self.race,
            "build_seconds": self.build_seconds,
            "commit": self.commit,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Trial:
        fields = dict(data)
        fields["machine"] = Machine.from_json(data["machine"])
        fields["workload"] = Workload.from_json(data["workload"])
        fields["config"] = Config.from_json(data["config"])
        fields["policy"] = Policy.from_json(data["policy"])
        fields["outcome"] = outcome_from_json(data["outcome"])
        return cls(**fields)


def outcome_to_json(outcome: Measurement | Failure) -> dict[str, Any]:
    if isinstance(outcome, Measurement):
        return {"ok": True, **outcome.to_json()}
    return {"ok": False, **asdict(outcome)}


def outcome_from_json(data: Mapping[str, Any]) -> Measurement | Failure:
    if not data["ok"]:
        return Failure(FailureKind(data["kind"]), data["reason"])
    warnings = tuple(Disturbance(w) for w in data.get("warnings", ()))
    return Measurement(
        tuple(data["samples"]),
        int(data.get("calls", 1)),
        warnings,
        int(data.get("processes", 1)),
        tuple(data.get("disturbed", ())),
    )
