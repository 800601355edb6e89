"""Every kernel that is found against its op's float64 reference: a new kernel is tested by existing."""

from __future__ import annotations

from dataclasses import replace

import pytest

from perfsuite import checks, registry
from perfsuite.kernel import Config, Kernel, Run, Unfit
from perfsuite.op import Op, Workload

KNOWN = registry.discover()


def _marks(op: Op, kernel: Kernel) -> tuple[pytest.MarkDecorator, ...]:
    """What torch.compile makes of channels-last images is slow to build, and of the formula of the others."""
    return (pytest.mark.slow,) if kernel.name.startswith("inductor") and op.name.endswith("_nhwc") else ()


PAIRS = [
    pytest.param(op, kernel, id=f"{op}-{kernel}", marks=_marks(op, kernel))
    for op in KNOWN.ops.values()
    for kernel in KNOWN.kernels_for(op.name)
]
# torch.compile takes about a second for each shape; the other shapes run with --slow.
COMPILED_WORKLOADS, COMPILED_CONFIGS, CONFIGS = 2, 1, 3


def test_every_file_could_be_used() -> None:
    assert KNOWN.problems == []


@pytest.mark.parametrize(("op", "kernel"), PAIRS)
def test_right_on_test_workloads_and_edge_cases(op: Op, kernel: Kernel) -> None:
    compiled = kernel.name.startswith("inductor")
    finding = checks.examine(
        op, kernel, COMPILED_CONFIGS if compiled else CONFIGS, COMPILED_WORKLOADS if compiled else None
    )
    if finding.refused is not None:
        pytest.skip(finding.refused)
    assert finding.reason is None
    assert finding.answers > 0


@pytest.mark.slow
@pytest.mark.parametrize(("op", "kernel"), PAIRS)
def test_right_with_more_configs(op: Op, kernel: Kernel) -> None:
    finding = checks.examine(op, kernel, 12)
    assert finding.reason is None


@pytest.mark.parametrize("op", KNOWN.ops.values(), ids=str)
def test_op_is_complete(op: Op) -> None:
    """Each op has workloads of real models and small ones for the tests, whose axes are the op's."""
    assert any(w.test for w in op.workloads)
    assert any(w.models for w in op.workloads)
    for workload in op.workloads:
        assert op.complete(workload) == workload
        assert op.operations(workload) >= 0.0
        assert op.least_bytes(workload) > 0 or 0 in dict(workload.sizes).values()
        assert Workload.parse(str(workload)) == workload
    assert op.backward is None or op.backward in KNOWN.ops
    assert {operand.name for operand in op.inputs + op.outputs} >= set(op.saves)
    assert any(kernel.default for kernel in KNOWN.kernels_for(op.name)), "no default kernel to compare with"


@pytest.mark.parametrize(("op", "kernel"), PAIRS)
def test_space_holds_its_default_and_neighbours(op: Op, kernel: Kernel) -> None:
    from perfsuite import detect

    for workload in op.workloads:
        if kernel.supports(workload, detect.machine()) is None:
            space = kernel.space(workload, detect.machine())
            assert 1 <= len(space) <= 5000
            assert len(set(space)) == len(space)
            assert all(near in space for near in space.neighbours(space.configs[0]))


def test_bytes_and_flops_of_softmax_by_hand() -> None:
    op = KNOWN.ops["softmax"]
    workload = KNOWN.workload("softmax[rows=3,cols=5,bf16]")
    assert op.least_bytes(workload) == (3 * 5 + 3 * 5) * 2


def test_bytes_of_a_convolution_by_hand() -> None:
    op = KNOWN.ops["conv_bn_relu"]
    workload = KNOWN.workload("conv_bn_relu[n=2,c=3,h=7,w=9,o=4,k=3,stride=2,f32]")
    # x 2*3*7*9, weight 4*3*3*3, four vectors of 4, y 2*4*4*5.
    assert op.least_bytes(workload) == 4 * (378 + 108 + 16 + 160)
    assert op.operations(workload) >= 2 * 160 * 27


def test_a_config_that_its_build_prunes_gives_no_wrong_answer() -> None:
    def build(op: Op, workload: Workload, config: Config) -> Run:
        raise Unfit("spills")

    finding = checks.examine(KNOWN.ops["softmax"], replace(KNOWN.kernels["softmax/eager"], build=build), 3)
    assert (finding.answers, finding.reason) == (0, None)
