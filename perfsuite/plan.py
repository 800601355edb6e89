"""What one tuning will do: which workloads, how hard, under which policy, within which budget."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from perfsuite import detect, search, units
from perfsuite.kernel import Kernel
from perfsuite.machine import Machine
from perfsuite.op import Workload
from perfsuite.policy import Policy
from perfsuite.registry import Job, Registry
from perfsuite.trial import Trial

PROBES = "probes"
# Where code and data lie differs between processes: an eager softmax moved by 5 % from one to the next.
FEWEST_PROCESSES = 3


@dataclass(frozen=True)
class Effort:
    """How much to spend: trials per kernel and workload, seconds of timing per trial, and on the race of the best.

    A kernel that is slow to build gets no more trials on a workload once its builds there took `build_seconds`.
    A race has up to `finalists` of the search, lasts up to `rounds` and `race_seconds`, and is held in `processes`
    processes where memory allows. A search ends at the share `enough` of the ceiling. `budget` is in seconds, for a
    tuning of everything; None for no end.
    """

    trials: int
    seconds: float
    rounds: int
    race_seconds: float
    finalists: int = 6
    processes: int = FEWEST_PROCESSES
    build_seconds: float = math.inf
    budget: float | None = None
    enough: float = 0.95


EFFORTS = {
    "quick": Effort(trials=5, seconds=0.04, rounds=60, race_seconds=1.0, build_seconds=2.0, budget=180.0),
    # Many short trials and a race of many find better configs than few long trials: one visit may be 10 % off anyway.
    # Of 24 finalists the best config of five recorded spaces was one in 75 % of searches, of 12 in 65 %.
    # Beside a core that was busy half of the time, 1000 rounds found 5 % on a kernel of 44 us in 51 of 55 races.
    # Ten tunings of a layer_norm in a shared L3 cache picked one within 2 % 7 times with 24 and 9 times with 48.
    # Kernels that stream memory differ by 3 % between processes: replayed races in six were wrong half as often as in
    # three, with a third fewer samples.
    "default": Effort(128, 0.03, rounds=4000, race_seconds=12.0, finalists=48, processes=6, budget=900.0),
    "full": Effort(1_000_000, 0.1, rounds=10_000, race_seconds=30.0, finalists=64, processes=6, enough=math.inf),
}


@dataclass(frozen=True)
class Refusal:
    """A kernel that cannot run a workload here, and its reason."""

    workload: Workload
    kernel: str
    reason: str


@dataclass(frozen=True)
class Plan:
    """`budget` is in seconds for everything, or None for no end.

    `ceilings`: measure the machine's ceilings first where they are not known.
    """

    machine: Machine
    registry: Registry
    jobs: tuple[Job, ...]
    policy: Policy
    effort: Effort
    strategy: str = search.DEFAULT
    budget: float | None = None
    ceilings: bool = True

    def __post_init__(self) -> None:
        cores = min(self.machine.cores, len(detect.allowed_cores()))
        if self.policy.threads > cores:
            raise ValueError(f"--threads {self.policy.threads}: this process may use {units.several(cores, 'core')}")
        require_device(self.policy, self.machine)
        if self.strategy not in search.STRATEGIES:
            raise ValueError(f"--strategy {self.strategy!r} is none of {', '.join(search.STRATEGIES)}")

    def sifted(self) -> tuple[tuple[Job, ...], tuple[Refusal, ...]]:
        """The jobs with the kernels that can run them, and the refusals of the others."""
        return self._sifted(self.jobs)

    def missing_ceilings(self, known: Sequence[Trial]) -> tuple[Job, ...]:
        """The probes that nothing is known of yet on this machine under this policy; none where they are not wanted."""
        if not self.ceilings or PROBES not in self.registry.families:
            return ()
        probed = {t.workload for t in known if t.measurement is not None}
        jobs, _ = self._sifted(job for job in self.registry.select([PROBES]) if job.workload not in probed)
        return jobs

    def is_probe(self, workload: Workload) -> bool:
        return self.registry.ops[workload.op].family == PROBES

    def _sifted(self, every: Iterable[Job]) -> tuple[tuple[Job, ...], tuple[Refusal, ...]]:
        jobs, refusals = [], []
        for job in every:
            fit: list[Kernel] = []
            for kernel in job.kernels:
                reason = elsewhere(kernel, self.policy) or refused(kernel, job.workload, self.machine)
                if reason is None:
                    fit.append(kernel)
                else:
                    refusals.append(Refusal(job.workload, str(kernel), reason))
            if fit:
                jobs.append(Job(job.workload, tuple(fit)))
        return tuple(jobs), tuple(refusals)


def require_device(policy: Policy, machine: Machine) -> None:
    """ValueError where the machine lacks the GPU that the policy measures on."""
    if policy.device == "cuda" and not machine.gpus:
        raise ValueError("--policy cuda: perfsuite sees no GPU here; `perfsuite doctor` says what it sees")


def elsewhere(kernel: Kernel, policy: Policy) -> str | None:
    """Why the kernel cannot run where the policy's tensors are, or None."""
    if kernel.device in ("any", policy.device):
        return None
    return f"runs on {kernel.device}, this policy measures {policy.device}"


def refused(kernel: Kernel, workload: Workload, machine: Machine) -> str | None:
    """Why the kernel cannot run the workload here, or None."""
    try:
        return kernel.supports(workload, machine) or (
            None if len(kernel.space(workload, machine)) else "an empty space"
        )
    except Exception as wrong:  # a foreign kernel's code may raise anything
        return f"it cannot say what it supports: {type(wrong).__name__}: {wrong}"
