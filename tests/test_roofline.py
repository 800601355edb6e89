"""Ceilings from probes of a machine whose bandwidths and peaks are known, and what follows for workloads, by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perfsuite.kernel import Config
from perfsuite.machine import Environment, Machine
from perfsuite.op import Op, Operand, Workload
from perfsuite.policy import Policy
from perfsuite.roofline import PLAUSIBLE, Ceilings, arithmetic, intensity, plateaus
from perfsuite.trial import Failure, FailureKind, Measurement, Trial

KIB, MIB = 1 << 10, 1 << 20
MACHINE = Machine(
    cpu="a cpu",
    isa=("avx2", "avx512"),
    caches=(("L1d", 96 * KIB, 2), ("L2", 4 * MIB, 2), ("L3", 480 * MIB, 1)),
    cores=2,
    memory=1 << 34,
    numa_nodes=1,
    virtual="kvm",
    gpus=(),
    environment=Environment("3.11", "2.13", "3.6", "gcc 12", "libgomp", "6.1", "unknown", "unknown"),
)


def _op(name: str, inputs: str, outputs: str, flops: float, family: str = "probes") -> Op:
    """An op on vectors of `n` elements, one per letter of `inputs` and `outputs`; `flops` per element."""
    return Op(
        name,
        tuple(Operand(letter, ("n",)) for letter in inputs),
        tuple(Operand(letter, ("n",)) for letter in outputs),
        reference=lambda *tensors: tensors[0],
        flops=lambda sizes: flops * sizes["n"],
        family=family,
    )


COPY, READ, TRIAD = _op("copy", "x", "y", 0.0), _op("read", "x", "", 1.0), _op("triad", "ab", "y", 2.0)
MATMUL = Op(
    "matmul",
    (Operand("x", ("m", "k")), Operand("w", ("k", "n"))),
    (Operand("y", ("m", "n")),),
    reference=lambda x, w: x @ w,
    flops=lambda sizes: 2.0 * sizes["m"] * sizes["n"] * sizes["k"],
    family="probes",
)
OPS = {op.name: op for op in (COPY, READ, TRIAD, MATMUL)}
MIX = Op(
    "mix",
    (Operand("x", ("n",)), Operand("w", ("n",), dtype="i8")),
    (Operand("y", ("n",)),),
    reference=lambda x, w: x,
    flops=lambda sizes: 8.0 * sizes["n"],
)
# 100 GB/s in L2, 30 in L3, 15 in DRAM; the smallest copies cost 0.4 us more than their bytes.
L2, L3, DRAM = 100e9, 30e9, 15e9
CALL = 0.4e-6


def _trial(
    workload: Workload, seconds: float, isa: str = "avx512", kernel: str = "probes/native_stream", threads: int = 1
) -> Trial:
    config = Config.of(isa=isa) if isa else Config()
    return Trial(MACHINE, workload, kernel, config, Policy(threads=threads), "d", Measurement((seconds,)), 0.0)


def _vector(op: str, footprint: int, tensors: int) -> Workload:
    return Workload(op, (("n", footprint // (4 * tensors)),))


def _bandwidth(footprint: int) -> float:
    return L2 if footprint <= 2 * MIB else L3 if footprint <= 64 * MIB else DRAM


def _copies(slower: float = 1.0, isa: str = "avx512", threads: int = 1) -> list[Trial]:
    sizes = [16 * KIB << i for i in range(15)]
    return [
        _trial(_vector("copy", s, 2), CALL + slower * s / _bandwidth(s), isa, threads=threads)
        if s <= 32 * KIB
        else _trial(_vector("copy", s, 2), slower * s / _bandwidth(s), isa, threads=threads)
        for s in sizes
    ]


def _matmul(dtype: str, flops: float, isa: str) -> Trial:
    workload = Workload("matmul", (("m", 512), ("k", 512), ("n", 512)), dtype)
    return _trial(workload, 2.0 * 512**3 / flops, isa, "probes/native_brgemm")


def _measured(extra: list[Trial] | None = None, policy: Policy | None = None) -> Ceilings:
    peaks = [_matmul("f32", 170e9, "avx512"), _matmul("f32", 85e9, "avx2"), _matmul("bf16", 1.2e12, "amx_bf16")]
    trials = [*_copies(), *_copies(1.5, "avx2"), *peaks, *(extra or [])]
    return Ceilings.of(trials, OPS, policy or Policy())


def test_bandwidth_at_and_between_footprints() -> None:
    measured = _measured()
    assert measured.bandwidth(1 * MIB) == pytest.approx(L2)
    assert measured.bandwidth(16 * KIB) == pytest.approx(L2), "a call's cost is no bandwidth"
    assert measured.bandwidth(1) == pytest.approx(L2)
    assert measured.bandwidth(1 << 40) == pytest.approx(DRAM)
    # Half-way between 2 MiB (100) and 4 MiB (30) on log axes is the geometric mean of both.
    assert measured.bandwidth(round(math.sqrt(2.0) * 2 * MIB)) == pytest.approx(math.sqrt(L2 * L3), rel=1e-5)


def test_cold_data_comes_from_the_largest_footprint() -> None:
    cold = _measured(policy=Policy(cache="cold"))
    level = cold.level(KIB)
    assert cold.bandwidth(16 * KIB) == pytest.approx(DRAM)
    assert level is not None and level.name == "DRAM"


def test_levels_end_at_the_knees_and_not_at_the_reported_sizes() -> None:
    levels = _measured().levels
    assert [level.name for level in levels] == ["L2", "L3", "DRAM"]
    assert [level.bandwidth for level in levels] == pytest.approx([L2, L3, DRAM])
    assert [level.capacity for level in levels] == [
        round(math.sqrt(2 * 4) * MIB),
        round(math.sqrt(64 * 128) * MIB),
        None,
    ]


def test_a_sweep_that_stays_in_the_cache_does_not_claim_dram() -> None:
    small = Ceilings.of([t for t in _copies() if OPS["copy"].least_bytes(t.workload) <= MIB], OPS, Policy())
    assert [(level.name, level.capacity) for level in small.levels] == [("L2", None)]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], ()),
        ([9.0], ((0, 1),)),
        ([9.0, 9.1, 8.9], ((0, 3),)),
        ([20.0, 20.0, 5.0, 5.0], ((0, 2), (2, 4))),
        # Measured by `y.copy_(x)` on a Xeon guest, 64 KiB to 256 MiB, in GB/s.
        ([97.0, 97.0, 97.0, 97.0, 97.0, 68.7, 28.9, 28.8, 28.8, 28.8, 28.4, 15.6, 14.6], ((0, 6), (6, 11), (11, 13))),
    ],
)
def test_plateaus(values: list[float], expected: tuple[tuple[int, int], ...]) -> None:
    assert plateaus([(1 << i, value) for i, value in enumerate(values)]) == expected


@given(st.lists(st.floats(1e9, 1e12), min_size=1, max_size=16))
def test_plateaus_partition_any_curve(values: list[float]) -> None:
    cuts = plateaus([(1 << i, value) for i, value in enumerate(values)])
    assert [start for start, _ in cuts] == [0, *(end for _, end in cuts[:-1])]
    assert cuts[-1][1] == len(values) and len(cuts) <= 4


@given(st.lists(st.floats(1e-7, 1e-2), min_size=15, max_size=15), st.integers(1, 1 << 30))
def test_no_footprint_is_slower_than_a_larger_one(seconds: list[float], footprint: int) -> None:
    trials = [_trial(t.workload, s) for t, s in zip(_copies(), seconds)]
    measured = Ceilings.of(trials, OPS, Policy())
    near, far = measured.bandwidth(footprint), measured.bandwidth(2 * footprint)
    assert near is not None and far is not None and near >= far * (1.0 - 1e-12)


def test_the_probe_with_the_most_similar_traffic_counts() -> None:
    size = 3 * MIB
    measured = _measured(
        [_trial(_vector("triad", size, 3), size / 40e9), _trial(_vector("read", size, 1), size / 60e9)]
    )
    assert measured.bandwidth(size, written=1 / 3) == pytest.approx(40e9)
    assert measured.bandwidth(size, written=0.05) == pytest.approx(60e9)
    assert measured.bandwidth(16 * MIB) == pytest.approx(L3)


def test_probes_that_repeat_their_work_show_the_first_level_and_what_a_call_costs() -> None:
    """As `kernels/probes` does it: small footprints in many passes, and the smallest one once more in a single pass."""
    copy = replace(COPY, parameters=("passes",), passes=lambda sizes: sizes["passes"])

    def once(footprint: int, passes: int, bandwidth: float) -> Trial:
        workload = Workload("copy", (("n", footprint // 8), ("passes", passes)))
        return _trial(workload, CALL + passes * footprint / bandwidth)

    small = [once(size, passes, 200e9) for size, passes in ((16 * KIB, 1), (16 * KIB, 4096), (32 * KIB, 2048))]
    large = [once(64 * KIB << i, 1024 >> min(i, 10), _bandwidth(64 * KIB << i)) for i in range(13)]
    measured = Ceilings.of([*small, *large], {"copy": copy}, Policy())
    assert [level.name for level in measured.levels] == ["L1", "L2", "L3", "DRAM"]
    assert measured.levels[0].bandwidth == pytest.approx(200e9, rel=0.01)
    assert measured.call_seconds == pytest.approx(CALL, rel=0.01)
    assert Ceilings.of(small[1:] + large, {"copy": copy}, Policy()).call_seconds == 0.0


def test_peaks_per_dtype_and_isa() -> None:
    measured = _measured()
    assert measured.peak("f32") == pytest.approx(170e9)
    assert measured.peak("bf16") == pytest.approx(1.2e12)
    assert measured.peak("f16") is None
    assert [(c.dtype, c.isa) for c in measured.peaks] == [("bf16", "amx_bf16"), ("f32", "avx512"), ("f32", "avx2")]
    assert measured.restricted("avx2").peak("f32") == pytest.approx(85e9)
    assert measured.restricted("avx2").bandwidth(MIB) == pytest.approx(L2 / 1.5)


@pytest.mark.parametrize(
    ("op", "size", "dtype", "seconds", "binding"),
    [
        (COPY, 256 * MIB, "f32", 256 * MIB / DRAM, "DRAM bandwidth"),
        (COPY, 16 * MIB, "f32", 16 * MIB / L3, "L3 bandwidth"),
        (COPY, 4 * KIB, "f32", CALL, "call overhead"),
        # 400 operations on 12 bytes of an f32 element: 256 Ki elements, 3 MiB, 105 M operations.
        (_op("dense", "ab", "y", 400.0, "x"), 3 * MIB, "f32", 400 * 2**18 / 170e9, "f32 peak"),
        (_op("dense", "ab", "y", 4000.0, "x"), 3 * MIB, "bf16", 4000 * 2**19 / 1.2e12, "bf16 peak"),
    ],
)
def test_ideal_seconds_and_what_binds(op: Op, size: int, dtype: str, seconds: float, binding: str) -> None:
    each = (4 if dtype == "f32" else 2) * (len(op.inputs) + len(op.outputs))
    workload = Workload(op.name, (("n", size // each),), dtype)
    measured = _measured()
    assert measured.ideal_seconds(op, workload) == pytest.approx(seconds)
    assert measured.binding(op, workload) == binding


def test_nothing_is_invented_without_ceilings() -> None:
    nothing, workload = Ceilings.of([], OPS, Policy()), _vector("copy", MIB, 2)
    assert nothing.bandwidth(MIB) is None and nothing.peak("f32") is None and nothing.levels == ()
    assert nothing.ideal_seconds(COPY, workload) is None and nothing.binding(COPY, workload) is None
    assert nothing.least_seconds(COPY, workload) is None
    no_peak = Ceilings.of(_copies(), OPS, Policy())
    assert no_peak.ideal_seconds(COPY, workload) == pytest.approx(MIB / L2)
    assert no_peak.ideal_seconds(TRIAD, _vector("triad", MIB, 3)) is None, "the f32 peak was not measured"


def test_least_seconds_is_generous() -> None:
    measured, size = _measured(), 8 * MIB
    # A quarter of 8 MiB still fits L2; the peak of f32 is 170 GFLOP/s.
    assert measured.least_seconds(COPY, _vector("copy", size, 2)) == pytest.approx(PLAUSIBLE * size / L2)
    assert measured.least_seconds(COPY, _vector("copy", 1 << 40, 2)) == pytest.approx(PLAUSIBLE * (1 << 40) / DRAM)
    dense = _op("dense", "ab", "y", 400.0, "x")
    assert measured.least_seconds(dense, _vector("dense", 3 * MIB, 3)) == pytest.approx(PLAUSIBLE * 400 * 2**18 / 170e9)
    # No f16 peak was measured, the bf16 one is of the same size.
    f16 = Workload("dense", (("n", 1 << 20),), "f16")
    assert measured.least_seconds(dense, f16) == pytest.approx(PLAUSIBLE * 400 * 2**20 / 1.2e12)


@given(st.integers(1, 1 << 28), st.sampled_from([COPY, TRIAD, READ]))
def test_the_floor_lies_below_the_ideal(n: int, op: Op) -> None:
    measured, workload = _measured(), Workload(op.name, (("n", n),))
    ideal, least = measured.ideal_seconds(op, workload), measured.least_seconds(op, workload)
    assert ideal is not None and least is not None and least < ideal


def test_only_warm_probes_with_the_same_threads_that_succeeded_count() -> None:
    failed = Trial(
        MACHINE,
        _vector("copy", MIB, 2),
        "probes/eager",
        Config(),
        Policy(),
        "d",
        Failure(FailureKind.CRASH, "signal 11"),
        0.0,
    )
    softmax = _trial(Workload("softmax", (("n", 8),)), 1e-6)
    unknown = {**OPS, "softmax": _op("softmax", "x", "y", 5.0, "softmax")}
    assert Ceilings.of([failed, softmax, *_copies(threads=2)], unknown, Policy()).every == ()
    assert len(Ceilings.of(_copies(threads=2), OPS, Policy(threads=2)).every) == 15
    assert Ceilings.of(_copies(), OPS, Policy(device="cuda")).every == ()
    again = [*_copies(2.0), *_copies(), *_copies(3.0)]
    assert len(Ceilings.of(again, OPS, Policy()).every) == 15
    assert Ceilings.of(again, OPS, Policy()).bandwidth(MIB) == pytest.approx(L2)


def test_arithmetic_and_intensity() -> None:
    workload = Workload("mix", (("n", 100),))
    assert arithmetic(MIX, workload) == "i8"
    assert arithmetic(COPY, Workload("copy", (("n", 1),), "bf16")) == "bf16"
    assert intensity(MIX, workload) == pytest.approx(800 / 900)
