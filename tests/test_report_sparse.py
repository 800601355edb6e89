"""Reports of little, odd or very much evidence."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from synthetic import CREATED, LINEAR, MACHINE, NORMS, POLICY, SOFTMAX, build_evidence, failures, on, timed

from perfsuite.kernel import Config
from perfsuite.policy import Policy
from perfsuite.report import Evidence, write
from perfsuite.table import Table
from perfsuite.timeline import BUILD, MEASURE, Span, Timeline


def written(evidence: Evidence, out: Path) -> str:
    write(evidence, out)
    return (out / "report.md").read_text(encoding="utf-8")


def test_nothing_tried_yet_says_what_to_run(tmp_path: Path, evidence: Evidence) -> None:
    nothing = replace(evidence, trials=[], table=Table(MACHINE, ()), refusals=[], uncontrolled=[])
    text = written(nothing, tmp_path)
    assert "Nothing was tried yet under this policy: run `perfsuite tune`." in text
    assert "run `perfsuite tune probes --threads 1`" in text and not list(tmp_path.glob("*.png"))


def test_without_probes_there_is_a_report_without_ceilings(tmp_path: Path, evidence: Evidence) -> None:
    text = written(
        replace(evidence, trials=[t for t in evidence.trials if not t.kernel.startswith("probes")]), tmp_path
    )
    assert "No ceilings were measured with 1 thread: run `perfsuite tune probes --threads 1`" in text
    assert "Time is relative to the fastest kernel" in text
    names = {path.stem for path in tmp_path.glob("*.png")}
    assert "models" in names and not names & {"efficiency", "roofline-f32", "bandwidth", "waterline-1"}


def test_softmax_on_many_rows_alone_says_how_to_run_the_two_pass_experiment(tmp_path: Path) -> None:
    text = written(build_evidence(SOFTMAX[:2]), tmp_path)
    assert "The Two-Pass experiment needs 3 lengths or more" in text
    assert "perfsuite tune 'softmax[rows=1,cols=65536,f32]'" in text


def test_ties_and_shares_above_the_ceiling_are_said(tmp_path: Path) -> None:
    evidence = build_evidence(SOFTMAX[:1])
    entry = evidence.table.entries[0]
    other = ("softmax/native_two_pass_pairs", Config.of(isa="avx2"))
    tied = replace(entry, ties=((entry.kernel, Config()), other), seconds=entry.seconds / 9.0)
    text = written(replace(evidence, table=Table(MACHINE, (tied,))), tmp_path)
    assert "| 2<br><sub>native_two_pass_pairs</sub> |" in text and "Shares above 100 %" in text


def test_where_the_time_of_tuning_went(tmp_path: Path) -> None:
    evidence = build_evidence(SOFTMAX[:1])  # few pictures: this is about one more
    spans = (
        Span(BUILD, "build", 2.0, 42.0),
        Span(MEASURE, "survey", 2.0, 22.0),
        Span(MEASURE, "wait", 22.0, 32.0),
        Span(MEASURE, "search", 32.0, 92.0),
    )
    timeline = Timeline(str(POLICY), 180.0, CREATED, 100.0, spans)
    text = written(replace(evidence, timeline=timeline), tmp_path)
    assert "took 1 min 40 s of a budget of 3 min 00 s" in text
    # 40 s of builds and 80 s of timing, 30 s of both at once.
    assert "One after the other that is 2 min 00 s, at best 1 min 20 s; it was 1 min 30 s, for 75 % of the" in text
    assert "| search | 1 min 00 s | 60 % |" in text
    assert (tmp_path / "timeline.png").exists()
    other = replace(timeline, policy=str(Policy(cache="cold")))
    assert "Where the time of tuning went" not in written(replace(evidence, timeline=other), tmp_path)
    alone = replace(timeline, spans=spans[1:], budget=None)
    assert "No build ran beside the timing" in written(replace(evidence, timeline=alone), tmp_path)


def test_only_failures(tmp_path: Path, evidence: Evidence) -> None:
    text = written(replace(evidence, trials=failures(), table=Table(MACHINE, ())), tmp_path)
    assert "Every trial failed: the reasons are below." in text and "4 trials gave no time" in text


def test_a_single_trial(tmp_path: Path, evidence: Evidence) -> None:
    alone = timed(SOFTMAX[0], "softmax/eager", Config(), 1e-3)
    text = written(replace(evidence, trials=[alone], table=Table(MACHINE, ())), tmp_path)
    assert "1 workload timed, and no winner raced yet" in text and "No trial failed." in text


def test_an_entry_without_its_trials_or_its_op_is_still_a_winner(tmp_path: Path, evidence: Evidence) -> None:
    entry = evidence.table.entries[0]
    unknown = replace(entry, workload=on("removed_op", 3, 4, "f32"))
    text = written(replace(evidence, trials=[], table=Table(MACHINE, (entry, unknown))), tmp_path)
    assert str(entry.workload) in text and "removed_op[rows=3,cols=4,f32]" in text


def test_twenty_thousand_trials_take_seconds(tmp_path: Path) -> None:
    many = [on("softmax", rows, 1024, "f32") for rows in range(1, 290)]
    evidence = build_evidence([*SOFTMAX, *NORMS, *LINEAR, *many])
    assert len(evidence.trials) > 20_000
    start = time.process_time()
    write(evidence, tmp_path)
    assert time.process_time() - start < 15.0
