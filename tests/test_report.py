"""Reports of a synthetic machine whose every time is known: the numbers, the reasons, the pictures and the page."""

from __future__ import annotations

import itertools
import math
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from perfsuite import units
from perfsuite.kernel import Config
from perfsuite.machine import Environment, Machine
from perfsuite.op import Op, Operand, Sizes, Workload
from perfsuite.policy import Policy
from perfsuite.report import Evidence, regret, write
from perfsuite.stats import Verdict
from perfsuite.table import Entry, Table
from perfsuite.timeline import BUILD, MEASURE, Span, Timeline
from perfsuite.trial import REMEDIES, Disturbance, Failure, FailureKind, Measurement, Trial

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


def _on(op: str, rows: int, cols: int, dtype: str, **models: int) -> Workload:
    named = tuple((model.replace("_", "-"), calls) for model, calls in models.items())
    return Workload(op, (("rows", rows), ("cols", cols)), dtype, named)


SOFTMAX = (
    _on("softmax", 12288, 128, "f32", BERT_base=12),
    _on("softmax", 12288, 1024, "f32", GPT_2=12),
    _on("softmax", 12288, 1024, "bf16", GPT_2=12),
    _on("softmax", 16, 128256, "f32", Llama_3_8B=1),
    *(_on("softmax", 1, 1 << power, "f32") for power in range(12, 25, 2)),
)
NORMS = (
    _on("layer_norm", 1024, 768, "f32", BERT_base=25, GPT_2=25),
    _on("layer_norm", 1024, 768, "bf16", BERT_base=25, GPT_2=25),
    _on("rms_norm", 512, 4096, "bf16", Llama_3_8B=65),
    _on("rms_norm", 1, 4096, "bf16", Llama_3_8B=65),
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


def _trial(workload: Workload, kernel: str, config: Config, seconds: float, **changes: object) -> Trial:
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
        trials.append(_trial(workload, "probes/native_stream", config, 4e-7 + slower * size / _bandwidth(footprint)))
    for (dtype, isa), peak in PEAKS.items():
        workload = Workload("matmul", (("m", 1024), ("k", 1024), ("n", 1024)), dtype)
        trials.append(_trial(workload, "probes/native_brgemm", Config.of(isa=isa), 2.0 * 1024**3 / peak))
    return trials


def _seconds(workload: Workload, kernel: str, config: Config) -> float:
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


def _configs(kernel: str) -> list[Config]:
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
        _trial(workload, kernel, config, _seconds(workload, kernel, config))
        for workload in workloads
        for kernel in FACTORS
        if kernel.startswith(OPS[workload.op].family + "/")
        for config in _configs(kernel)
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


def _failed() -> list[Trial]:
    broken = Config.of(isa="avx512", unroll=8)
    workloads = NORMS[:3]
    wrong = [
        _trial(w, "norms/broken", broken, 1.0, outcome=Failure(FailureKind.WRONG, WRONG.format(10 + at, at)))
        for at, w in enumerate(workloads)
    ]
    build = _trial(NORMS[0], "norms/native_rows", broken, 1.0, outcome=Failure(FailureKind.BUILD, COMPILE))
    return [*wrong, build]


def build_evidence(workloads: Sequence[Workload] = (*SOFTMAX, *NORMS, *LINEAR)) -> Evidence:
    """About 800 trials of three families: winners, ties, defaults that stood, failures, stale and foreign trials."""
    searched = _searched(workloads)
    races = [_race(workload, searched) for workload in workloads]
    noisy = Measurement((1e-3, 1.1e-3), warnings=(Disturbance.SWITCHES, Disturbance.UNSTEADY))
    slow = Config.of(isa="avx2", unroll=16, stream=False)
    old = [replace(t, digest="yesterday") for t in searched if t.kernel == "norms/native_rows"][:7]
    gone = [replace(t, kernel="norms/removed") for t in old[:2]]
    stale_entry = replace(races[0][0], workload=_on("softmax", 7, 7, "f32"), digest="yesterday")
    foreign = replace(searched[0], machine=replace(MACHINE, cpu="Another"))
    return Evidence(
        machine=MACHINE,
        policy=POLICY,
        trials=[
            *_probes(),
            *searched,
            *(trial for _, race in races for trial in race),
            *_failed(),
            _trial(workloads[0], "softmax/native_resident", slow, 1.0, outcome=noisy),
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
        defaults=DEFAULTS,
        uncontrolled=["the frequency governor is unknown", "this is a virtual machine (kvm)"],
    )


class Tables(HTMLParser):
    """The tables of a page: rows of cells; what a cell says in small letters or folds away comes after a slash."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.inside = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self.inside = True
        elif tag in ("small", "pre") and self.inside:
            self.tables[-1][-1][-1] += " / "

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self.inside = False

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.tables[-1][-1][-1] += data.strip("\n")

    def row(self, first: str) -> dict[str, str]:
        """The only row that starts with this cell, by column."""
        found = [
            dict(zip(table[0], row)) for table in self.tables for row in table[1:] if row[0].split(" / ")[0] == first
        ]
        assert len(found) == 1, f"{len(found)} rows start with {first}"
        return found[0]


@pytest.fixture(scope="module")
def evidence() -> Evidence:
    return build_evidence()


@pytest.fixture(scope="module")
def folder(evidence: Evidence, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report") / "new" / "folder"
    assert write(evidence, out) == out / "index.html"
    return out


@pytest.fixture(scope="module")
def page(folder: Path) -> str:
    return (folder / "index.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def markdown(folder: Path) -> str:
    return (folder / "report.md").read_text(encoding="utf-8")


def _known_times(workload: Workload) -> dict[str, float]:
    family = OPS[workload.op].family
    return {
        kernel: min(_seconds(workload, kernel, config) for config in _configs(kernel))
        for kernel in FACTORS
        if kernel.startswith(family + "/")
    }


@pytest.mark.parametrize("workload", [*SOFTMAX, *NORMS, *LINEAR], ids=str)
def test_a_winner_row_says_what_the_times_say(page: str, workload: Workload) -> None:
    row, known = Tables(page).row(str(workload)), _known_times(workload)
    winner = min(known, key=known.__getitem__)
    family = OPS[workload.op].family
    assert row["Kernel"].split(" / ")[0] == winner.removeprefix(f"{family}/")
    assert row["Time"] == units.seconds(known[winner])
    default, inductor = known[f"{family}/eager"], known[f"{family}/inductor"]
    assert row["Over default"] == f"{default / known[winner]:.2f}×"
    assert row["Over inductor"].lstrip("~") == f"{inductor / known[winner]:.2f}×"
    assert row["Verdict"].split(" / ")[0] == ("DEFAULT" if winner.endswith("/eager") else "FASTER")


def test_a_default_that_stood_shows_the_best_kernel_that_did_not_beat_it(page: str) -> None:
    known = _known_times(LINEAR[0])
    expected = f"next: inductor {known['integer/eager'] / known['integer/inductor']:.2f}×"
    assert Tables(page).row(str(LINEAR[0]))["Verdict"] == f"DEFAULT / {expected}"


def test_shares_are_those_of_the_measured_ceilings(page: str) -> None:
    # 8 MiB lie in L3, where the copy probe measured exactly this footprint.
    softmax = _on("softmax", 1, 1 << 20, "f32")
    row = Tables(page).row(str(softmax))
    copied = 4e-7 + 8 * MIB / 29e9
    assert row["Of ceiling"] == f"{100.0 * copied / _known_times(softmax)['softmax/native_resident']:.0f} %"
    assert row["Bound by"] == "L3 bandwidth"
    linear = LINEAR[1]
    ideal = 2.0 * 1024 * 768 * 3072 / 1.2e12
    row = Tables(page).row(str(linear))
    assert row["Of ceiling"] == f"{100.0 * ideal / _known_times(linear)['integer/eager']:.0f} %"
    assert row["Bound by"] == "bf16 peak"


def test_model_times_are_sums_of_calls_times_time(page: str) -> None:
    row = Tables(page).row("BERT-base f32")
    parts = [(12, SOFTMAX[0]), (25, NORMS[0]), (12, LINEAR[0]), (12, LINEAR[2])]
    tuned = sum(calls * min(_known_times(w).values()) for calls, w in parts)
    default = sum(calls * _known_times(w)[f"{OPS[w.op].family}/eager"] for calls, w in parts)
    assert (row["Default"], row["Tuned"]) == (units.seconds(default), units.seconds(tuned))
    assert row["Gain"] == f"{default / tuned:.2f}×" and row["Workloads"] == "4"


def test_the_summary_counts(page: str, markdown: str, evidence: Evidence) -> None:
    ratios = []
    for workload in (*SOFTMAX, *NORMS, *LINEAR):
        known = _known_times(workload)
        ratios.append(known[f"{OPS[workload.op].family}/eager"] / min(known.values()))
    mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
    for text in (page, markdown):
        assert f"{mean:.2f}×" in text and f"15/{len(ratios)}" in text
    # The nine of yesterday's code, one of another machine and one of another policy do not count.
    assert f"<b>{len(evidence.trials) - 11:,}</b><span>trials</span>" in page


def test_failures_are_grouped_and_their_text_is_escaped(page: str, markdown: str) -> None:
    wrong = Tables(page).row("norms/broken")
    assert wrong["Trials"] == "3" and wrong["Kind"] == "wrong" and wrong["Reason"] == WRONG.format(10, 0)
    build = Tables(page[: page.index('id="stale"')]).row("norms/native_rows")
    assert build["Trials"] == "1" and build["Reason"].startswith(COMPILE.splitlines()[0])
    assert "third line" in build["Reason"], "the whole text is folded into the page"
    assert "<vector>" not in page and "in &lt;vector> \\| pipe" in markdown


def test_stale_and_foreign_trials_are_counted_and_not_used(page: str, evidence: Evidence) -> None:
    left_out = page[page.index('id="stale"') :]
    assert "2 trials of other machines, environments or policies" in left_out
    rows = {row[0]: row for table in Tables(left_out).tables for row in table}
    assert rows["norms/native_rows"][1:] == ["7", "0", "its code differs"]
    assert rows["norms/removed"][1:] == ["2", "0", "there is no such kernel"]
    assert rows["softmax/native_resident"][1:3] == ["0", "1"], "a former winner of changed code"
    assert "softmax[rows=7,cols=7,f32]" not in page
    absurd = Measurement((1e-12,))
    faster = [replace(t, outcome=absurd) for t in evidence.stale]
    again = replace(evidence, trials=[*evidence.used, *faster])
    assert again.times == replace(evidence, trials=evidence.used).times


def test_refusals_and_disturbances_come_with_reason_and_remedy(page: str) -> None:
    refused = Tables(page).row("norms/triton_rows")
    assert refused["Reason"] == "needs a GPU, this machine has none"
    assert refused["Workloads"] == "2 / layer_norm\nrms_norm"
    for kind in (Disturbance.SWITCHES, Disturbance.UNSTEADY):
        row = Tables(page).row(kind)
        assert row["Timed trials"].startswith("1 /") and row["Remedy"] == REMEDIES[kind]
    assert "Not controlled: the frequency governor is unknown" in page


def test_the_two_pass_finding_is_measured_and_stands_beside_the_claim(page: str) -> None:
    def best(kernel: str, isa: str, length: int) -> float:
        configs = [c for c in _configs(kernel) if c["isa"] == isa]
        return min(_seconds(_on("softmax", 1, length, "f32"), kernel, c) for c in configs)

    for isa, claim in (("avx512", 28), ("avx2", 18)):
        three = ("softmax/native_three_pass_recompute", "softmax/native_three_pass_reload")
        gains = {
            n: min(best(k, isa, n) for k in three) / best("softmax/native_two_pass_pairs", isa, n) - 1.0
            for n in (1 << power for power in range(12, 25, 2))
        }
        most = max(gains, key=gains.__getitem__)
        expected = f"by up to {100.0 * gains[most]:.0f} % (at {most:,} elements). The paper claims up to {claim} %."
        assert f"{isa}, f32: the two-pass kernel beats both three-pass kernels at 7 of 7 lengths, {expected}" in page


def test_page_and_markdown_agree(page: str, markdown: str) -> None:
    def plain(cell: str) -> str:
        return cell.replace("\\|", "|").replace("&lt;", "<").replace("&amp;", "&").strip()

    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    written = [[plain(c).split("<br>")[0] for c in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    rows = [row for row in written if not all(set(cell) <= set("-: ") for cell in row)]
    shown = [[cell.split(" / ")[0].strip() for cell in row] for table in Tables(page).tables for row in table]
    assert rows == shown and len(rows) > 60
    titles = re.findall(r"<h2>(.*?)</h2>", page)
    assert titles == re.findall(r"^## (.*)$", markdown, re.MULTILINE) and len(titles) >= 10


def test_the_page_stands_alone(page: str, folder: Path) -> None:
    links = re.findall(r"(?:src|href|srcset)=\"([^\"]*)\"", page) + re.findall(r"url\(([^)]*)\)", page)
    assert links and all(link.startswith(("data:image/webp;base64,", "#")) for link in links)
    assert not re.search(r"https?://|@import|<script", page)
    anchors = {link[1:] for link in links if link.startswith("#")}
    assert anchors == set(re.findall(r'<section id="([^"]*)"', page))


def _png_size(path: Path) -> tuple[int, int]:
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG") and len(data) > 5_000
    return int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")


def test_every_picture_is_written_linked_and_of_the_expected_size(folder: Path, page: str, markdown: str) -> None:
    sizes = {path.stem: _png_size(path) for path in folder.glob("*.png")}
    assert set(sizes) == {
        *("models", "efficiency", "roofline-f32", "roofline-bf16", "bandwidth", "algorithms-f32"),
        *(f"spread-{family}" for family in ("softmax", "norms", "integer")),
        *(f"waterline-{number}" for number in (1, 2, 3, 4)),
    }
    assert {width for width, _ in sizes.values()} == {1440}
    assert sizes["roofline-f32"] == (1440, 864)
    assert set(re.findall(r"\]\((.*?)\.png\)", markdown)) == set(sizes)
    assert page.count("<img ") == page.count('media="(prefers-color-scheme: dark)" srcset') == len(sizes)


def test_the_same_evidence_gives_the_same_report(folder: Path, tmp_path: Path) -> None:
    write(build_evidence(), tmp_path)
    for path in folder.iterdir():
        assert path.read_bytes() == (tmp_path / path.name).read_bytes(), path.name


def _text(evidence: Evidence, out: Path) -> str:
    write(evidence, out)
    return (out / "report.md").read_text(encoding="utf-8")


def test_nothing_tried_yet_says_what_to_run(tmp_path: Path, evidence: Evidence) -> None:
    nothing = replace(evidence, trials=[], table=Table(MACHINE, ()), refusals=[], uncontrolled=[])
    text = _text(nothing, tmp_path)
    assert "Nothing was tried yet under this policy: run `perfsuite tune`." in text
    assert "run `perfsuite tune probes --threads 1`" in text and not list(tmp_path.glob("*.png"))


def test_without_probes_there_is_a_report_without_ceilings(tmp_path: Path, evidence: Evidence) -> None:
    text = _text(replace(evidence, trials=[t for t in evidence.trials if not t.kernel.startswith("probes")]), tmp_path)
    assert "No ceilings were measured with 1 thread: run `perfsuite tune probes --threads 1`" in text
    assert "Time is relative to the fastest kernel" in text
    names = {path.stem for path in tmp_path.glob("*.png")}
    assert "models" in names and not names & {"efficiency", "roofline-f32", "bandwidth", "waterline-1"}


def test_softmax_on_many_rows_alone_says_how_to_run_the_two_pass_experiment(tmp_path: Path) -> None:
    text = _text(build_evidence(SOFTMAX[:2]), tmp_path)
    assert "The Two-Pass experiment needs 3 lengths or more" in text
    assert "perfsuite tune 'softmax[rows=1,cols=65536,f32]'" in text


def test_ties_and_shares_above_the_ceiling_are_said(tmp_path: Path, evidence: Evidence) -> None:
    entry = evidence.table.entries[0]
    other = ("softmax/native_two_pass_pairs", Config.of(isa="avx2"))
    tied = replace(entry, ties=((entry.kernel, Config()), other), seconds=entry.seconds / 9.0)
    text = _text(replace(evidence, table=Table(MACHINE, (tied,))), tmp_path)
    assert "| 2<br><sub>native_two_pass_pairs</sub> |" in text and "Shares above 100 %" in text


def test_where_the_time_of_tuning_went(tmp_path: Path, evidence: Evidence) -> None:
    spans = (
        Span(BUILD, "build", 2.0, 42.0),
        Span(MEASURE, "survey", 2.0, 22.0),
        Span(MEASURE, "wait", 22.0, 32.0),
        Span(MEASURE, "search", 32.0, 92.0),
    )
    timeline = Timeline(str(POLICY), 180.0, CREATED, 100.0, spans)
    text = _text(replace(evidence, timeline=timeline), tmp_path)
    assert "took 1 min 40 s of a budget of 3 min 00 s" in text
    # 40 s of builds and 80 s of timing, 30 s of both at once.
    assert "One after the other that is 2 min 00 s, at best 1 min 20 s; it was 1 min 30 s, for 75 % of the" in text
    assert "| search | 1 min 00 s | 60 % |" in text
    assert (tmp_path / "timeline.png").exists()
    other = replace(timeline, policy=str(Policy(cache="cold")))
    assert "Where the time of tuning went" not in _text(replace(evidence, timeline=other), tmp_path)
    alone = replace(timeline, spans=spans[1:], budget=None)
    assert "No build ran beside the timing" in _text(replace(evidence, timeline=alone), tmp_path)


def test_only_failures(tmp_path: Path, evidence: Evidence) -> None:
    text = _text(replace(evidence, trials=_failed(), table=Table(MACHINE, ())), tmp_path)
    assert "Every trial failed: the reasons are below." in text and "4 trials gave no time" in text


def test_a_single_trial(tmp_path: Path, evidence: Evidence) -> None:
    alone = _trial(SOFTMAX[0], "softmax/eager", Config(), 1e-3)
    text = _text(replace(evidence, trials=[alone], table=Table(MACHINE, ())), tmp_path)
    assert "1 workload timed, and no winner raced yet" in text and "No trial failed." in text


def test_an_entry_without_its_trials_or_its_op_is_still_a_winner(tmp_path: Path, evidence: Evidence) -> None:
    entry = evidence.table.entries[0]
    unknown = replace(entry, workload=_on("removed_op", 3, 4, "f32"))
    text = _text(replace(evidence, trials=[], table=Table(MACHINE, (entry, unknown))), tmp_path)
    assert str(entry.workload) in text and "removed_op[rows=3,cols=4,f32]" in text


def test_twenty_thousand_trials_take_seconds(tmp_path: Path) -> None:
    many = [_on("softmax", rows, 1024, "f32") for rows in range(1, 290)]
    evidence = build_evidence([*SOFTMAX, *NORMS, *LINEAR, *many])
    assert len(evidence.trials) > 20_000
    start = time.process_time()
    write(evidence, tmp_path)
    assert time.process_time() - start < 15.0


def test_importing_perfsuite_imports_no_plotting() -> None:
    code = "import sys, perfsuite, perfsuite.roofline; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium or Chrome on the PATH")
def test_a_browser_loads_the_page(folder: Path, tmp_path: Path) -> None:
    assert CHROMIUM is not None
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1200,900"]
    target = (folder / "index.html").as_uri()
    picture = tmp_path / "page.png"
    loaded = subprocess.run(
        [*command, f"--screenshot={picture}", "--dump-dom", target],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert _png_size(picture) == (1200, 900)
    dom = Tables(loaded.stdout)
    assert dom.row(str(SOFTMAX[0]))["Verdict"] == "FASTER"
    assert loaded.stdout.count("<img ") == len(list(folder.glob("*.png")))


def _won(policy: Policy, seconds: dict[str, float], race: bool = True) -> tuple[Entry, list[Trial]]:
    """The fastest of these kernels under a policy, searched and (all of them, or the winner alone) raced."""
    workload = SOFTMAX[0]
    searched = [_trial(workload, kernel, Config(), 1.1 * s, policy=policy) for kernel, s in seconds.items()]
    best = min(seconds, key=seconds.__getitem__)
    raced = [
        replace(_trial(workload, kernel, Config(), s, policy=policy), stage="race", race=f"under {policy}")
        for kernel, s in seconds.items()
        if race or kernel == best
    ]
    ids = tuple(t.id for t in raced)
    entry = Entry(workload, policy, best, Config(), TODAY, seconds[best], Verdict.FASTER, trials=ids)
    return entry, [*searched, *raced]


@pytest.mark.parametrize("race", [True, False])
def test_regret_is_the_chosen_winners_time_where_the_other_won(evidence: Evidence, race: bool) -> None:
    warm = _won(Policy(), {"softmax/native_resident": 1e-6, "softmax/eager": 2e-6}, race)
    cold = _won(Policy(cache="cold"), {"softmax/native_resident": 9e-6, "softmax/eager": 6e-6}, race)
    threads = _won(Policy(threads=2), {"softmax/native_resident": 1e-6}, race)
    table = Table(MACHINE, (warm[0], cold[0], threads[0]))
    evidence = replace(evidence, trials=[*warm[1], *cold[1], *threads[1]], table=table)
    found, unknown = regret.regrets(evidence)
    ratios = {(r.chosen.policy.cache, r.right.policy.cache, r.right.policy.threads): r.ratio for r in found}
    assert ratios["cold", "warm", 1] == pytest.approx(2.0)
    assert ratios["warm", "cold", 1] == pytest.approx(1.5)
    assert unknown == 1, "what won under cold caches was not tried on two threads"
    assert found[0].ratio == max(r.ratio for r in found) and all(r.paired == (race or r.same) for r in found)
    section = regret.section(evidence)
    assert section is not None
    text = f"at worst 2.00× (`{SOFTMAX[0]}`, chosen cold, 1 thread, called warm, 1 thread)"
    assert "1 workload won" in section.words[0] and text in section.words[0]
    assert "Not counted: 1 winner " in section.words[-1]
    rows = [[cell.text for cell in row] for row in section.grids[1].rows]
    mark = "" if race else "~"
    worst = [str(SOFTMAX[0]), "cold, 1 thread", "eager", "warm, 1 thread", "native_resident", f"{mark}2.00×"]
    assert rows[0] == worst and len(rows) == 3


def test_regret_needs_two_policies_and_todays_code(evidence: Evidence) -> None:
    assert regret.section(evidence) is None
    warm = _won(Policy(), {"softmax/eager": 2e-6})
    cold = _won(Policy(cache="cold"), {"softmax/eager": 6e-6})
    stale = replace(cold[0], digest="yesterday")
    both = replace(evidence, trials=[*warm[1], *cold[1]], table=Table(MACHINE, (warm[0], cold[0])))
    assert [r.ratio for r in regret.regrets(both)[0]] == [1.0, 1.0]
    assert regret.section(replace(both, table=Table(MACHINE, (warm[0], stale)))) is None
