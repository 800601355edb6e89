"""Workloads, ops and spaces as values."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from perfsuite.check import wrong
from perfsuite.kernel import Config, Dimension, Scale, Space
from perfsuite.op import ITEMSIZE, Op, Operand, Tolerance, Workload

NAMES = st.from_regex(r"[a-z][a-z_]{0,8}", fullmatch=True)
WORKLOADS = st.builds(
    Workload,
    NAMES,
    st.dictionaries(NAMES.filter(lambda n: n not in ITEMSIZE), st.integers(0, 10**9), min_size=1, max_size=5).map(
        lambda d: tuple(d.items())
    ),
    st.sampled_from(sorted(ITEMSIZE)),
    st.lists(st.tuples(NAMES, st.integers(1, 99)), max_size=2).map(tuple),
    st.booleans(),
)


@given(WORKLOADS)
def test_workload_goes_to_text_and_json_and_back(workload: Workload) -> None:
    assert Workload.parse(str(workload)) == workload
    again = Workload.from_json(workload.to_json())
    assert (again, again.models, again.test) == (workload, workload.models, workload.test)
    assert hash(again) == hash(workload)


@pytest.mark.parametrize(
    "text", ["softmax", "softmax[rows]", "softmax[rows=x,f32]", "softmax[rows=3,f99]", "[a=1]", ""]
)
def test_what_is_no_workload_says_how_one_is_spelled(text: str) -> None:
    with pytest.raises(ValueError, match=r"spelled like softmax\[rows=4096"):
        Workload.parse(text)


COPY = Op(
    "copy2",
    inputs=(Operand("x", ("r", "c")),),
    outputs=(Operand("y", ("r", "c")),),
    reference=lambda x: x,
    flops=lambda sizes: 0.0,
    tolerance=lambda workload: Tolerance(1e-6, 1e-6),
)
SMALL = Workload("copy2", (("r", 3), ("c", 4)))


def test_axes_are_put_in_order_and_unknown_ones_named() -> None:
    assert COPY.complete(Workload("copy2", (("c", 4), ("r", 3)))).sizes == (("r", 3), ("c", 4))
    with pytest.raises(ValueError, match=r"lacks c and has unknown z.*axes of copy2 are r, c"):
        COPY.complete(Workload("copy2", (("r", 4), ("z", 3))))


def test_bind_names_what_does_not_fit() -> None:
    assert COPY.bind([torch.zeros(3, 4)]) == SMALL
    with pytest.raises(ValueError, match="takes 1 tensors"):
        COPY.bind([])
    with pytest.raises(ValueError, match="axes"):
        COPY.bind([torch.zeros(3)])
    with pytest.raises(ValueError, match="dtype"):
        COPY.bind([torch.zeros(3, 4, dtype=torch.complex64)])


def test_same_seed_same_inputs() -> None:
    assert torch.equal(COPY.make_inputs(SMALL, 5)[0], COPY.make_inputs(SMALL, 5)[0])
    assert not torch.equal(COPY.make_inputs(SMALL, 5)[0], COPY.make_inputs(SMALL, 6)[0])


@given(st.integers(0, 11), st.sampled_from([1.0, float("nan"), float("inf"), -float("inf")]))
def test_check_finds_one_wrong_place(place: int, value: float) -> None:
    inputs = COPY.make_inputs(SMALL, 1)
    expected = COPY.expected(inputs, SMALL)
    assert wrong(COPY, SMALL, inputs, expected) is None
    answer = inputs[0].clone()
    answer.view(-1)[place] += value
    reason = wrong(COPY, SMALL, [answer], expected)
    assert reason is not None
    assert f"1 of 12 places, worst at [{place // 4},{place % 4}]" in reason


@pytest.mark.parametrize("special", [float("nan"), float("inf"), -float("inf")])
def test_check_wants_the_same_special_value(special: float) -> None:
    expected = [torch.full((3, 4), special, dtype=torch.float64)]
    assert wrong(COPY, SMALL, [torch.full((3, 4), special)], expected) is None
    assert wrong(COPY, SMALL, [torch.zeros(3, 4)], expected) is not None


def test_check_names_wrong_shape_dtype_and_number() -> None:
    expected = COPY.expected(COPY.make_inputs(SMALL, 1), SMALL)
    assert "shape" in (wrong(COPY, SMALL, [torch.zeros(4, 3)], expected) or "")
    assert "dtype" in (wrong(COPY, SMALL, [torch.zeros(3, 4).double()], expected) or "")
    assert "2 tensors" in (wrong(COPY, SMALL, [torch.zeros(3, 4)] * 2, expected) or "")


SPACE = Space(
    (
        Dimension("unroll", (1, 2, 4, 8), Scale.POWERS),
        Dimension("isa", ("avx2", "avx512"), Scale.CATEGORICAL),
        Dimension("nt", (False, True)),
    ),
    allows=lambda config: not (config["unroll"] == 8 and config["isa"] == "avx2"),
    default=Config.of(unroll=2, isa="avx512", nt=False),
)


def test_space_lists_the_default_first_and_only_what_is_allowed() -> None:
    assert len(SPACE) == 14
    assert SPACE.configs[0] == SPACE.default
    assert str(SPACE.configs[0]) == "unroll=2,isa=avx512,nt=0"
    assert Config.of(unroll=8, isa="avx2", nt=False) not in SPACE


@given(st.sampled_from(SPACE.configs))
def test_neighbours_are_one_step_away_and_mutual(config: Config) -> None:
    for near in SPACE.neighbours(config):
        assert sum(a != b for a, b in zip(near.values, config.values)) == 1
        assert config in SPACE.neighbours(near)


PERMUTED = Dimension("order", ("mnk", "mkn", "nmk", "knm"), Scale.PERMUTATION)


@pytest.mark.parametrize("dimension", [*SPACE.dimensions, PERMUTED], ids=lambda d: str(d.scale))
def test_a_dimension_tells_its_values_apart_and_survives_json(dimension: Dimension) -> None:
    codes = {dimension.encode(value) for value in dimension.values}
    assert len(codes) == len(dimension.values)
    assert len({len(code) for code in codes}) == 1
    assert Dimension.from_json(json.loads(json.dumps(dimension.to_json()))) == dimension


def test_a_scale_says_what_is_near_and_how_far() -> None:
    assert PERMUTED.neighbours("mnk") == ("nmk", "mkn")
    assert PERMUTED.neighbours("knm") == ()
    assert PERMUTED.encode("nmk") == (2.0, 1.0, 0.0)
    blocks = Dimension("block", (1024, 4096, 16384), Scale.POWERS)
    assert blocks.neighbours(4096) == (1024, 16384)
    assert blocks.encode(4096) == (12.0,)
    isas = Dimension("isa", ("avx2", "avx512", "amx"), Scale.CATEGORICAL)
    assert isas.neighbours("avx2") == ("avx512", "amx")
    assert isas.encode("avx512") == (0.0, 1.0, 0.0)
    assert SPACE.encode(Config.of(unroll=8, isa="avx512", nt=True)) == (3.0, 0.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("values", "scale", "reason"),
    [
        ((), Scale.ORDERED, "no values"),
        ((1, 2, 1), Scale.ORDERED, "twice"),
        ((1, 2, 3), Scale.POWERS, "powers of two"),
        ((0, 1, 2), Scale.POWERS, "powers of two"),
        (("mn", "nk"), Scale.PERMUTATION, "permutations"),
        (("mmn", "mnm"), Scale.PERMUTATION, "permutations"),
        ((12, 21), Scale.PERMUTATION, "permutations"),
    ],
)
def test_a_dimension_refuses_values_that_its_scale_does_not_fit(
    values: tuple[int | str, ...], scale: Scale, reason: str
) -> None:
    with pytest.raises(ValueError, match=f"dimension d has .*{reason}"):
        Dimension("d", values, scale)


def test_shuffles_keep_the_default_first_and_follow_the_seed() -> None:
    assert SPACE.shuffled(1)[0] == SPACE.default
    assert SPACE.shuffled(1) == SPACE.shuffled(1)
    assert set(SPACE.shuffled(2)) == set(SPACE)


def test_an_empty_space_says_so() -> None:
    with pytest.raises(ValueError, match="allows no configuration"):
        len(Space((Dimension("n", (1,)),), allows=lambda config: False))
