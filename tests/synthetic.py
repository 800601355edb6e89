"""A machine whose every time is known, and the evidence of about 800 trials on it, of which reports are made."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import replace

from perfsuite.kernel import Config
from perfsuite.machine import Environment, Machine
from perfsuite.op import Op, Operand, Sizes, Workload
from perfsuite.policy import Policy
from perfsuite.report import Evidence
from perfsuite.stats import Verdict
from perfsuite.table import Entry, Table
from perfsuite.trial import Disturbance, Failure, FailureKind, Measurement, Trial

KIB, MIB = 1 << 10, 1 << 20
POLICY = Policy()
TODAY, CREATED = "today", 1_760_000_000.0
MACHINE = Machine(
    cpu="Example Processor 9000",
    isa=("avx2", "avx512", "amx_bf16"),
    caches=(("L1d", 96 * KIB, 2), ("L2", 4 * MIB, 2), ("L3", 480 * MIB, 1)),
    cores=2,
    memory=24 << 30,
    numa_nodes=1,
    virtual="kvm",
    gpus=(),
    environment=Environment("3.11.2", "2.13.0", "3.6.0", "gcc 12.2", "libgomp 201511", "6.1.0", "unknown", "unknown"),
)


def _rows(name: str, family: str, flops: float, workloads: tuple[Workload, ...]) -> Op:
    axes = ("rows", "cols")
    return Op(
        name,
        (Operand("x", axes),),
        (Operand("y", axes),),
        reference=lambda x: x,
        flops=lambda sizes: flops * sizes["rows"] * sizes["cols"],
        workloads=workloads,
        family=family,
    )


def _vectors(name: str, inputs: str, outputs: str, flops: float) -> Op:
    return Op(
        name,
        tuple(Operand(letter, ("elements",)) for letter in inputs),
        tuple(Operand(letter, ("elements",)) for letter in outputs),
        reference=lambda *tensors: tensors[0],
        flops=lambda sizes: flops * sizes["elements"],
        family="probes",
    )


def _product(name: str, family: str, workloads: tuple[Workload, ...] = ()) -> Op:
    def flops(sizes: Sizes) -> float:
        return 2.0 * sizes["m"] * sizes["n"] * sizes["k"]

    x, w, y = Operand("x", ("m", "k")), Operand("w", ("k", "n")), Operand("y", ("m", "n"))
    return Op(name, (x, w), (y,), reference=lambda x, w: x @ w, flops=flops, workloads=workloads, family=family)


def on(op: str, rows: int, cols: int, dtype: str, **models: int) -> Workload:
    named = tuple((model.replace("_", "-"), calls) for model, calls in models.items())
    return Workload(op, (("rows", rows), ("cols", cols)), dtype, named)


SOFTMAX = (
    on("softmax", 12288, 128, "f32", BERT_base=12),
    on("softmax", 12288, 1024, "f32", GPT_2=12),
    on("softmax", 12288, 1024, "bf16", GPT_2=12),
    on("softmax", 16, 128256, "f32", Llama_3_8B=1),
    *(on("softmax", 1, 1 << power, "f32") for power in range(12, 25, 2)),
)
NORMS = (
    on("layer_norm", 1024, 768, "f32", BERT_base=25, GPT_2=25),
    on("layer_norm", 1024, 768, "bf16", BERT_base=25, GPT_2=25),
    on("rms_norm", 512, 4096, "bf16", Llama_3_8B=65),
    on("rms_norm", 1, 4096, "bf16", Llama_3_8B=65),
)
LINEAR = tuple(
    Workload("linear", (("m", m), ("n", n), ("k", k)), dtype, models)
    for (m, n, k), models in (
        ((1024, 768, 3072), (("BERT-base", 12), ("GPT-2", 12))),
        ((1024, 3072, 768), (("BERT-base", 12), ("GPT-2", 12))),
        ((512, 512, 512), ()),
    )
    for dtype in ("f32", "bf16")
)
OPS = {
    op.name: op
    for op in (
        _vectors("copy", "x", "y", 0.0),
        _vectors("triad", "ab", "y", 2.0),
        _product("matmul", "probes"),
        _rows("softmax", "softmax", 12.0, SOFTMAX),
        _rows("layer_norm", "norms", 8.0, tuple(w for w in NORMS if w.op == "layer_norm")),
        _rows("rms_norm", "norms", 4.0, tuple(w for w in NORMS if w.op == "rms_norm")),
        _product("linear", "integer", LINEAR),
    )
}
PEAKS = {("f32", "avx512"): 170e9, ("f32", "avx2"): 90e9, ("bf16", "amx_bf16"): 1.2e12, ("bf16", "avx512"): 160e9}
# How many times the ideal each kernel takes with its best config.
FACTORS = {
    "softmax/eager": 2.6,
    "softmax/inductor": 3.1,
    "softmax/native_two_pass_pairs": 1.3,
    "softmax/native_three_pass_recompute": 1.5,
    "softmax/native_three_pass_reload": 1.7,
    "softmax/native_resident": 1.2,
    "norms/eager": 1.9,
    "norms/inductor": 2.2,
    "norms/native_rows": 1.1,
    "integer/eager": 1.25,
    "integer/inductor": 1.4,
    "integer/native_brgemm": 1.6,
}
DEFAULTS = frozenset(kernel for kernel in FACTORS if kernel.endswith("/eager"))
DIGESTS = dict.fromkeys([*FACTORS, "probes/native_stream", "probes/native_brgemm", "norms/broken"], TODAY)


def _bandwidth(footprint: int) -> float:
    return 97e9 if footprint <= 2 * MIB else 29e9 if footprint <= 64 * MIB else 15e9


def timed(workload: Workload, kernel: str, config: Config, seconds: float, **changes: object) -> Trial:
    samples = tuple(seconds * factor for factor in (0.98, 1.0, 1.0, 1.01, 1.2))
    trial = Trial(MACHINE, workload, kernel, config, POLICY, TODAY, Measurement(samples), CREATED, commit="abc123")
    return replace(trial, **changes)  # type: ignore[arg-type]


def _probes() -> list[Trial]:
    trials = []
    for op, isa, stream, power in itertools.product(
        ("copy", "triad"), ("avx512", "avx2"), (False, True), range(14, 29)
    ):
        footprint = 1 << power
        workload = Workload(op, (("elements", footprint // (8 if op == "copy" else 12)),))
        size = OPS[op].least_bytes(workload)
        slower = (1.0 if isa == "avx512" else 1.25) * (0.95 if op == "triad" else 1.0)
        slower *= 1.6 if stream and footprint <= 64 * MIB else 1.0 if stream else 1.0 + 0.2 * (footprint > 64 * MIB)
        config = Config.of(isa=isa, stream=stream)
        trials.append(timed(workload, "probes/native_stream", config, 4e-7 + slower * size / _bandwidth(footprint)))
    for (dtype, isa), peak in PEAKS.items():
        workload = Workload("matmul", (("m", 1024), ("k", 1024), ("n", 1024)), dtype)
        trials.append(timed(workload, "probes/native_brgemm", Config.of(isa=isa), 2.0 * 1024**3 / peak))
    return trials


def known_seconds(workload: Workload, kernel: str, config: Config) -> float:
    """Known time: the roofline's ideal with the true ceilings, the kernel's factor, and a config's own penalty."""
    op = OPS[workload.op]
    size = op.least_bytes(workload)
    ideal = max(
        size / _bandwidth(size), op.operations(workload) / max(v for k, v in PEAKS.items() if k[0] == workload.dtype)
    )
    values = dict(config.values)
    penalty = 1.0 + 0.12 * abs(float(values.get("unroll", 4)) - 4.0) + 0.35 * (values.get("isa") == "avx2")
    penalty += 0.3 * (bool(values.get("stream")) == (size < 64 * MIB)) if "stream" in values else 0.0
    return 1e-6 + ideal * FACTORS[kernel] * penalty


def configs_of(kernel: str) -> list[Config]:
    name = kernel.rpartition("/")[2]
    if name == "eager":
        return [Config()]
    if name == "inductor":
        return [Config.of(simdlen=width) for width in (256, 512)]
    return [
        Config.of(isa=isa, unroll=unroll, stream=stream)
        for isa, unroll, stream in itertools.product(("avx512", "avx2"), (1, 2, 4, 8), (False, True))
    ]


def _searched(workloads: Iterable[Workload]) -> list[Trial]:
    return [
        timed(workload, kernel, config, known_seconds(workload, kernel, config))
        for workload in workloads
        for kernel in FACTORS
        if kernel.startswith(OPS[workload.op].family + "/")
        for config in configs_of(kernel)
    ]


def _race(workload: Workload, searched: Sequence[Trial]) -> tuple[Entry, list[Trial]]:
    """The three fastest configs and the default once more in a race, and the entry that follows."""
    own = sorted((t for t in searched if t.workload == workload), key=lambda t: t.seconds)
    default = next(t for t in own if t.kernel in DEFAULTS)
    finalists = list(dict.fromkeys([*own[:3], default]))
    race = [replace(t, stage="race", race=f"race of {workload}", created=CREATED + 60.0) for t in finalists]
    best = race[0]
    verdict = Verdict.DEFAULT if best.kernel in DEFAULTS else Verdict.FASTER
    ties = tuple((t.kernel, t.config) for t in race[1:] if t.seconds < 1.02 * best.seconds and t.kernel != best.kernel)
    entry = Entry(
        workload, POLICY, best.kernel, best.config, TODAY, best.seconds, verdict, ties, tuple(t.id for t in race)
    )
    return entry, race


WRONG = "y is wrong at {} of 4096 places, worst at [0,{}]: 0.5 instead of 0.25 (allowed: 1e-05 off)"
COMPILE = "rows.cpp:12:3: error: no match for 'operator<' in <vector> | pipe\nsecond line\nthird line"


def failures() -> list[Trial]:
    broken = Config.of(isa="avx512", unroll=8)
    workloads = NORMS[:3]
    wrong = [
        timed(w, "norms/broken", broken, 1.0, outcome=Failure(FailureKind.WRONG, WRONG.format(10 + at, at)))
        for at, w in enumerate(workloads)
    ]
    build = timed(NORMS[0], "norms/native_rows", broken, 1.0, outcome=Failure(FailureKind.BUILD, COMPILE))
    return [*wrong, build]


def build_evidence(workloads: Sequence[Workload] = (*SOFTMAX, *NORMS, *LINEAR)) -> Evidence:
    """About 800 trials of three families: winners, ties, defaults that stood, failures, stale and foreign trials."""
    searched = _searched(workloads)
    races = [_race(workload, searched) for workload in workloads]
    noisy = Measurement((1e-3, 1.1e-3), warnings=(Disturbance.SWITCHES, Disturbance.UNSTEADY))
    slow = Config.of(isa="avx2", unroll=16, stream=False)
    old = [replace(t, digest="yesterday") for t in searched if t.kernel == "norms/native_rows"][:7]
    gone = [replace(t, kernel="norms/removed") for t in old[:2]]
    stale_entry = replace(races[0][0], workload=on("softmax", 7, 7, "f32"), digest="yesterday")
    foreign = replace(searched[0], machine=replace(MACHINE, cpu="Another"))
    return Evidence(
        machine=MACHINE,
        policy=POLICY,
        trials=[
            *_probes(),
            *searched,
            *(trial for _, race in races for trial in race),
            *failures(),
            timed(workloads[0], "softmax/native_resident", slow, 1.0, outcome=noisy),
            *old,
            *gone,
            foreign,
            replace(searched[0], policy=Policy(cache="cold")),
        ],
        table=Table(MACHINE, (*(entry for entry, _ in races), stale_entry)),
        ops=OPS,
        digests=DIGESTS,
        refusals=[
            ("softmax", "softmax/triton_rows", "needs a GPU, this machine has none"),
            ("layer_norm", "norms/triton_rows", "needs a GPU, this machine has none"),
            ("rms_norm", "norms/triton_rows", "needs a GPU, this machine has none"),
        ],
        pruned=[
            ("softmax/triton_rows", f"needs {n} bytes of shared memory, sm_90 has 232448") for n in (300000, 400000)
        ],
        defaults=DEFAULTS,
        uncontrolled=["the frequency governor is unknown", "this is a virtual machine (kvm)"],
    )


def known_times(workload: Workload) -> dict[str, float]:
    family = OPS[workload.op].family
    return {
        kernel: min(known_seconds(workload, kernel, config) for config in configs_of(kernel))
        for kernel in FACTORS
        if kernel.startswith(family + "/")
    }
