"""Which way imports point; what importing perfsuite loads."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LAYERS = (
    ("op", "kernel", "units", "terminal"),
    ("machine", "policy", "trial", "stats", "roofline", "budget", "timeline"),
    ("toolchain", "check", "measure", "search", "peers"),
    ("detect", "gpus", "places", "targets", "comparison"),
    (
        "registry",
        "schema",
        "migrations",
        "table",
        "race",
        "worker",
        "results",
        "bundle",
        "winners",
        "leaderboard",
        "plan",
        "racing",
        "events",
        "bench",
        "builds",
        "seeds",
        "knowledge",
        "searching",
    ),
    ("tune", "dispatch", "ops", "report", "doctor", "convert"),
    ("progress", "session", "lab", "catalogue", "checks", "compare", "standings"),
    ("cli",),
)
HEIGHT = {name: height for height, names in enumerate(LAYERS) for name in names}


def imported(path: Path) -> set[str]:
    """The modules of perfsuite that a file imports when it runs, those for type checkers apart."""
    tree = ast.parse(path.read_text())
    skipped = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and id(node) not in skipped and node.module:
            if node.module == "perfsuite":
                names |= {alias.name for alias in node.names}
            elif node.module.startswith("perfsuite."):
                names.add(node.module.split(".")[1])
    return names


def test_imports_point_downwards() -> None:
    wrong = []
    for path in sorted((ROOT / "perfsuite").rglob("*.py")):
        module = path.relative_to(ROOT / "perfsuite").parts[0].removesuffix(".py")
        if module in ("__init__", "kernels"):
            continue
        assert module in HEIGHT, f"{module} has no place in the layers"
        wrong += [
            f"{path.relative_to(ROOT)} imports {name}"
            for name in imported(path)
            if name != module and HEIGHT[name] > HEIGHT[module]
        ]
    assert wrong == []


def test_kernels_import_only_what_an_author_needs() -> None:
    allowed = {"op", "kernel", "toolchain", "machine", "kernels"}
    wrong = {str(path): names for path in (ROOT / "kernels").rglob("*.py") if (names := imported(path) - allowed)}
    assert wrong == {}


def test_dispatch_reaches_no_database_search_or_timer() -> None:
    code = (
        "import sys, perfsuite.dispatch; print([m for m in sys.modules if m.startswith(('sqlalchemy', 'perfsuite.'))])"
    )
    loaded = ast.literal_eval(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout)
    assert not [m for m in loaded if m.startswith("sqlalchemy")]
    assert not {"perfsuite.search", "perfsuite.measure", "perfsuite.results", "perfsuite.tune"} & set(loaded)


def test_importing_perfsuite_is_light() -> None:
    code = "import sys, perfsuite; print(any(m in sys.modules for m in ('torch', 'sqlalchemy', 'numpy', 'rich')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr


def test_kernels_stay_a_namespace_of_ours() -> None:
    assert not list((ROOT / "kernels").rglob("__init__.py"))
