"""`perfsuite tune` for real: a user's own kernels, good and broken, killed and resumed."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from samples import BROKEN, write_family

from perfsuite import cli
from perfsuite.results import Results
from perfsuite.timeline import Timeline
from perfsuite.trial import FailureKind, Trial


def environment(kernels: Path, **more: str) -> dict[str, str]:
    return {**os.environ, "PERFSUITE_KERNELS": str(kernels), **more}


def perfsuite(kernels: Path, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "perfsuite.cli", *words]
    return subprocess.run(command, capture_output=True, text=True, env=environment(kernels, **more), timeout=300)


def tune(kernels: Path, *words: str, **more: str) -> dict[str, Any]:
    done = perfsuite(kernels, "tune", "--quick", "--no-ceilings", "--json", *words, **more)
    assert done.returncode == 0, done.stderr
    summary: dict[str, Any] = json.loads(done.stdout)
    return summary


def trials(database: Path) -> list[Trial]:
    with Results.open(f"sqlite:///{database}") as results:
        return results.trials()


@pytest.mark.quiet  # a limit of 8 s
def test_broken_kernels_fail_with_readable_reasons_and_the_rest_is_tuned(tmp_path: Path, own_database: Path) -> None:
    write_family(tmp_path / "toys", *BROKEN, "not_compiling", "unfit")
    summary = tune(tmp_path / "toys", "twice", PERFSUITE_LIMIT_CHECK="8")
    assert summary["failed"] == 8
    failures = {t.kernel.partition("/")[2]: t.failure for t in trials(own_database) if t.failure}
    expected = {
        "segfault": (FailureKind.CRASH, "SIGSEGV"),
        "endless": (FailureKind.TIMEOUT, "did not end within 8 s"),
        "garbage": (FailureKind.WRONG, "instead of"),
        "raises": (FailureKind.ERROR, "no luck today"),
        "unwritten": (FailureKind.WRONG, "nan instead of"),
        "vandal": (FailureKind.WRONG, "changes its input x"),
        "not_compiling": (FailureKind.BUILD, "broken.cpp"),
        "unfit": (FailureKind.PRUNED, "spills 96 bytes"),
    }
    for name, (kind, says) in expected.items():
        failure = failures[name]
        assert failure is not None
        assert failure.kind is kind, failure
        assert says in failure.reason
    assert any(t.kernel == "toys/eager" and t.stage == "race" for t in trials(own_database))
    # A failure is knowledge: the second run repeats nothing.
    again = tune(tmp_path / "toys", "twice")
    assert (again["trials_new"], again["trials_known"]) == (0, summary["trials_new"])


def test_check_survives_a_crash_and_names_what_is_wrong(tmp_path: Path) -> None:
    family = write_family(tmp_path / "toys", "segfault", "garbage")
    done = perfsuite(family, "check", "toys", "--json")
    assert done.returncode == 1
    reasons = {finding["kernel"]: finding["reason"] for finding in json.loads(done.stdout)}
    assert reasons["toys/eager"] is None
    assert reasons["toys/segfault"] == "crashed the process"
    assert "instead of" in reasons["toys/garbage"]


def test_a_shape_that_no_model_has_is_tuned_too(tmp_path: Path, own_database: Path) -> None:
    write_family(tmp_path / "toys")
    tune(tmp_path / "toys", "twice[n=12345,f32]")
    assert {str(t.workload) for t in trials(own_database)} == {"twice[n=12345,f32]"}
    best = perfsuite(tmp_path / "toys", "best", "twice", "--json")
    (entry,) = json.loads(best.stdout)
    assert entry["kernel"] == "toys/eager"


def test_changed_code_is_measured_again(tmp_path: Path, own_database: Path) -> None:
    family = write_family(tmp_path / "toys")
    tune(family, "twice")
    (family / "eager.py").write_text((family / "eager.py").read_text() + "# another version\n")
    assert tune(family, "twice")["trials_new"] > 0


def test_two_processes_tune_into_one_file(tmp_path: Path, own_database: Path) -> None:
    write_family(tmp_path / "toys")
    command = [sys.executable, "-m", "perfsuite.cli", "tune", "--quick", "--no-ceilings", "--json"]
    running = [
        subprocess.Popen([*command, f"twice[n={n},f32]"], env=environment(tmp_path / "toys"), stdout=subprocess.PIPE)
        for n in (1000, 2000)
    ]
    outputs = [process.communicate(timeout=200)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0]
    assert sum(json.loads(output)["trials_new"] for output in outputs) == len(trials(own_database))


@pytest.mark.parametrize("delay", [pytest.param(d, marks=pytest.mark.slow if d != 3 else ()) for d in range(1, 11)])
def test_killed_at_a_random_moment_it_loses_at_most_one_trial(tmp_path: Path, own_database: Path, delay: int) -> None:
    family = write_family(tmp_path / "toys", "raises")
    shapes = [f"twice[n={n},f32]" for n in range(2000, 2012)]
    command = [sys.executable, "-m", "perfsuite.cli", "tune", "--quick", "--no-ceilings", *shapes]
    process = subprocess.Popen(command, env=environment(family), stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(delay * random.random())
    process.send_signal(signal.SIGKILL)
    told = process.stdout.read().count("✗")
    process.wait()
    kept = trials(own_database)
    assert sum(t.failure is not None for t in kept) >= told - 1
    summary = tune(family, *shapes)
    assert summary["trials_new"] + len(kept) == len(trials(own_database))
    assert {str(t.workload) for t in trials(own_database) if t.stage == "race"} == set(shapes)


def test_ctrl_c_keeps_everything_and_says_how_to_go_on(tmp_path: Path, own_database: Path) -> None:
    family = write_family(tmp_path / "toys", "raises")
    shapes = [f"twice[n={n},f32]" for n in range(2000, 2012)]
    command = [sys.executable, "-m", "perfsuite.cli", "tune", "--quick", "--no-ceilings", *shapes]
    process = subprocess.Popen(
        command, env=environment(family), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for _ in range(4):
        process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "everything measured is kept" in errors
    assert "the same command goes on" in errors
    assert trials(own_database)
    (timeline,) = tmp_path.glob("*/timeline.json")
    assert Timeline.load(timeline).spans


@pytest.mark.quiet
def test_a_budget_is_kept(tmp_path: Path, own_database: Path) -> None:
    family = write_family(tmp_path / "toys")
    start = time.monotonic()
    summary = tune(family, "--budget", "8s", *(f"twice[n={n},f32]" for n in range(3000, 3400)))
    assert not summary["complete"]
    assert summary["budget"] == 8.0
    assert summary["left"] > 0
    assert summary["searched"] + summary["shortened"] + summary["left"] == 400
    assert time.monotonic() - start < 40


@pytest.mark.quiet
def test_what_a_budget_left_is_done_by_the_same_command(tmp_path: Path, own_database: Path) -> None:
    family = write_family(tmp_path / "toys")
    shapes = [f"twice[n={n},f32]" for n in range(3000, 3040)]
    first = tune(family, "--budget", "5s", *shapes)
    assert first["left"] > 0
    second = tune(family, *shapes)
    assert (second["complete"], second["searched"]) == (True, 40)
    kept = trials(own_database)
    assert first["trials_new"] + second["trials_new"] == len(kept)
    assert {str(t.workload) for t in kept if t.stage == "race"} == set(shapes)
    third = tune(family, *shapes)
    assert (third["trials_new"], third["trials_known"], third["complete"]) == (0, len(kept), True)


def test_most_is_to_gain_where_a_model_spends_its_time(tmp_path: Path) -> None:
    family = write_family(tmp_path / "toys")
    ops = (family / "ops.py").read_text()
    calls = {4100: 3, 4200: 90, 4300: 20}
    models = ", ".join(f'({{"n": {n}}}, ["f32"], {{"Toy b=1": {often}}})' for n, often in calls.items())
    (family / "ops.py").write_text(ops.replace('({"n": 4096}, ["f32"], {"Toy b=1": 1})', models))
    done = perfsuite(family, "tune", "--quick", "--no-ceilings", "twice")
    raced = [line for line in done.stdout.splitlines() if line.startswith("twice[")]
    assert [line.partition(",")[0] for line in raced] == ["twice[n=4200", "twice[n=4300", "twice[n=4100"]
    assert "No budget: " in done.stdout
    assert "3 of 3 workloads searched" in done.stdout


def test_wrong_requests_say_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PERFSUITE_KERNELS", str(write_family(tmp_path / "toys")))
    for words, says in (
        (("tune", "softmux"), "did you mean softmax"),
        (("tune", "twice[m=3]"), "axes of twice are n"),
        (("tune", "--budget", "soon", "twice"), "90s, 10m or 2h"),
        (("tune", "--strategy", "luck", "twice"), "none of evolutionary"),
        (("tune", "--threads", "4096", "twice"), "cores"),
        (("tune", "--policy", "lukewarm", "twice"), "lukewarm"),
        (("import", str(tmp_path / "nothing.jsonl")), "cannot be read"),
    ):
        monkeypatch.setattr(sys, "argv", ["perfsuite", *words])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == 2, words
        said = capsys.readouterr().err
        assert says in said
        assert "Traceback" not in said


def test_the_process_of_a_wrong_request_ends_alike(tmp_path: Path) -> None:
    done = perfsuite(write_family(tmp_path / "toys"), "tune", "softmux")
    assert done.returncode == 2
    assert "did you mean softmax" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_file_that_cannot_be_imported_is_left_out_with_a_word(tmp_path: Path) -> None:
    family = write_family(tmp_path / "toys")
    (family / "broken_import.py").write_text("import a_module_that_nobody_has\n")
    done = perfsuite(family, "tune", "--quick", "--no-ceilings", "twice")
    assert done.returncode == 0
    assert "broken_import.py is left out: ModuleNotFoundError" in done.stderr
