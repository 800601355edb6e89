"""The commands that only show things, and what tuning prints as it goes."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Sequence

import pytest
from rich.console import Console
from samples import MACHINE
from typer.testing import CliRunner

from perfsuite import catalogue, registry
from perfsuite.cli import app
from perfsuite.events import Event, Raced, Started, Tried
from perfsuite.kernel import Config
from perfsuite.progress import progress
from perfsuite.trial import Failure, FailureKind, Measurement

KNOWN = registry.discover()
WORKLOAD = KNOWN.workload("softmax[rows=64,cols=1024,f32]")


def test_list_shows_spaces_and_refusals() -> None:
    listed = json.loads(CliRunner().invoke(app, ["list", "softmax", "--json"]).stdout)
    assert {entry["family"] for entry in listed} == {"softmax"}
    entry = next(entry for entry in listed if entry["op"] == "softmax")
    kernels = {kernel["name"]: kernel for kernel in entry["kernels"]}
    assert kernels["softmax/eager"]["largest"] == 1
    for kernel in kernels.values():
        assert (kernel["largest"] > 0) or kernel["refusals"], "a kernel has a space or a reason"
    assert "softmax[rows=64,cols=50257,f32]" in entry["workloads"]


def test_list_on_a_terminal_names_every_kernel() -> None:
    console = Console(file=io.StringIO(), width=100)
    catalogue.show(catalogue.entries("norms"), console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    for kernel in KNOWN.kernels_for("rms_norm"):
        assert str(kernel) in text
    assert "(default)" in text


def tried(at: int, outcome: Measurement | Failure, best: float) -> Tried:
    kernel = KNOWN.kernels["softmax/eager"]
    return Tried(WORKLOAD, kernel, Config.of(n=at), outcome, False, at, 2, best, 2e-5, 5e-6)


EVENTS: Sequence[Event] = (
    Started(1, 2, ()),
    tried(1, Failure(FailureKind.CRASH, "the process was killed by SIGSEGV"), math.inf),
    tried(2, Measurement((1e-5,)), 1e-5),
    Raced(WORKLOAD, 2, False),
)


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_tells_the_best_its_speed_up_its_share_and_every_failure(terminal: bool) -> None:
    console = Console(file=io.StringIO(), force_terminal=terminal, width=120, color_system=None)
    with progress(console, None) as shown:
        for event in EVENTS:
            shown.show(event)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "softmax[rows=64,cols=1024,f32]: 10.0 us, 2.00x eager, 50 % of the ceiling, 2 trials" in text
    assert "crash: the process was killed by SIGSEGV" in text
    assert terminal or "\x1b" not in text


def test_quiet_progress_prints_nothing() -> None:
    console = Console(file=io.StringIO())
    with progress(console, None, quiet=True) as shown:
        for event in EVENTS:
            shown.show(event)
    assert console.file.getvalue() == ""  # type: ignore[attr-defined]


def test_a_machine_goes_to_json_and_back() -> None:
    assert type(MACHINE).from_json(json.loads(json.dumps(MACHINE.to_json()))) == MACHINE
