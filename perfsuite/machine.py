"""Where it runs: the hardware, and the environment (software versions, governor) that a time depends on."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any


@dataclass(frozen=True)
class Gpu:
    """One GPU: `arch` is `sm_90` or `gfx942`; `memory` in bytes."""

    name: str
    arch: str
    memory: int
    driver: str


@dataclass(frozen=True)
class Environment:
    """The software that a time depends on, and the frequency governor; versions are `none` where there is none."""

    python: str
    torch: str
    triton: str
    compiler: str
    openmp: str
    kernel: str
    governor: str
    turbo: str


@dataclass(frozen=True)
class Machine:
    """The hardware as the process sees it: `cores` are those that are online, or fewer by cgroup quota.

    `isa` holds the short names of MACHINE_ISA that the CPU has; `caches` are (name, bytes, instances) as the machine
    reports them (what a virtual machine gets of them is measured by the probes); `memory` in bytes.
    """

    cpu: str
    isa: tuple[str, ...]
    caches: tuple[tuple[str, int, int], ...]
    cores: int
    memory: int
    numa_nodes: int
    virtual: str
    gpus: tuple[Gpu, ...]
    environment: Environment

    @cached_property
    def id(self) -> str:
        """Digest of the hardware alone, the same under every environment."""
        hardware = {k: v for k, v in self.to_json().items() if k != "environment"}
        return _digest(hardware)

    @cached_property
    def environment_id(self) -> str:
        return _digest(asdict(self.environment))

    @cached_property
    def slug(self) -> str:
        """Short name for files and people, such as `intel-xeon-6-167-2c-avx512-amx-3f9a`; its end is of the id."""
        cpu = re.sub(r"\b(?:processor|cpu|family|model|with|graphics)\b.?", " ", self.cpu.lower())
        widest: tuple[str, ...] = ("avx512", "amx") if "avx512" in self.isa else ("avx2",)
        isa = [name for name in widest if name in self.isa]
        gpu = [f"{len(self.gpus)}x-{self.gpus[0].name.lower()}"] if self.gpus else []
        words = re.findall(r"[a-z0-9]+", " ".join([cpu, f"{self.cores}c", *isa, *gpu]))
        return "-".join([*words, self.id[:4]])

    def cache(self, name: str) -> int:
        """Bytes of one instance of a cache (`L1d`, `L2`, `L3`); 0 when unknown."""
        return next((size // max(1, count) for label, size, count in self.caches if label == name), 0)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Machine:
        fields = dict(data)
        fields["isa"] = tuple(data["isa"])
        fields["caches"] = tuple((str(n), int(s), int(c)) for n, s, c in data["caches"])
        fields["gpus"] = tuple(Gpu(**gpu) for gpu in data["gpus"])
        fields["environment"] = Environment(**data["environment"])
        return cls(**fields)


# Short names of the instruction sets that kernels ask for, and the CPU flags that each needs.
MACHINE_ISA: dict[str, tuple[str, ...]] = {
    "avx2": ("avx2", "fma", "f16c"),
    "avx512": ("avx512f", "avx512bw", "avx512vl", "avx512dq"),
    "avx512_vnni": ("avx512_vnni",),
    "avx512_bf16": ("avx512_bf16",),
    "avx512_fp16": ("avx512_fp16",),
    "avx_vnni": ("avx_vnni",),
    "amx": ("amx_tile",),
    "amx_bf16": ("amx_tile", "amx_bf16"),
    "amx_int8": ("amx_tile", "amx_int8"),
}


def _digest(data: Any) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:16]
