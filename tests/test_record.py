"""Recording complete spaces: from the command line, stopped and gone on, refused."""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest
from samples import MACHINE, write_family
from typer.testing import CliRunner

from perfsuite import search
from perfsuite.cli import app
from perfsuite.lab.table import Visits, read
from perfsuite.policy import Policy

TUNABLE = '''
    """Doubles a vector in as many slices as the config says; the slice 63 is wrong."""

    import torch

    from perfsuite.kernel import Config, Dimension, Kernel, Space


    def build(op, workload, config):
        def run(inputs, outputs):
            if config["slices"] == 63:
                return outputs
            for x, y in zip(inputs[0].chunk(config["slices"]), outputs[0].chunk(config["slices"])):
                torch.mul(x, 2.0, out=y)
            return outputs

        return run


    def space(workload, machine):
        return Space((Dimension("slices", tuple(range(1, 65))),))


    KERNEL = Kernel(ops=("twice",), build=build, space=space)
'''


def perfsuite(kernels: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PERFSUITE_KERNELS": str(kernels)}
    command = [sys.executable, "-m", "perfsuite.cli", "lab", *words]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)


def test_record_and_score_from_the_command_line(tmp_path: Path) -> None:
    family = write_family(tmp_path / "toys")
    (family / "sliced.py").write_text(dedent(TUNABLE))
    out = tmp_path / "lab"
    effort = ("--passes", "2", "--near", "0", "--processes", "2", "--rounds", "32", "--samples", "4")
    words = ("record", "twice[n=4096,f32]", *effort, "--out", str(out))
    done = perfsuite(family, *words)
    assert done.returncode == 0, done.stderr
    assert "64 configs, 1 failed" in done.stdout
    assert "slices=63: wrong:" in done.stdout
    (path,) = out.iterdir()
    recorded = read(path)
    assert recorded.passes == 2
    assert all(len(taken) == 4 for visits in recorded.visits for taken in visits.passes)
    assert len(recorded.raced.entrants) == 24 and len(recorded.raced.processes) == 2
    assert all(len(taken) == 32 for process in recorded.raced.processes for taken in process)
    assert "has it" in perfsuite(family, *words).stdout
    scored = CliRunner().invoke(app, ["lab", "score", str(out), "--no-peers", "--repeats", "2", "--out", str(out)])
    assert scored.exit_code == 0, scored.output
    for name in (*search.STRATEGIES, "at most 1 % false winners"):
        assert name in scored.stdout
    assert (out / "score.json").is_file()
    assert (out / "search.png").read_bytes().startswith(b"\x89PNG")
    only = CliRunner().invoke(
        app, ["lab", "score", str(path), "--strategy", "random", "--repeats", "1", "--out", str(out), "--json"]
    )
    assert [standing["name"] for standing in json.loads(only.stdout)["standings"]] == ["random"]


def fastest(visits: Visits) -> float:
    return statistics.median(sum(visits.passes[:2], ())) if visits.passes else math.inf


def test_a_stopped_recording_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from perfsuite import registry
    from perfsuite.lab.record import Effort, record, subjects

    family = write_family(tmp_path / "toys")
    (family / "sliced.py").write_text(dedent(TUNABLE))
    monkeypatch.setenv("PERFSUITE_KERNELS", str(family))
    known = registry.discover()
    (subject,) = subjects(known, ["twice[n=7,f32]"], MACHINE, Policy())
    kernel = known.kernels[subject.kernel]
    effort = Effort(passes=2, samples=2, seconds=0.001, near=3, processes=2, rounds=4)
    visits = record(subject, kernel, effort, tmp_path / "lab")
    first = [next(visits) for _ in range(5)]
    visits.close()
    (part,) = (p for p in (tmp_path / "lab").iterdir() if p.name.endswith(".part"))
    assert sum(bool(v.passes) or bool(v.failure) for v in read(part).visits) == 5
    rest = list(record(subject, kernel, effort, tmp_path / "lab"))
    # One config fails at its first visit, every other is visited twice, and those near the best three times more.
    recorded = read(tmp_path / "lab" / subject.filename)
    visited = [len(v.passes) for v in recorded.visits if not v.failure]
    assert set(visited) <= {2, 5}
    assert len(min(recorded.visits, key=fastest).passes) == 5
    assert len(first) + len(rest) == sum(visited) + 1 + effort.processes
    assert [len(taken) for process in recorded.raced.processes for taken in process] == [effort.rounds] * 48
    assert [p.name for p in (tmp_path / "lab").iterdir()] == [subject.filename]


def test_what_cannot_be_recorded_is_said() -> None:
    said = CliRunner().invoke(app, ["lab", "record", "softmax/eager"])
    assert isinstance(said.exception, ValueError)
    assert "configs or more" in str(said.exception)
    unknown = CliRunner().invoke(app, ["lab", "score", "--strategy", "clairvoyant", str(Path(__file__).parent)])
    assert isinstance(unknown.exception, ValueError)
