"""What the doctor finds when something is missing, and that it never fails itself."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from samples import MACHINE

from perfsuite import detect, doctor
from perfsuite.detect import Activity
from perfsuite.doctor import Diagnosis, Fact, Finding, Kind
from perfsuite.machine import Gpu
from perfsuite.toolchain import native, smoke

ISAS = [isa for isa, needed in (("avx2", "avx2"), ("avx512", "avx512")) if needed in detect.machine().isa]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Imports are not tried (they take seconds), the cores are idle, and the cache is the test's own."""
    monkeypatch.setattr(doctor, "_import_fails", lambda package: None)
    monkeypatch.setattr(detect, "activity", lambda cores: Activity(stolen=0.0, idle=2.0))
    monkeypatch.setenv("PERFSUITE_CACHE", str(tmp_path / "cache"))


def fact(diagnosis: Diagnosis, name: str) -> Fact:
    return next(f for f in (*diagnosis.machine, *diagnosis.toolchain, *diagnosis.gpus) if f.name == name)


def missing(diagnosis: Diagnosis) -> list[Finding]:
    return [finding for finding in diagnosis.findings if finding.kind is Kind.MISSING]


def compiler(path: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """$CXX becomes a shell script; its last argument is the program to write."""
    path.write_text(f"#!/bin/sh\nfor last; do :; done\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setenv("CXX", str(path))


@pytest.mark.parametrize("how", ["CXX", "PATH"])
def test_no_compiler_is_a_finding_that_says_what_is_refused(
    how: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if how == "CXX":
        monkeypatch.setenv("CXX", "/nonexistent")
    else:
        monkeypatch.delenv("CXX", raising=False)
        monkeypatch.setenv("PATH", str(tmp_path))
    diagnosis = doctor.examine()
    (found,) = missing(diagnosis)
    assert "native" in found.cost and "inductor" in found.cost and "eager" in found.cost
    assert found.remedy
    assert fact(diagnosis, "C++ compiler").ok is False
    assert fact(diagnosis, "compiled and run").value == "none"
    assert fact(diagnosis, "OpenMP").ok is False


@pytest.mark.skipif(native.missing_compiler() is not None, reason="needs a C++ compiler")
def test_a_working_compiler_is_really_tried() -> None:
    diagnosis = doctor.examine()
    ran = fact(diagnosis, "compiled and run").value.split(", ")
    assert set(ISAS) <= set(ran)
    assert fact(diagnosis, "OpenMP").ok is True
    assert smoke.openmp_fails() is None


@pytest.mark.skipif(not ISAS, reason="needs a CPU with AVX2")
def test_a_compiler_that_fails_is_quoted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    compiler(tmp_path / "c++", 'echo "/tmp/x/smoke.cpp:1:2: error: unknown option" >&2; exit 1', monkeypatch)
    found = missing(doctor.examine())
    assert sum("error: unknown option" in finding.what for finding in found) >= len(ISAS) + 1  # and OpenMP
    assert not any("/tmp/x" in finding.what for finding in found)
    assert any("OpenMP" in finding.what for finding in found)


def test_a_program_that_dies_or_computes_nonsense(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    dies = "printf '#!/bin/sh\\nkill -ILL $$\\n' > $last; chmod +x $last"
    compiler(tmp_path / "c++", dies, monkeypatch)
    assert smoke.isa_fails("avx2") == "the program was ended by SIGILL"
    compiler(tmp_path / "c++", dies.replace("kill -ILL $$", "exit 1"), monkeypatch)
    assert "wrong" in (smoke.isa_fails("avx2") or "")
    compiler(tmp_path / "c++", ":", monkeypatch)
    assert "smoke" in (smoke.isa_fails("avx2") or "")  # it wrote no program


def test_a_compiler_that_cannot_be_run_does_not_stop_the_detection(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "c++").write_bytes(b"\x7fELF nonsense")
    (tmp_path / "c++").chmod(0o755)
    monkeypatch.setenv("CXX", str(tmp_path / "c++"))
    native.compiler_version.cache_clear()
    try:
        assert detect.environment([0]).compiler == "none"
    finally:
        native.compiler_version.cache_clear()
    assert missing(doctor.examine())


def test_folders_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PERFSUITE_CACHE", str(tmp_path / "file"))
    monkeypatch.setenv("PERFSUITE_DB", str(tmp_path / "file" / "perfsuite.db"))
    found = [finding for finding in missing(doctor.examine()) if "folder" in finding.what]
    assert {"PERFSUITE_CACHE" in f.remedy or "PERFSUITE_DB" in f.remedy for f in found} == {True}
    assert len(found) == 2


def test_a_database_servers_password_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERFSUITE_DB", "postgresql://me:secret@host/db")
    diagnosis = doctor.examine()
    assert fact(diagnosis, "database").value == "postgresql://me:***@host/db"
    assert "secret" not in json.dumps(diagnosis.to_json())


def test_a_package_that_is_not_there_or_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(detect, "version", lambda package: "1.0")
    assert "No module named 'no_such_package'" in (doctor._import_fails("no_such_package") or "")
    monkeypatch.setattr(detect, "version", lambda package: "none")
    assert doctor._import_fails("no_such_package") == "is not installed"


def test_torch_without_cuda_beside_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Gpu("NVIDIA H200", "sm_90", 1 << 37, "570.1")
    here = detect.machine()
    with_gpu = replace(here, gpus=(gpu,), environment=replace(here.environment, torch="2.13.0+cpu"))
    monkeypatch.setattr(detect, "machine", lambda: with_gpu)
    diagnosis = doctor.examine()
    assert fact(diagnosis, "NVIDIA H200").value == "sm_90, 128 GiB, driver 570.1"
    assert any("GPU" in finding.what for finding in missing(diagnosis))


def test_uncontrolled() -> None:
    assert MACHINE.virtual == "none" and doctor.uncontrolled(MACHINE) == ()
    environment = replace(MACHINE.environment, governor="powersave", turbo="unknown")
    sentences = doctor.uncontrolled(replace(MACHINE, virtual="kvm", cores=1, environment=environment))
    for word in ("kvm", "powersave", "Turbo", "one core"):
        assert sum(word in sentence for sentence in sentences) == 1
    assert all(sentence[0].isupper() and sentence.endswith(".") for sentence in sentences)


@pytest.mark.parametrize("activity", [Activity(stolen=0.2, idle=2.0), Activity(stolen=0.0, idle=0.1)])
def test_a_busy_machine_is_told(activity: Activity, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detect, "activity", lambda cores: activity)
    before = len(doctor.uncontrolled(detect.machine()))
    found = [f for f in doctor.examine().findings if f.kind is Kind.UNCONTROLLED]
    assert len(found) == before + 1


@pytest.mark.parametrize("width", [80, 120])
def test_the_screen_fits_and_leaves_nothing_out(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "/nonexistent")
    diagnosis = doctor.examine()
    screen = io.StringIO()
    doctor.show(diagnosis, Console(file=screen, width=width, soft_wrap=True))
    lines = screen.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    text = " ".join(screen.getvalue().split())
    for finding in diagnosis.findings:
        for said in (finding.what, finding.cost, finding.remedy):
            assert all(word in text for word in said.split())
    assert "…" not in text and "nothing is missing" not in text


def test_json() -> None:
    data = json.loads(json.dumps(doctor.examine().to_json()))
    assert set(data) == {"name", "machine", "toolchain", "gpus", "findings"}
    assert all(set(finding) == {"kind", "what", "cost", "remedy"} for finding in data["findings"])
