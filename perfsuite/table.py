"""What won: for one machine, workload and policy to kernel and config, with the trials that justify it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perfsuite.kernel import Config
from perfsuite.machine import Machine
from perfsuite.op import Workload
from perfsuite.policy import Policy
from perfsuite.stats import Verdict

# 1: first format.
FORMAT = 1


@dataclass(frozen=True)
class Entry:
    """The winner of one workload under one policy.

    `verdict` is against the default kernel. `ties` are the finalists that tie with the winner.
    `seconds` is the winner's median in its race, `trials` the ids of the trials of that race.
    """

    workload: Workload
    policy: Policy
    kernel: str
    config: Config
    digest: str
    seconds: float
    verdict: Verdict
    ties: tuple[tuple[str, Config], ...] = ()
    trials: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            "workload": self.workload.to_json(),
            "policy": self.policy.to_json(),
            "kernel": self.kernel,
            "config": self.config.to_json(),
            "digest": self.digest,
            "seconds": self.seconds,
            "verdict": self.verdict,
            "ties": [[kernel, config.to_json()] for kernel, config in self.ties],
            "trials": list(self.trials),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Entry:
        return cls(
            Workload.from_json(data["workload"]),
            Policy.from_json(data["policy"]),
            data["kernel"],
            Config.from_json(data["config"]),
            data["digest"],
            float(data["seconds"]),
            Verdict(data["verdict"]),
            tuple((kernel, Config.from_json(config)) for kernel, config in data["ties"]),
            tuple(data["trials"]),
        )


@dataclass(frozen=True)
class Table:
    """Every winner on one machine; the same trials give the same table wherever it is made."""

    machine: Machine
    entries: tuple[Entry, ...]

    def to_json(self) -> dict[str, Any]:
        return {"format": FORMAT, "machine": self.machine.to_json(), "entries": [e.to_json() for e in self.entries]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Table:
        if data.get("format") != FORMAT:
            raise ValueError(f"the table has format {data.get('format')!r}, this perfsuite reads {FORMAT}")
        return cls(Machine.from_json(data["machine"]), tuple(Entry.from_json(e) for e in data["entries"]))

    def save(self, path: Path) -> None:
        """Write beside the target and rename: a reader never sees half a table."""
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{path.name}.{os.getpid()}")
        temporary.write_text(json.dumps(self.to_json(), indent=1) + "\n")
        temporary.replace(path)

    @classmethod
    def load(cls, path: Path) -> Table:
        """Raises ValueError with what to do when the file is not a table."""
        try:
            return cls.from_json(json.loads(path.read_text()))
        except (json.JSONDecodeError, KeyError, TypeError, ValueError) as wrong:
            raise ValueError(
                f"{path} is not a table that can be read ({wrong}); `perfsuite tune` writes a new one"
            ) from wrong
