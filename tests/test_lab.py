"""The laboratory: tables whose optimum is known, and scores computed by hand."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from samples import MACHINE

from perfsuite import leaderboard, search
from perfsuite.kernel import Config, Dimension, Scale, Space
from perfsuite.lab import deciding, score, seeded, targets, ways
from perfsuite.lab.peers import PEERS
from perfsuite.lab.replay import Evaluations, Replay, Tape, Trace, player
from perfsuite.lab.table import LabTable, Raced, Subject, TableError, Visits, read, shelf
from perfsuite.leaderboard import Leaderboard, Standing, Way
from perfsuite.op import Workload
from perfsuite.policy import Policy
from perfsuite.report.picture import DARK, LIGHT
from perfsuite.report.search import section

WORKLOAD = Workload.parse("softmax[rows=64,cols=1024,f32]")


def allowed(config: Config) -> bool:
    return bool(config["unroll"] * config["rows"] <= 28)


LINE = Space((Dimension("at", tuple(range(10))),))
BOX = Space(
    (
        Dimension("isa", ("avx2", "avx512"), Scale.CATEGORICAL),
        Dimension("unroll", (1, 2, 4, 8), Scale.POWERS),
        Dimension("stream", (False, True)),
        Dimension("rows", tuple(range(8))),
    ),
    allows=allowed,
    default=Config.of(isa="avx2", unroll=1, stream=True, rows=0),
)


def table(space: Space, seconds: Callable[[Config], float], spread: float = 0.0, passes: int = 4) -> LabTable:
    """Samples that alternate `spread` above and below their middle; an infinite middle is a failure."""
    visits = []
    for config in space:
        middle = seconds(config)
        taken = tuple(middle * (1.0 + spread * (-1) ** k) for k in range(8))
        visits.append(
            Visits((taken,) * passes, 5, 0.25) if math.isfinite(middle) else Visits(failure="crash: it fell over")
        )
    return LabTable(Subject(MACHINE, WORKLOAD, "softmax/toy", "d0", Policy(), space), tuple(visits), 1.0e9)


def tape(space: Space, seconds: Callable[[Config], float], spread: float = 0.0) -> Tape:
    return Tape(table(space, seconds, spread))


def bowl(config: Config) -> float:
    """One optimum, at avx512, unroll 4, stream, rows 5; every step away costs a tenth or more; one config fails."""
    if config == Config.of(isa="avx512", unroll=8, stream=False, rows=0):
        return math.inf
    steps = abs(config["rows"] - 5) + abs(config["unroll"].bit_length() - 3)
    return 1e-6 * 1.1 ** int(steps) * (1.0 if config["isa"] == "avx512" else 1.5) * (1.0 if config["stream"] else 1.2)


def test_a_table_comes_back_from_its_file_unchanged(tmp_path: Path) -> None:
    recorded = table(BOX, bowl, spread=0.01)
    recorded.save(tmp_path / "deep" / recorded.subject.filename)
    (path,) = (tmp_path / "deep").iterdir()
    back = read(path)
    assert path.name == f"softmax-toy--softmax-rows64-cols1024-f32--{MACHINE.slug}.json.xz"
    elsewhere = replace(recorded.subject, machine=replace(MACHINE, cpu="Another 1"))
    assert elsewhere.filename != path.name, "two machines' tables lie side by side"
    assert back.subject.key == recorded.subject.key
    assert back.passes == 4
    assert path.stat().st_size < 5_000
    for was, now in zip(recorded.visits, back.visits, strict=True):
        assert (now.failure, now.calls, now.build_seconds) == (was.failure, was.calls, was.build_seconds)
        assert [list(taken) for taken in now.passes] == [pytest.approx(taken, rel=5e-5) for taken in was.passes]


def test_bad_files_are_named_and_left_out_or_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="perfsuite lab record PATTERN"):
        shelf([tmp_path])
    table(LINE, lambda c: 1e-6).save(tmp_path / "good.json.xz")
    foreign = tmp_path / "foreign.json.xz"
    foreign.write_bytes(b"not compressed at all")
    table(LINE, lambda c: 1e-6, passes=1).save(tmp_path / "short.json.xz")
    found = shelf([tmp_path])
    assert len(found.tables) == 1
    assert len(found.problems) == 2
    assert any("foreign.json.xz is no table" in problem for problem in found.problems)
    assert any("short.json.xz has 1 passes" in problem for problem in found.problems)
    with pytest.raises(TableError, match="foreign"):
        shelf([foreign])
    with pytest.raises(TableError, match="absent"):
        shelf([tmp_path / "absent.json.xz"])


def in_order(replay: Replay) -> list[int]:
    """How exhaustive search goes through a table: from its start, then in the order of the dimensions."""
    return [replay.start, *(at for at in range(len(replay.works)) if at != replay.start)]


@pytest.mark.parametrize("best", [0, 3, 9])
def test_exhaustive_finds_the_optimum_after_exactly_as_many_evaluations(best: int) -> None:
    times = [2e-6] * 10
    times[2], times[best] = 1.04e-6, 1e-6
    replay = Replay(tape(LINE, lambda c: times[c["at"]]), seed=1)
    played = score.play(replay, 0, player(search.STRATEGIES["exhaustive"]), races=False)
    order = in_order(replay)
    assert played.to_1 == order.index(best) + 1
    assert played.to_5 == min(order.index(best), order.index(2)) + 1
    # A build of 0.25 s each, and 8 samples of 5 calls.
    assert played.seconds_to_5 == pytest.approx(sum(0.25 + 40 * times[at] for at in order[: played.to_5]))
    assert played.regret_after(played.to_1) == pytest.approx(0.0)
    assert played.regret_at(0.0) == played.regrets[0]
    assert not played.false_winner


def test_never_arriving_costs_the_whole_space() -> None:
    replay = Replay(tape(LINE, lambda c: 1e-6 * (2.0 - 0.1 * c["at"])), seed=1)
    played = score.play(replay, 0, lambda replay, enough: Trace((0, 1, 2)), races=False)
    assert (played.to_5, played.to_1) == (10, 10)
    assert played.seconds_to_5 == pytest.approx(float(replay.wall.sum()))
    assert played.pick_regret == pytest.approx(1.8 / 1.1 - 1.0)
    assert not played.false_winner, "what was not evaluated is no false winner"


def test_an_evaluation_is_made_once_and_failures_are_never_the_best() -> None:
    replay = Replay(tape(LINE, lambda c: math.inf if c["at"] == 0 else 1e-6 * c["at"]), seed=0)
    asked = Evaluations(replay, lambda count, best: count >= 3)
    for at in (0, 3, 0, 3):
        asked.cost(at)
        assert not asked.over
    assert asked.cost(0) == math.inf
    asked.cost(2)
    assert asked.over
    assert asked.trace == Trace((0, 3, 2))
    assert asked.trace.incumbents(replay) == [0, 3, 2]


@given(st.integers(0, 1000), st.floats(0.0, 0.2))
def test_a_replay_tells_the_same_under_the_same_seed_and_only_what_was_sampled(seed: int, spread: float) -> None:
    recorded = table(BOX, bowl, spread)
    one, two = Replay(Tape(recorded), seed), Replay(Tape(recorded), seed)
    assert (one.costs == two.costs).all()
    middles = [bowl(config) for config in BOX]
    for cost, truth, middle in zip(one.costs, one.truth, middles):
        if math.isfinite(middle):
            assert middle * (1.0 - spread) * 0.999 <= cost <= middle * (1.0 + spread) * 1.001
            assert truth == pytest.approx(middle)
        else:
            assert cost == truth == math.inf
    drawn = {float(t) for source in one.racing([0, 1], 3) for t in one.block([0, 1], source)[0]}
    assert drawn <= {t for taken in recorded.visits[0].passes for t in taken}


def raced(spread: float) -> LabTable:
    """A line of configs, each 1 % slower than the one before, whose visits say little and whose rounds agree.

    The first eight ran rounds; each process, and each round, is slower than another for all of them alike.
    """
    luck = random.Random(7)

    def noisy(seconds: float) -> Visits:
        passes = (tuple(seconds * luck.uniform(1.0, 1.0 + spread) for _ in range(8)) for _ in range(8))
        return Visits(tuple(passes), 5, 0.25)

    middles = [1e-6 * 1.01**at for at in range(10)]
    processes = []
    for _ in range(12):
        rounds = [luck.uniform(1.0, 1.5) for _ in range(16)]
        processes.append(tuple(tuple(seconds * slow for slow in rounds) for seconds in middles[:8]))
    subject = Subject(MACHINE, WORKLOAD, "softmax/toy", "d0", Policy(), LINE)
    return LabTable(subject, tuple(map(noisy, middles)), 1.0e9, Raced(tuple(range(8)), tuple(processes)))


def test_rounds_side_by_side_are_the_truth_about_those_that_ran_them() -> None:
    for seed in range(5):
        replay = Replay(Tape(raced(spread=0.1)), seed)
        entrants = deciding.finalists_of(replay, range(10))
        assert sorted(entrants) == list(range(8))
        assert [replay.slower(at, entrants) for at in range(8)] == pytest.approx([1.01**at - 1.0 for at in range(8)])
        decision = deciding.raced(replay, entrants)
        assert decision.pick == 0 and decision.samples == 8 * 48  # two blocks from every process, and no more
        assert deciding.repeated(replay, entrants, 8, in_turn=True).pick == 0


def test_a_table_with_rounds_comes_back_from_its_file(tmp_path: Path) -> None:
    recorded = raced(spread=0.1)
    recorded.save(tmp_path / recorded.subject.filename)
    back = read(tmp_path / recorded.subject.filename)
    assert back.raced.entrants == recorded.raced.entrants
    for was, now in zip(recorded.raced.processes, back.raced.processes, strict=True):
        for one, other in zip(was, now, strict=True):
            assert other == pytest.approx(one, rel=1e-4)


@pytest.mark.parametrize("name", list(search.STRATEGIES))
def test_every_strategy_reaches_the_optimum_of_a_bowl(name: str) -> None:
    replay = Replay(tape(BOX, bowl), seed=3)
    played = score.play(replay, 0, player(search.STRATEGIES[name]), races=True)
    assert played.to_1 <= len(BOX)
    assert played.regrets[-1] == pytest.approx(0.0)
    assert not played.false_winner


def test_a_seeded_search_asks_second_for_what_was_good_on_its_neighbours() -> None:
    other = table(BOX, bowl)
    subject = replace(other.subject, workload=Workload.parse("softmax[rows=64,cols=2048,f32]"))
    ours = LabTable(subject, other.visits, other.created)
    stranger = LabTable(replace(subject, kernel="softmax/other"), other.visits, other.created)
    assert seeded.neighbours(ours, (ours, other, stranger)) == (other,)
    for seed in range(3):
        replay = Replay(Tape(ours), seed)
        trace = seeded.seeded(seeded.NAME, (other,), len(BOX))(replay, lambda count, best: count >= 2)
        assert trace.evaluated[0] == replay.start
        assert replay.regret[trace.evaluated[-1]] <= 0.1 + 1e-9  # at most a step from the best


# One of them takes minutes for a hundred configs.
SLOW = ("kernel_tuner hybrid_vndx",)


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in PEERS])
def test_peers_play_only_what_is_in_the_space(name: str) -> None:
    if not PEERS[name].installed:
        pytest.skip(f"{PEERS[name].module} is not installed")
    replay = Replay(tape(BOX, bowl), seed=3)
    trace = PEERS[name].play(replay, lambda count, best: bool(replay.regret[best] <= 0.01))
    assert trace.evaluated[0] == replay.start
    assert len(set(trace.evaluated)) == len(trace.evaluated) <= len(BOX)
    if "bayes_opt" not in name:  # its random numbers cannot be seeded from outside
        assert PEERS[name].play(replay, lambda count, best: bool(replay.regret[best] <= 0.01)) == trace


def test_a_race_picks_the_faster_and_drops_the_slower_early() -> None:
    replay = Replay(tape(LINE, lambda c: 1e-6 * (1.0 + 0.015 * c["at"]), spread=0.002), seed=5)
    entrants = deciding.finalists_of(replay, range(10))
    assert entrants == tuple(range(10))
    decision = deciding.raced(replay, entrants)
    assert decision.pick == 0
    assert decision.samples < len(entrants) * deciding.EFFORT.rounds
    assert not deciding.is_false(replay, 1, entrants)
    assert deciding.is_false(replay, 2, entrants)
    fixed = deciding.repeated(replay, entrants, 7, in_turn=False)
    assert (fixed.pick, fixed.samples) == (0, 70)


def test_the_score_of_two_tables_and_its_file(tmp_path: Path) -> None:
    tables = (table(BOX, bowl), table(LINE, lambda c: 1e-6 * (2.0 - 0.1 * c["at"])))
    names, missing = score.searches([], peers=False)
    *steps, board = score.score(tables, names, 3)
    assert missing == ()
    assert len(steps) == 2 * len(score.OURS)
    assert isinstance(board, Leaderboard)
    rows = {standing.name: standing for standing in board.standings}
    assert list(rows) == sorted(rows, key=lambda n: (rows[n].mean_to_5, rows[n].mean_to_1, n))
    bowl_at = BOX.configs.index(Config.of(isa="avx512", unroll=4, stream=True, rows=5))
    needed = []
    for each, best in zip(tables, (bowl_at, 9)):
        needed += [in_order(Replay(Tape(each), seed)).index(best) + 1 for seed in range(3)]
    assert rows["exhaustive"].mean_to_1 == pytest.approx(math.prod(needed) ** (1 / 6))
    assert {table.name for table in board.tables} == {"softmax[rows=64,cols=1024,f32] softmax/toy"}
    assert list(dict.fromkeys(way.name for way in board.ways)) == [leaderboard.RACING, *ways.FIXED]
    race, one, _ = leaderboard.equal_ways(board.ways)
    assert one.samples < race.samples, "without any noise one repeat is enough"
    assert all(standing.pick_regret >= 0.0 for standing in board.standings)
    said = section(board)
    assert said is not None
    assert [row[0].text for row in said.grids[0].rows] == list(rows)
    assert all(picture.png(theme).startswith(b"\x89PNG") for picture in said.pictures for theme in (LIGHT, DARK))
    assert section(None) is None
    board.save(tmp_path / "score.json")
    assert leaderboard.load(tmp_path / "score.json") == board
    assert leaderboard.load(tmp_path / "nothing.json") is None
    older = board.to_json()
    older["standings"] = [{k: v for k, v in row.items() if k != "few_to_5"} for row in older["standings"]]
    assert all(row.few_to_5 is None for row in Leaderboard.from_json(older).standings)
    (tmp_path / "wrong.json").write_text('{"format": 1}')
    with pytest.raises(ValueError, match=r"wrong\.json is no leaderboard"):
        leaderboard.load(tmp_path / "wrong.json")


def test_the_score_that_is_shipped_can_be_shown() -> None:
    board = leaderboard.load(Path(__file__).resolve().parents[1] / "results" / "lab" / "score.json")
    assert board is not None and board.default in {s.name for s in board.standings}
    assert leaderboard.RACING in {way.name for way in board.ways} and section(board) is not None


def standing(name: str, mean: float, tuner: str = "", share: float = 0.5) -> Standing:
    return Standing(name, tuner, mean, mean, 2.0 * mean, mean, mean, 1.0, share, 0.0, 0.0, 0.0, 1.0, (0.1,), (0.1,))


def test_targets_are_met_missed_or_not_judged() -> None:
    rows = (standing("local", 6.0), standing("random", 18.0), standing("optuna tpe", 5.0, "Optuna"))
    found = (Way("racing", 4000, 100.0, 0.005), Way("one process", 128, 900.0, 0.03))
    said = {target.words: target for target in targets.judge(rows, found, "local")}
    verdicts = [target.verdict for target in said.values()]
    assert verdicts == ["met", "met", "not judged", "not judged", "missed", "not judged", "met", "met"]
    assert "still have more false winners" in list(said.values())[-1].figure
    worse = (replace(rows[0], share_to_5=1.2), replace(rows[1], mean_to_5=17.0))
    verdicts = [t.verdict for t in targets.judge(worse, (replace(found[0], false_winners=0.02), found[1]), "local")]
    assert verdicts[:2] == ["missed", "missed"]
    assert verdicts[-2:] == ["missed", "met"]
    seeds = (standing(seeded.NAME, 6.0), rows[1])
    said = {target.words: target for target in targets.judge(seeds, (), "local", few=3)}
    assert said["the same on the 3 spaces with at most one config in ten within 5 %"].figure == "12.0 of 36.0: 33 %"
