"""The other libraries that `compare --peers` measures: right on what they take, refused with a word elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest

import perfsuite
from perfsuite import check, detect, registry
from perfsuite.kernel import Config, Kernel
from perfsuite.op import Op


def peers() -> list[tuple[Op, Kernel]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PERFSUITE_KERNELS", str(Path(perfsuite.__file__).with_name("peers")))
        known = registry.discover()
    assert not known.problems
    return [
        (known.ops[name], kernel)
        for kernel in known.kernels.values()
        if kernel.family == "peers"
        for name in kernel.ops
    ]


def test_every_peer_is_found() -> None:
    assert {kernel.name for _, kernel in peers()} == {"onnx_runtime", "open_vino", "jax_xla", "liger"}


@pytest.mark.parametrize(("op", "kernel"), peers(), ids=str)
def test_right_where_it_is_installed(op: Op, kernel: Kernel) -> None:
    machine = detect.machine()
    refusals = {w: kernel.supports(w, machine) for w in op.workloads if w.test}
    assert all(refusal for workload, refusal in refusals.items() if 0 in dict(workload.sizes).values())
    able = [workload for workload, refusal in refusals.items() if refusal is None]
    if not able:
        pytest.skip(next(filter(None, refusals.values())))
    for workload in able[:3]:
        for seed in (1, 2):  # other memory, the same shapes
            inputs = op.make_inputs(workload, seed)
            run = kernel.build(op, workload, Config())
            answer = run(inputs, op.make_outputs(workload))
            assert check.wrong(op, workload, answer, op.expected(inputs, workload)) is None
