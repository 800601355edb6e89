"""Where the numbers come from: the machine, the policy, the trials, and the commands that give them again."""

from __future__ import annotations

from collections.abc import Sequence

from perfsuite import units
from perfsuite.report.evidence import Evidence
from perfsuite.report.section import Grid, Section, cells
from perfsuite.report.winners import Winner


def machine_section(evidence: Evidence) -> Section:
    machine, software = evidence.machine, evidence.machine.environment
    caches = ", ".join(f"{n} {count} × {units.size(total / max(1, count))}" for n, total, count in machine.caches)
    gpus = ", ".join(f"{g.name} ({g.arch}, {units.size(g.memory)}, driver {g.driver})" for g in machine.gpus) or "none"
    created = [trial.created for trial in evidence.used]
    commits = ", ".join(sorted({t.commit[:10] for t in evidence.used if t.commit})) or "unknown"
    facts = [
        ("CPU", machine.cpu),
        ("ISA", ", ".join(machine.isa) or "none known"),
        ("Caches as reported", caches or "unknown"),
        ("Cores", str(machine.cores)),
        ("Memory", units.size(machine.memory)),
        ("NUMA nodes", str(machine.numa_nodes)),
        ("Virtualised", machine.virtual or "no"),
        ("GPU", gpus),
        ("torch, triton, Python", f"{software.torch}, {software.triton}, {software.python}"),
        ("Compiler, OpenMP", f"{software.compiler}, {software.openmp}"),
        ("System, governor, turbo", f"{software.kernel}, {software.governor}, {software.turbo}"),
        ("Policy", str(evidence.policy)),
        ("Trials", f"{len(evidence.used):,}, {_span(created)}"),
        ("Commits", commits),
        ("Machine, environment", f"{machine.id}, {machine.environment_id}"),
    ]
    rows = tuple(cells(name, value) for name, value in facts)
    return Section("machine", "Machine and policy", (), (), (Grid((("What", "text"), ("Value", "text")), rows),))


def _span(created: Sequence[float]) -> str:
    if not created:
        return "none yet"
    first, last = units.day(min(created)), units.day(max(created))
    return first if first == last else f"{first} to {last}"


def commands(evidence: Evidence, found: Sequence[Winner]) -> Section:
    policy = evidence.policy
    words = [
        policy.cache,
        policy.output,
        *["graph"] * (policy.launch == "graph"),
        *["cuda"] * (policy.device == "cuda"),
    ]
    flags = f"--policy {','.join(words)} --threads {policy.threads}"
    families = sorted({winner.family for winner in found})
    one = [f"perfsuite tune '{found[0].entry.workload}' {flags}"] if found else []
    every = " ".join(["perfsuite tune", "probes", *families, flags])
    return Section(
        "reproduce",
        "To reproduce",
        ("What is already known of this machine, code and policy is not measured again.",),
        commands=(every, *one, f"perfsuite report {flags}"),
    )
