"""How a kernel was timed: part of every result's key, because times under different policies do not compare."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

CACHES = ("warm", "cold")
OUTPUTS = ("reused", "fresh")
LAUNCHES = ("eager", "graph")
DEVICES = ("cpu", "cuda")


@dataclass(frozen=True)
class Policy:
    """`cache` warm (same buffers every call) or cold (buffers rotated beyond the last-level cache); `output` reused or
    fresh (allocated in every call); `threads` of the timed kernel; `launch` eager or from a graph (GPU); `device` where
    the tensors are."""

    cache: str = "warm"
    output: str = "reused"
    threads: int = 1
    launch: str = "eager"
    device: str = "cpu"

    def __post_init__(self) -> None:
        for value, known in (
            (self.cache, CACHES),
            (self.output, OUTPUTS),
            (self.launch, LAUNCHES),
            (self.device, DEVICES),
        ):
            if value not in known:
                raise ValueError(f"policy: {value!r} is none of {', '.join(known)}")
        if self.threads < 1:
            raise ValueError(f"policy: threads={self.threads} is less than 1")

    def __str__(self) -> str:
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        where = "" if self.device == "cpu" else f", {self.device}"
        return f"{self.cache} cache, {self.output} output, {threads}{where}" + ", graph" * (self.launch == "graph")

    @classmethod
    def parse(cls, text: str, threads: int = 1) -> Policy:
        """The policy of a comma-separated list such as `cold,reused`; what is not named keeps its default."""
        chosen: dict[str, str] = {}
        for word in filter(None, (w.strip() for w in text.split(","))):
            field = next((f for f, known in _CHOICES.items() if word in known), None)
            if field is None:
                raise ValueError(
                    f"policy {text!r}: {word!r} is none of {', '.join(CACHES + OUTPUTS + LAUNCHES + DEVICES)}"
                )
            chosen[field] = word
        return cls(threads=threads, **chosen)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Policy:
        return cls(**data)


_CHOICES = {"cache": CACHES, "output": OUTPUTS, "launch": LAUNCHES, "device": DEVICES}
