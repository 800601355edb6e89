"""What is found where, what is left out and why, and what makes a kernel's code another one."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from samples import write_family

from perfsuite import registry
from perfsuite.registry import code_digest


def test_folders_of_the_environment_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_family(tmp_path / "one" / "toys")
    monkeypatch.setenv("PERFSUITE_KERNELS", str(tmp_path / "one"))
    known = registry.discover()
    assert known.ops["twice"].family == "toys"
    assert str(known.kernels_for("twice")[0]) == "toys/eager"
    assert "softmax" in known.ops, "ours are found beside them"


def test_a_folder_that_does_not_exist_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERFSUITE_KERNELS", str(tmp_path / "nowhere"))
    (problem,) = registry.discover().problems
    assert problem.path.name == "nowhere"
    assert "not a folder" in problem.reason


def test_an_op_of_the_same_name_is_a_problem_and_the_first_stays(tmp_path: Path) -> None:
    first, second = write_family(tmp_path / "a"), write_family(tmp_path / "b")
    known = registry.discover([first, second])
    assert known.ops["twice"].family == "a"
    (problem,) = known.problems
    assert problem.path == second / "ops.py"
    assert "already defined by the family a" in problem.reason
    assert len(known.kernels_for("twice")) == 2, "its kernel serves the op all the same"


def test_entry_points_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_family(tmp_path / "perfsuite_toys")
    (tmp_path / "perfsuite_toys" / "__init__.py").write_text("")
    info = tmp_path / "perfsuite_toys-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: perfsuite_toys\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[perfsuite.kernels]\ntoys = perfsuite_toys\nbroken = no_such_package\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "perfsuite_toys", raising=False)
    known = registry.discover()
    assert known.ops["twice"].family == "perfsuite_toys"
    assert any("entry point broken" in problem.reason for problem in known.problems)


def test_patterns(tmp_path: Path) -> None:
    known = registry.discover([write_family(tmp_path / "toys", "garbage")])

    def jobs(*patterns: str) -> dict[str, set[str]]:
        return {str(job.workload): {str(k) for k in job.kernels} for job in known.select(patterns)}

    both = {"twice[n=4096,f32]": {"toys/eager", "toys/garbage"}}
    assert jobs("toys") == jobs("twice") == jobs("tw*") == jobs("toys", "twice") == both
    assert jobs("garbage") == jobs("toys/garbage") == both, "the default runs beside it"
    assert jobs("toys/eager") == {"twice[n=4096,f32]": {"toys/eager"}}
    assert jobs("twice[n=5]") == {"twice[n=5,f32]": {"toys/eager", "toys/garbage"}}
    assert set(jobs()) > set(both), "no pattern means everything"
    for wrong, hint in (("twise", "did you mean twice"), ("zzzzzz", "`perfsuite list`"), ("twose[n=3]", "twice")):
        with pytest.raises(ValueError, match=hint):
            known.select([wrong])


def test_the_digest_follows_the_code(tmp_path: Path) -> None:
    kernel, helper, source, header = (tmp_path / n for n in ("k.py", "helper.py", "k.cpp", "k.h"))
    kernel.write_text("from .helper import f\nfrom .ops import OPS\n")
    helper.write_text("f = 1\n")
    source.write_text('#include "k.h"\n')
    header.write_text("// one\n")
    (tmp_path / "ops.py").write_text("OPS = ()\n")
    before = code_digest(kernel, ["k.cpp"])
    (tmp_path / "ops.py").write_text("OPS = (1,)\n")
    assert code_digest(kernel, ["k.cpp"]) == before, "workloads may be added"
    for file in (kernel, helper, source, header):
        text = file.read_text()
        file.write_text(text + "\n")
        assert code_digest(kernel, ["k.cpp"]) != before, file.name
        file.write_text(text)
    assert code_digest(kernel, ["k.cpp"]) == before
    with pytest.raises(FileNotFoundError, match=r"declares the source gone\.cpp"):
        code_digest(kernel, ["gone.cpp"])
