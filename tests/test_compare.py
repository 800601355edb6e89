"""Comparisons: who takes part, what is kept, and a summary from rows whose answer is computed by hand."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from samples import MACHINE, trial, write_family

from perfsuite import detect, registry, standings, targets
from perfsuite.compare import Draw, Wish, _finalists, compare
from perfsuite.comparison import FLOOR, OTHER, OURS, Journal, Row
from perfsuite.kernel import Config
from perfsuite.policy import Policy
from perfsuite.roofline import Ceilings
from perfsuite.seeds import Seeds
from perfsuite.standings import mean

NAMES = {"copy": (FLOOR, "probes/eager"), "stream": (FLOOR, "probes/native_stream"), "eager": (OTHER, "norms/eager")}
NAMES |= {"ours": (OURS, "norms/native_rows"), "slower": (OURS, "norms/triton_rows")}
NAMES |= {"compiled": (OTHER, "norms/inductor"), "peer": (OTHER, "peers/jax_xla")}


def race(workload: str, level: str = "L2", **seconds: float) -> tuple[Row, ...]:
    def fastest(wanted: str) -> float | None:
        return min((s for n, s in seconds.items() if NAMES[n][0] == wanted), default=None)

    floor, other = fastest(FLOOR), fastest(OTHER)
    return tuple(
        Row(workload, level, *NAMES[n], "-", "d0", s, floor and s / floor, other and s / other, None)
        for n, s in seconds.items()
    )


def printed(*races: tuple[Row, ...], goals: bool = True) -> str:
    journal = Journal(MACHINE, Policy(), races={rows[0].workload: rows for rows in races})
    console = Console(file=io.StringIO(), width=200)
    standings.show(journal, console, goals=goals)
    return str(console.file.getvalue())  # type: ignore[attr-defined]


def test_our_fastest_against_the_fastest_floor_and_the_fastest_of_the_others() -> None:
    races = [
        race("rms_norm[rows=1,cols=8,f32]", stream=1, copy=2, ours=2, slower=3, eager=8, compiled=5, peer=4),
        race("rms_norm[rows=2,cols=8,f32]", "L1d", peer=2, ours=8, copy=1, eager=9),
        race("rms_norm[rows=1,cols=8,bf16]", copy=1, ours=3, compiled=2),
    ]
    single, half = standings.standings(races)
    assert (single.op, single.dtype, single.place) == ("rms_norm", "f32", "L2")
    assert [ratio.value for ratio in single.floor] == [8.0, 2.0]
    # A row took 4 s of two, and 2 s where it was alone.
    assert [ratio.at_best for ratio in single.floor] == [4.0, 2.0]
    assert mean(single.floor) == pytest.approx(4.0)
    assert mean(single.other) == pytest.approx(2.0**0.5)
    assert single.other[0].workload == "rms_norm[rows=2,cols=8,f32]"
    assert [ratio.at_best for ratio in half.floor] == [None]
    assert half.dtype == "bf16" and mean(half.other) == pytest.approx(1.5)


@pytest.mark.parametrize("lacking", ["copy", "ours", "eager"])
def test_nothing_is_said_where_one_of_them_is_missing(lacking: str) -> None:
    seconds = {"copy": 1.0, "ours": 2.0, "eager": 3.0}
    del seconds[lacking]
    assert standings.standings([race("rms_norm[rows=1,cols=8,f32]", "L2", **seconds)]) == []


def test_a_missed_target_is_shown_as_missed_with_the_shape_that_missed_it() -> None:
    text = printed(
        race("softmax[rows=1024,cols=50257,f32]", "DRAM", copy=1.0, ours=1.0, eager=2.0),
        race("softmax[rows=8192,cols=4096,f32]", "DRAM", copy=1.0, ours=1.1, eager=1.0),
        race("rms_norm_backward[rows=16,cols=64,bf16]", "L3", copy=1.0, ours=1.2, eager=3.0),
    )
    softmax, backward = (next(line for line in text.splitlines() if name in line) for name in ("softmax", "backward"))
    assert "1.05 (1.10) |" in softmax and "1.10 (1.25) |" in softmax
    assert "0.74 (0.80) |" in softmax and "1.10 (1.03) missed | 8192x4096" in softmax
    assert "1.20 (1.30) |" in backward and "0.40 (0.67) |" in backward and "missed" not in backward
    assert "7 of 8 targets met" in text and "3 of " in text and "shapes raced on Testor 9000" in text
    table = text[text.index("Worst where a target is missed") :]
    assert "best other | 8192x4096  |  1.10 |       - | norms/native_rows" in table and "backward" not in table


def test_an_op_without_targets_is_summed_up_without_a_verdict() -> None:
    text = printed(race("gelu[n=7,f32]", copy=1.0, ours=9.0, eager=1.0), goals=False)
    assert "gelu f32" in text and "9.00" in text and "missed" not in text


def test_the_grid_of_targets_fits_a_gibibyte() -> None:
    ops = registry.discover().ops
    grid = list(targets.workloads(ops))
    assert len(set(grid)) == len(grid)
    assert max(ops[w.op].least_bytes(w) for w in grid) <= 1 << 30
    names = {str(w) for w in grid}
    assert {"softmax[rows=1,cols=4194304,bf16]", "layer_norm_backward[rows=16384,cols=4096,f32]"} <= names
    assert "softmax[rows=8192,cols=50257,f32]" not in names
    assert {
        "batch_norm[n=8,c=64,h=56,w=56,f32]",
        "group_norm_backward_nhwc[n=2,c=320,h=64,w=64,groups=32,bf16]",
    } <= names
    goals = [targets.target(w.op, w.dtype, place) for w in grid for place in (targets.L2, targets.L3, targets.BEYOND)]
    assert None not in goals


def draw(*known: str) -> Draw:
    """Of a machine that knows configs of softmax/native_resident, other than the default, for these workloads."""
    found = registry.discover()
    native = found.kernels["softmax/native_resident"]
    trials = []
    for at, name in enumerate(known):
        # Odd rows cannot be streamed: such a config is in no space of theirs.
        plain = [config for config in native.space(found.workload(name), MACHINE) if not config["stream"]]
        trials.append(trial(str(native), workload=name, config=plain[-1 - at], digest=native.digest))
    return Draw(found, MACHINE, Policy(), Seeds(MACHINE, trials), Ceilings())


def test_a_shape_that_nobody_tuned_gets_the_nearest_winners_config_beside_the_default() -> None:
    near, far = "softmax[rows=64,cols=1024,f32]", "softmax[rows=1,cols=4096,f32]"
    drawn = draw(near, far)
    kernel = drawn.known.kernels["softmax/native_resident"]

    def configs(name: str) -> list[Config]:
        entrants = drawn.entrants(drawn.known.workload(name))
        return [e.candidate.config for e in entrants if str(e.candidate.kernel) == str(kernel)]

    best = drawn.seeds.best(drawn.known.workload(near), str(kernel))
    default = kernel.space(drawn.known.workload(near), MACHINE).configs[0]
    assert best is not None and best != default
    assert configs(near) == [best]
    assert configs("softmax[rows=64,cols=1000,f32]") == [best, default]


def test_what_compiles_slowly_is_built_ahead_unless_its_tensors_are_large() -> None:
    drawn = draw()
    ahead = drawn.slow_to_build(drawn.known.workload("softmax[rows=64,cols=1000,f32]"))
    assert {str(candidate.kernel) for candidate in ahead} == {"softmax/inductor"}
    assert drawn.slow_to_build(drawn.known.workload("softmax[rows=8192,cols=4096,f32]")) == []


@pytest.mark.parametrize(
    ("name", "probe", "level"),
    [
        ("softmax[rows=4,cols=256,f32]", "copy[elements=1024,passes=1,f32]", "L1d"),
        ("softmax[rows=512,cols=1024,bf16]", "copy[elements=262144,passes=1,f32]", "L2"),
        ("softmax_backward[rows=1024,cols=1024,f32]", "triad[elements=1048576,passes=1,f32]", "L3"),
        ("softmax[rows=8192,cols=4096,f32]", "copy[elements=33554432,passes=1,f32]", "DRAM"),
    ],
)
def test_the_floor_moves_as_many_bytes_in_the_same_place(name: str, probe: str, level: str) -> None:
    drawn = draw()
    workload = drawn.known.workload(name)
    entrants = drawn.entrants(workload)
    floors = [e.candidate for e in entrants if e.role == FLOOR]
    assert {str(f.workload) for f in floors} == {probe}
    assert {str(f.kernel) for f in floors} == {"probes/eager", "probes/native_stream"}
    assert drawn.level(workload) == level
    others = {str(e.candidate.kernel) for e in entrants if e.role == OTHER}
    assert f"{drawn.known.ops[workload.op].family}/eager" in others


def test_a_trial_heat_leaves_the_fastest_of_each_role_and_who_is_near() -> None:
    drawn = draw()
    entrants = drawn.entrants(drawn.known.workload("softmax[rows=4,cols=256,f32]"))
    ours, others, floors = ([e for e in entrants if e.role == role] for role in (OURS, OTHER, FLOOR))
    assert len(ours) > 3 and len(others) > 1
    # Seconds: of ours 1.0, 1.2, 1.4 and so on; each further one of the others and of the floors takes twice as long.
    seconds = {id(e): 1.0 + 0.2 * at for at, e in enumerate(ours)}
    seconds |= {id(e): 2.0**at for few in (others, floors) for at, e in enumerate(few)}
    left = _finalists(entrants, [[seconds[id(e)]] * 4 for e in entrants])
    assert left == [floors[0], *ours[:3], others[0]]


def test_a_journal_goes_on_after_a_line_that_was_never_finished(tmp_path: Path) -> None:
    path = tmp_path / "new" / "races.jsonl"
    first, second = race("twice[n=1]", copy=1, ours=2), race("twice[n=2]", copy=1, ours=3)
    Journal.resume(path, MACHINE, Policy()).add(first)
    with path.open("a") as file:
        file.write('[{"workload": "twi')
    again = Journal.resume(path, MACHINE, Policy())
    assert again.races == {"twice[n=1]": first}
    again.add(second)
    assert Journal.load(path).races == {"twice[n=1]": first, "twice[n=2]": second}
    assert again.has("twice[n=1]", {"probes/eager": "d0", "norms/native_rows": "d0"})
    assert not again.has("twice[n=1]", {"probes/eager": "d0", "norms/native_rows": "today's"})
    for machine, policy in ((replace(MACHINE, cpu="Another"), Policy()), (MACHINE, Policy(threads=2))):
        with pytest.raises(ValueError, match="another machine, environment or policy: name another file"):
            Journal.resume(path, machine, policy)
    with pytest.raises(ValueError, match="measured without --peers"):
        Journal.resume(path, MACHINE, Policy(), peers=True)


def test_what_is_no_journal_is_said(tmp_path: Path) -> None:
    for text in ("", "hello\n", "{}\n"):
        (tmp_path / "file").write_text(text)
        with pytest.raises(ValueError, match="holds no comparison"):
            Journal.load(tmp_path / "file")


@pytest.mark.quiet
def test_a_comparison_keeps_its_races_and_goes_on_from_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PERFSUITE_KERNELS", str(write_family(tmp_path / "toys")))
    workload = registry.discover().workload("twice[n=4096]")
    monkeypatch.setattr(targets, "workloads", lambda ops: iter([workload]))
    out = tmp_path / "races.jsonl"
    wish = Wish(("twice",), Policy(), rounds=8, grid=True, out=out)
    (rows,) = compare(wish).races.values()
    kernels = {row.kernel for row in rows}
    # A probe that is far behind the other leaves in the trial heat.
    assert {"toys/eager"} < kernels <= {"toys/eager", "probes/eager", "probes/native_stream"}
    assert {row.role for row in rows} == {OTHER, FLOOR}
    assert min(row.against_floor or 0.0 for row in rows if row.role == FLOOR) <= 1.05
    assert "1/1 twice[n=4096,f32]" in capsys.readouterr().err
    held = out.read_text()
    assert len(held.splitlines()) == 2 and json.loads(held.splitlines()[1])[0]["workload"] == "twice[n=4096,f32]"
    assert compare(wish).races == {"twice[n=4096,f32]": rows} and out.read_text() == held
    with pytest.raises(ValueError, match="there are no targets for softmax"):
        compare(replace(wish, patterns=("softmax",)))


def test_without_a_gpu_a_policy_of_one_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detect, "machine", lambda: replace(MACHINE, gpus=()))
    with pytest.raises(ValueError, match="--policy cuda: perfsuite sees no GPU here"):
        compare(Wish(("softmax",), Policy(device="cuda"), 8))
