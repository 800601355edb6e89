"""The summary of a comparison, from rows whose answer is computed by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from samples import MACHINE

from perfsuite import detect
from perfsuite.compare import Row, compare, standings
from perfsuite.policy import Policy


def rows(workload: str, **seconds: float) -> list[Row]:
    names = {"copy": "plain copy", "ours": "norms/native_rows", "slower": "norms/triton", "eager": "norms/eager"}
    names |= {"compiled": "norms/inductor", "peer": "peers/jax_xla"}
    copy = seconds.get("copy")
    return [Row(workload, names[n], "-", s, s / copy if copy else None, None) for n, s in seconds.items()]


def test_our_fastest_against_a_copy_and_the_fastest_of_the_others() -> None:
    raced = rows("rms_norm[rows=1,cols=8,f32]", copy=1.0, ours=2.0, slower=3.0, eager=8.0, compiled=5.0, peer=4.0)
    raced += rows("rms_norm[rows=2,cols=8,f32]", peer=2.0, ours=8.0, copy=1.0, eager=9.0)
    raced += rows("rms_norm[rows=1,cols=8,bf16]", copy=1.0, ours=3.0, compiled=2.0)
    single, half = standings(raced)
    assert (single.op, single.dtype, single.workloads) == ("rms_norm", "f32", 2)
    assert single.against_copy == pytest.approx(4.0)
    assert single.worst_copy == 8.0
    assert single.against_others == pytest.approx(2.0**0.5)
    assert single.worst_others == 4.0
    assert half.dtype == "bf16"
    assert half.against_others == pytest.approx(1.5)


def test_without_a_gpu_a_policy_of_one_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detect, "machine", lambda: replace(MACHINE, gpus=()))
    with pytest.raises(ValueError, match="--policy cuda: perfsuite sees no GPU here"):
        compare(["softmax"], Policy(device="cuda"), 8, None)


@pytest.mark.parametrize("lacking", ["copy", "ours", "eager"])
def test_nothing_is_said_where_one_of_them_is_missing(lacking: str) -> None:
    seconds = {"copy": 1.0, "ours": 2.0, "eager": 3.0}
    del seconds[lacking]
    assert standings(rows("rms_norm[rows=1,cols=8,f32]", **seconds)) == []
