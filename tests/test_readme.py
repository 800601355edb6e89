"""The README's code works as it stands there, and names every command and option."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from perfsuite.cli import app

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
TESTS = "pytest -n 2 --dist worksteal"
FILES = dict(re.findall(r"`(mine/\w+\.py)`:\n\n```python\n(.*?)```", README, re.DOTALL))


def run(*words: str, kernels: Path | None = None) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, **({"PERFSUITE_KERNELS": str(kernels)} if kernels else {})}
    command = [sys.executable, "-m", "perfsuite.cli", *words]
    return subprocess.run(command, capture_output=True, text=True, env=env, timeout=300)


def commands(command: Any, said: str) -> Iterator[tuple[str, Any]]:
    """Every command with the words that a user types for it."""
    inner = getattr(command, "commands", {})
    for name, each in inner.items():
        yield from commands(each, f"{said} {name}")
    if not inner:
        yield said, command


def test_every_command_and_option_is_named() -> None:
    missing = []
    for name, command in commands(typer.main.get_command(app), "perfsuite"):
        missing += [name] * (name not in README)
        options = {option for parameter in command.params for option in parameter.opts if option.startswith("--")}
        missing += [f"{name} {option}" for option in options - {"--help"} if option not in README]
    assert missing == []


def test_python_code_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"## In Python\n\n```python\n(.*?)```", README, re.DOTALL)
    exec(compile(code, "README.md", "exec"), {})


def test_a_newcomer_adds_an_op_with_two_kernels(tmp_path: Path) -> None:
    """One file for the op, one for each kernel, no edit elsewhere; checked, tuned and dispatched."""
    assert set(FILES) == {"mine/ops.py", "mine/eager.py", "mine/inplace.py"}
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    mine = tmp_path / "mine"
    checked = run("check", "mine", "--json", kernels=mine)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert {(f["kernel"], f["reason"]) for f in json.loads(checked.stdout)} == {
        ("mine/eager", None),
        ("mine/inplace", None),
    }
    tuned = json.loads(run("tune", "--quick", "--no-ceilings", "mine", "--json", kernels=mine).stdout)
    assert tuned["failed"] == 0
    assert tuned["trials_new"] >= 4
    (entry,) = json.loads(run("best", "mine", "--json", kernels=mine).stdout)
    assert entry["kernel"] in ("mine/eager", "mine/inplace")
    code = (
        "import torch, perfsuite; torch.set_num_threads(1); x = torch.randn(256, 1024);"
        f"f = perfsuite.fastest('squared_relu', miss='error', table=__import__('pathlib').Path({tuned['table']!r}));"
        "assert torch.allclose(f(x), torch.relu(x) ** 2)"
    )
    env = {**os.environ, "PERFSUITE_KERNELS": str(mine)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_kernels_of_the_readme_are_type_clean(tmp_path: Path) -> None:
    for name, text in FILES.items():
        (tmp_path / Path(name).name).write_text(text)
    # With the configuration and in the folder of the checkout, mypy finds torch in its cache.
    command = [sys.executable, "-m", "mypy", *map(str, sorted(tmp_path.glob("*.py")))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_set_up_takes_one_command_each() -> None:
    install, test = re.findall(r"```sh\n(python3 -m venv .*?)\n```", README)
    assert install.endswith("perfsuite report")
    assert test.endswith(f"-m {TESTS}")
    assert "\n" not in install + test
    check = (ROOT / "ci" / "check.sh").read_text()
    assert "-e '.[test]'" in check and f"-m {TESTS}" in check
