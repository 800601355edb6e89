"""Shares of a budget, the order of the ceilings, builds ahead, configs from elsewhere, and the timeline of it all."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from samples import MACHINE

from perfsuite import budget, registry
from perfsuite import search as strategies
from perfsuite.builds import Builds
from perfsuite.kernel import Config, Dimension, Kernel, Run, Space
from perfsuite.op import Op, Operand, Workload
from perfsuite.policy import Policy
from perfsuite.report import spending
from perfsuite.searching import Search
from perfsuite.session import Wish
from perfsuite.timeline import BUILD, MEASURE, Recorder, Span, Timeline
from perfsuite.trial import Failure, FailureKind
from perfsuite.worker import Attempt, Candidate, Worker

SECONDS = st.floats(1e-7, 10.0)


def on(n: int, dtype: str = "f32", models: Mapping[str, int] | None = None) -> Workload:
    return Workload("scale", (("n", n),), dtype, tuple((models or {}).items()))


def test_a_workload_weighs_its_share_of_the_time_of_its_models() -> None:
    often, rarely, lone = on(1, models={"a": 9}), on(2, models={"a": 1, "b": 2}), on(3)
    weights = budget.weights({often: 1.0, rarely: 1.0, lone: 50.0})
    assert weights == {often: pytest.approx(0.9), rarely: pytest.approx(1.1), lone: pytest.approx(1.0)}
    # The same model on another dtype is another model.
    single, half = on(1, models={"a": 1}), on(1, "bf16", {"a": 1})
    assert budget.weights({single: 1.0, half: 3.0}) == {single: 1.0, half: 1.0}


def test_nothing_is_to_gain_at_the_ceiling_and_all_without_one() -> None:
    at, half, unknown = on(1, models={"a": 1}), on(2, models={"b": 1}), on(3, models={"c": 1})
    gains = budget.gains({at: 1.0, half: 2.0, unknown: 5.0}, {at: 1.1, half: 1.0, unknown: None})
    assert gains == {at: 0.0, half: pytest.approx(0.5), unknown: 1.0}


@given(st.lists(st.tuples(SECONDS, st.none() | SECONDS, st.integers(0, 5)), min_size=1, max_size=12))
def test_gains_are_between_nothing_and_the_weight(rows: list[tuple[float, float | None, int]]) -> None:
    times = {on(n, models={"m": calls} if calls else {}): seconds for n, (seconds, _, calls) in enumerate(rows)}
    ideals = dict(zip(times, (ideal for _, ideal, _ in rows)))
    weights, gains = budget.weights(times), budget.gains(times, ideals)
    assert all(0.0 <= gains[w] <= weights[w] for w in times)
    if any(w.models for w in times):
        assert sum(weights[w] for w in times if w.models) == pytest.approx(1.0)


def test_an_unknown_time_misses_its_ceiling_as_the_others_do() -> None:
    known, unknown, lost = on(1), on(2), on(3)
    likely = budget.likely([known, unknown, lost], {known: 6.0}, {known: 2.0, unknown: 5.0, lost: None})
    assert likely == {known: 6.0, unknown: 15.0, lost: 6.0}


@given(st.lists(st.floats(0.0, 5.0), min_size=1, max_size=20), st.floats(0.0, 1000.0), st.floats(0.1, 20.0))
def test_shares_never_exceed_what_remains(gains: list[float], remaining: float, least: float) -> None:
    others = sum(gains)
    for gain in sorted(gains, reverse=True):
        others = max(0.0, others - gain)
        share = budget.share(gain, others, remaining, least)
        assert share == 0.0 if remaining < least else least <= share <= remaining
        remaining -= share
    assert remaining >= 0.0


def test_shares_follow_the_gains_and_end_without_a_budget_never() -> None:
    assert budget.share(3.0, 1.0, 100.0, 5.0) == pytest.approx(75.0)
    assert budget.share(0.0, 4.0, 100.0, 5.0) == 5.0
    assert budget.share(0.0, 0.0, math.inf, 5.0) == math.inf


@given(st.integers(1, 20), st.integers(0, 3))
def test_a_pass_cut_anywhere_has_the_ends_and_the_same_share_of_every_curve(many: int, few: int) -> None:
    op = Op("scale", (Operand("x", ("n",)),), (Operand("y", ("n",)),), lambda x: x, flops=lambda sizes: 0.0)
    long, short = [on(1 << n) for n in range(many)], [on(1 << n, "bf16") for n in range(few)]
    order = budget.spread([*long, *short], {"scale": op})
    assert sorted(order, key=str) == sorted([*long, *short], key=str)
    assert {w for w in order if w.dtype == "f32"} >= {long[0], long[-1]}
    assert [w for w in order if w.dtype == "f32"][:2] == [long[-1], long[0]][:many]
    for end in range(1, len(order)):
        shares = [sum(w in order[:end] for w in group) / len(group) for group in (long, short) if group]
        assert max(shares) - min(shares) <= sum(1.0 / len(group) for group in (long, short) if group)


def test_costs_are_those_of_the_shortest_trial_and_of_the_usual_race() -> None:
    costs = budget.Costs(lambda workload: workload["n"])
    assert costs.trial(on(1)) > 0.0
    for n, took in ((1, 9.0), (1, 0.2), (1, 0.3), (2, 0.4), (100, 8.0)):
        costs.tried(on(n), took)
    assert [costs.trial(on(n)) for n in (1, 0, 80, 200)] == [0.2, 0.2, 8.0, 16.0]
    unseen = costs.race(on(2), 1.0)
    assert unseen > 1.0
    costs.raced(on(1), 0.5)
    assert costs.race(on(2), 1.0) == pytest.approx(1.0)
    costs.raced(on(1), 9.0)
    costs.raced(on(1), 9.0)
    assert costs.race(on(2), 1.0) == unseen
    assert costs.least(on(2), 2, 1.0) == pytest.approx(4 * 0.4 + unseen)


class Slow(Worker):
    """Builds nothing, in the order asked, each when the test lets it."""

    def __init__(self) -> None:
        super().__init__((0,))
        self.go = threading.Semaphore(0)
        self.order: list[str] = []

    def build(self, candidate: Candidate, policy: Policy, longest: float = 1e9) -> Attempt | None:
        self.go.acquire()
        time.sleep(0.002)  # shorter spans are not kept
        self.order.append(candidate.kernel.name)
        return Attempt(Failure(FailureKind.BUILD, "no")) if candidate.kernel.name == "broken" else None


def candidates(*names: str) -> list[Candidate]:
    return [Candidate(on(1), Kernel(("scale",), build=_no_build, name=name), Config()) for name in names]


def _no_build(op: Op, workload: Workload, config: Config) -> Run:
    raise NotImplementedError


def test_what_is_wanted_is_built_before_what_is_ahead() -> None:
    worker, recorder = Slow(), Recorder()
    builds = Builds(worker, Policy(), recorder)
    begun, later, latest, now, broken = candidates("begun", "later", "latest", "now", "broken")
    builds.ahead([begun, later, latest])
    builds.want([now, broken])
    assert not builds.wait([now], 0.0)
    worker.go.release(5)
    assert builds.wait([broken], 30.0)
    builds.want([latest])
    assert builds.wait([latest], 30.0)
    assert worker.order == ["begun", "now", "broken", "later", "latest"]
    assert builds.failure(now) is None
    failed = builds.failure(broken)
    assert failed is not None and isinstance(failed.outcome, Failure)
    builds.want([now])
    assert builds.ready(now)
    builds.close()
    assert [span.kernel for span in recorder.spans] == [f"/{name}" for name in worker.order]


def test_without_a_free_core_nothing_waits_for_a_build() -> None:
    builds = Builds(None, Policy(), Recorder())
    (one,) = candidates("one")
    builds.want([one])
    assert builds.wait([one], 0.0)
    assert builds.failure(one) is None
    builds.close()


def spans(lane: str, what: str, *times: tuple[float, float]) -> list[Span]:
    return [Span(lane, what, start, end) for start, end in times]


def test_a_timeline_says_what_was_spent_and_what_overlapped(tmp_path: Path) -> None:
    every = [
        *spans(BUILD, "build", (0.0, 4.0), (5.0, 6.0)),
        *spans(MEASURE, "survey", (1.0, 2.0)),
        *spans(MEASURE, "wait", (2.0, 3.5)),
        *spans(MEASURE, "search", (3.5, 5.5)),
        *spans(MEASURE, "turn", (5.5, 6.0)),
        *spans(MEASURE, "race", (6.0, 9.0)),
    ]
    timeline = Timeline("warm", 20.0, 1.0e9, 10.0, tuple(every))
    assert timeline.spent == {
        "probes": 0.0,
        "survey": 1.0,
        "search": 2.0,
        "race": 3.0,
        "wait": 1.5,
        "turn": 0.5,
        "build": 5.0,
        "rest": 2.0,
    }
    assert timeline.measured == 6.0
    assert timeline.overlap == pytest.approx(1.0 + 0.5 + 0.5)
    path = tmp_path / "here" / "timeline.json"
    timeline.save(path)
    assert Timeline.load(path) == timeline
    path.write_text("{}")
    with pytest.raises(ValueError, match="`perfsuite tune` writes a new one"):
        Timeline.load(path)


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), max_size=12), st.integers(0, 9))
def test_the_overlap_is_what_a_clock_would_count(steps: list[tuple[int, int]], shift: int) -> None:
    def lane(name: str, start: int) -> list[Span]:
        made = []
        for gap, length in steps:
            made.append(Span(name, "build" if name == BUILD else "search", start + gap, start + gap + length))
            start += gap + length
        return made

    builds, timed = lane(BUILD, 0), lane(MEASURE, shift)
    ticks = [{t for s in spans for t in range(int(s.start), int(s.end))} for spans in (builds, timed)]
    assert Timeline("", None, 0.0, 1.0, (*timed, *builds)).overlap == len(ticks[0] & ticks[1])


def test_a_span_that_is_interrupted_is_kept() -> None:
    recorder = Recorder()
    with pytest.raises(KeyboardInterrupt), recorder.span(MEASURE, "race", on(7)):
        time.sleep(0.01)
        raise KeyboardInterrupt
    (span,) = recorder.timeline(Policy(), None).spans
    assert span.seconds > 0.0
    assert span.workload == "scale[n=7,f32]"


def test_a_lane_is_drawn_as_blocks_that_hide_nothing() -> None:
    every = [
        Span(MEASURE, "search", 0.0, 1.0),
        Span(MEASURE, "turn", 1.0, 1.002),  # too short to be seen
        Span(MEASURE, "search", 1.01, 2.0),
        Span(MEASURE, "race", 2.0, 3.0),
        Span(MEASURE, "search", 3.01, 4.0),
        Span(MEASURE, "search", 5.0, 6.0),
    ]
    drawn = spending.blocks(every, gap=0.1)
    assert drawn == {"search": [(0.0, 2.0), (3.01, pytest.approx(0.99)), (5.0, 1.0)], "race": [(2.0, 1.0)]}


@pytest.mark.parametrize(
    ("wish", "seconds"),
    [
        (Wish(), 900.0),
        (Wish(effort="quick"), 180.0),
        (Wish(effort="full"), None),
        (Wish(("softmax",), "quick"), None),
        (Wish(("softmax",), budget="10m"), 600.0),
    ],
)
def test_an_efforts_budget_is_for_everything_and_what_is_named_is_searched_whole(
    wish: Wish, seconds: float | None
) -> None:
    assert wish.plan(MACHINE, registry.discover()).budget == seconds


@pytest.mark.parametrize(
    ("trials", "took", "given_up"),
    [
        *((1, 8.0, False), (1, 9.0, True), (7, 2.0, False), (8, 2.0, True), (24, 1.2, False), (24, 1.4, True)),
        *((23, math.inf, False), (24, math.inf, True)),
    ],
)
def test_a_kernel_is_given_up_the_sooner_the_further_it_is_behind(trials: int, took: float, given_up: bool) -> None:
    kernel = Kernel(("scale",), build=_no_build, name="slow")
    space = Space((Dimension("at", tuple(range(64))),))
    known = dict.fromkeys(space.configs[: trials // 2], took)
    search_of_it = Search(kernel, strategies.STRATEGIES["random"](space, 0), known, most=52)
    assert search_of_it.advance()
    for _ in range(trials - len(known)):
        search_of_it.advance(took)
    assert search_of_it.hopeless(1.0) is given_up
