"""What the report of a synthetic machine says: the numbers, the reasons, the counts."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from pages import Tables
from synthetic import (
    COMPILE,
    LINEAR,
    MIB,
    NORMS,
    OPS,
    SOFTMAX,
    WRONG,
    configs_of,
    known_seconds,
    known_times,
    on,
)

from perfsuite import units
from perfsuite.op import Workload
from perfsuite.report import Evidence, algorithms, troubles
from perfsuite.report.picture import LIGHT
from perfsuite.trial import REMEDIES, Disturbance, Failure, FailureKind, Measurement


@pytest.mark.parametrize("workload", [*SOFTMAX, *NORMS, *LINEAR], ids=str)
def test_a_winner_row_says_what_the_times_say(page: str, workload: Workload) -> None:
    row, known = Tables(page).row(str(workload)), known_times(workload)
    winner = min(known, key=known.__getitem__)
    family = OPS[workload.op].family
    assert row["Kernel"].split(" / ")[0] == winner.removeprefix(f"{family}/")
    assert row["Time"] == units.seconds(known[winner])
    default, inductor = known[f"{family}/eager"], known[f"{family}/inductor"]
    assert row["Over default"] == f"{default / known[winner]:.2f}×"
    assert row["Over inductor"].lstrip("~") == f"{inductor / known[winner]:.2f}×"
    assert row["Verdict"].split(" / ")[0] == ("DEFAULT" if winner.endswith("/eager") else "FASTER")


def test_a_default_that_stood_shows_the_best_kernel_that_did_not_beat_it(page: str) -> None:
    known = known_times(LINEAR[0])
    expected = f"next: inductor {known['integer/eager'] / known['integer/inductor']:.2f}×"
    assert Tables(page).row(str(LINEAR[0]))["Verdict"] == f"DEFAULT / {expected}"


def test_shares_are_those_of_the_measured_ceilings(page: str) -> None:
    # 8 MiB lie in L3, where the copy probe measured exactly this footprint.
    softmax = on("softmax", 1, 1 << 20, "f32")
    row = Tables(page).row(str(softmax))
    copied = 4e-7 + 8 * MIB / 29e9
    assert row["Of ceiling"] == f"{100.0 * copied / known_times(softmax)['softmax/native_resident']:.0f} %"
    assert row["Bound by"] == "L3 bandwidth"
    assert row["Floor"] == f"{units.seconds(8 * MIB / 29e9)} / 1 + 1 passes"
    linear = LINEAR[1]
    ideal = 2.0 * 1024 * 768 * 3072 / 1.2e12
    row = Tables(page).row(str(linear))
    assert row["Of ceiling"] == f"{100.0 * ideal / known_times(linear)['integer/eager']:.0f} %"
    assert row["Bound by"] == "bf16 peak"
    # x is 1024 x 3072, w 768 x 3072 and y 1024 x 768.
    assert row["Floor"].endswith(" / 1.75 + 0.25 passes")


def test_model_times_are_sums_of_calls_times_time(page: str) -> None:
    row = Tables(page).row("BERT-base f32")
    parts = [(12, SOFTMAX[0]), (25, NORMS[0]), (12, LINEAR[0]), (12, LINEAR[2])]
    tuned = sum(calls * min(known_times(w).values()) for calls, w in parts)
    default = sum(calls * known_times(w)[f"{OPS[w.op].family}/eager"] for calls, w in parts)
    assert (row["Default"], row["Tuned"]) == (units.seconds(default), units.seconds(tuned))
    assert row["Gain"] == f"{default / tuned:.2f}×" and row["Workloads"] == "4"


def test_the_summary_counts(page: str, markdown: str, evidence: Evidence) -> None:
    ratios = []
    for workload in (*SOFTMAX, *NORMS, *LINEAR):
        known = known_times(workload)
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


def test_pruned_configs_are_counted_and_no_failures(evidence: Evidence) -> None:
    spilled = Failure(FailureKind.PRUNED, "spills 96 bytes of each thread's registers to memory on sm_90")
    trial = replace(evidence.used[0], outcome=spilled)
    section = troubles.pruned(replace(evidence, trials=[*evidence.trials, trial]))
    assert section is not None
    assert section.words[0].startswith("2 configs of") and "and 1 config because" in section.words[0]
    rows = [[cell.text for cell in row] for row in section.grids[0].rows]
    assert rows[0][:3] == ["softmax/triton_rows", "2", "estimated"] and rows[0][3].startswith("needs 300000 bytes")
    assert rows[1] == [trial.kernel, "1", "compiled", spilled.reason]
    assert len(replace(evidence, trials=[*evidence.trials, trial]).failed) == len(evidence.failed)
    assert troubles.pruned(replace(evidence, pruned=())) is None


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


def test_the_algorithms_have_a_picture_of_each_dtype_with_a_panel_for_each_number_of_threads(
    evidence: Evidence,
) -> None:
    few = [t for t in evidence.trials if t.workload in SOFTMAX[4:] and t.measurement and t.machine == evidence.machine]
    few = [t for t in few if t.policy == evidence.policy and not evidence.is_stale(t.kernel, t.digest)]
    both = [replace(t, policy=replace(t.policy, threads=2)) for t in few]
    half = [replace(t, workload=replace(t.workload, dtype="bf16")) for t in both]
    found = replace(evidence, trials=[*evidence.trials, *both, *half])
    shown = [(e.label, e.copied) for e in algorithms.experiments(found)]
    assert shown == [("f32, 1 thread", True), ("f32, 2 threads", False), ("bf16, 2 threads", False)]
    f32, bf16 = algorithms.pictures(found)
    assert (f32.name, bf16.name) == ("algorithms-f32", "algorithms-bf16")
    left, right = f32.draw(LIGHT).axes
    assert len(left.get_lines()) == len(right.get_lines()) and left.get_ylim() == right.get_ylim()
    assert left.get_ylabel() == "time over the fastest", "all panels are relative to the same"
    assert len(bf16.draw(LIGHT).axes) == 1


def test_the_two_pass_finding_is_measured_and_stands_beside_the_claim(page: str) -> None:
    def best(kernel: str, isa: str, length: int) -> float:
        configs = [c for c in configs_of(kernel) if c["isa"] == isa]
        return min(known_seconds(on("softmax", 1, length, "f32"), kernel, c) for c in configs)

    for isa, claim in (("avx512", 28), ("avx2", 18)):
        three = ("softmax/native_three_pass_recompute", "softmax/native_three_pass_reload")
        gains = {
            n: min(best(k, isa, n) for k in three) / best("softmax/native_two_pass_pairs", isa, n) - 1.0
            for n in (1 << power for power in range(12, 25, 2))
        }
        most = max(gains, key=gains.__getitem__)
        expected = f"by up to {100.0 * gains[most]:.0f} % (at {most:,} elements). The paper claims up to {claim} %."
        assert (
            f"{isa}, f32, 1 thread: the two-pass kernel beats both three-pass kernels at 7 of 7 lengths, {expected}"
            in page
        )
