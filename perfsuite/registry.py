"""Which ops and kernels there are: found in the package, entry points and $PERFSUITE_KERNELS, never listed by hand."""

from __future__ import annotations

import ast
import difflib
import fnmatch
import hashlib
import importlib
import importlib.metadata
import importlib.util
import os
import sys
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from perfsuite.kernel import Kernel
from perfsuite.op import Op, Workload
from perfsuite.toolchain import native

ENTRY_POINTS = "perfsuite.kernels"
_OURS = "perfsuite.kernels"
_THEIRS = "perfsuite_kernels"


@dataclass(frozen=True)
class Problem:
    """A file that could not be used, and why; everything else goes on."""

    path: Path
    reason: str


@dataclass(frozen=True)
class Job:
    """One workload and the kernels to tune for it."""

    workload: Workload
    kernels: tuple[Kernel, ...]


@dataclass
class Registry:
    """Every op by name and every kernel by `family/name`."""

    ops: dict[str, Op] = field(default_factory=dict)
    kernels: dict[str, Kernel] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    @property
    def families(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys([op.family for op in self.ops.values()] + [k.family for k in self.kernels.values()]))

    def kernels_for(self, op: str) -> tuple[Kernel, ...]:
        """The op's kernels, the default first."""
        of = [kernel for kernel in self.kernels.values() if op in kernel.ops]
        return tuple(sorted(of, key=lambda kernel: (not kernel.default, str(kernel))))

    @property
    def digests(self) -> Mapping[str, str]:
        return {name: kernel.digest for name, kernel in self.kernels.items()}

    @property
    def defaults(self) -> frozenset[str]:
        return frozenset(name for name, kernel in self.kernels.items() if kernel.default)

    def select(self, patterns: Sequence[str] = (), *, tests: bool = False) -> tuple[Job, ...]:
        """The jobs that the patterns name, each workload once; all of them without a pattern.

        A pattern is a family, an op, a kernel (`family/name` or name), a glob over these, or a workload spelled out.
        The tests' workloads are left out unless asked for. ValueError names the nearest known word for an unknown one.
        """
        jobs: dict[Workload, dict[str, Kernel]] = {}
        for pattern in patterns or ("*",):
            for workload, kernels in self._matching(pattern, tests):
                jobs.setdefault(workload, {}).update((str(kernel), kernel) for kernel in kernels)
        return tuple(Job(workload, tuple(kernels.values())) for workload, kernels in jobs.items())

    def _matching(self, pattern: str, tests: bool) -> Iterator[tuple[Workload, tuple[Kernel, ...]]]:
        if "[" in pattern and "=" in pattern:
            workload = self.workload(pattern)
            yield workload, self.kernels_for(workload.op)
            return
        matched = False
        for op in self.ops.values():
            every = self.kernels_for(op.name)
            named = any(fnmatch.fnmatchcase(word, pattern) for word in (op.family, op.name))
            chosen = tuple(k for k in every if named or _named(k, pattern))
            matched = matched or named or bool(chosen)
            for workload in op.workloads:
                if chosen and (tests or not workload.test):
                    # The default runs beside a kernel chosen by name: a speed-up needs its baseline.
                    yield workload, tuple(k for k in every if k in chosen or k.default)
        if not matched:
            raise ValueError(self._unknown(pattern))

    def names(self, pattern: str, workload: Workload, kernel: str) -> bool:
        """Whether a pattern names this workload, its op or family, or this kernel; ValueError as for `select`."""
        if "[" in pattern and "=" in pattern:
            return self.workload(pattern) == workload
        if not self.select([pattern], tests=True):
            return False
        words = (workload.op, self.ops[workload.op].family, kernel, kernel.partition("/")[2])
        return any(fnmatch.fnmatchcase(word, pattern) for word in words)

    def workload(self, text: str) -> Workload:
        """The workload spelled out in `text`, checked against its op."""
        workload = Workload.parse(text)
        if workload.op not in self.ops:
            raise ValueError(self._unknown(workload.op))
        return self.ops[workload.op].complete(workload)

    def _unknown(self, word: str) -> str:
        words = [*self.families, *self.ops, *self.kernels, *(kernel.name for kernel in self.kernels.values())]
        near = difflib.get_close_matches(word, words, n=3)
        hint = f"did you mean {' or '.join(dict.fromkeys(near))}?" if near else "`perfsuite list` shows what there is"
        return f"{word!r} is no family, op, kernel or workload; {hint}"


def _named(kernel: Kernel, pattern: str) -> bool:
    return fnmatch.fnmatchcase(str(kernel), pattern) or fnmatch.fnmatchcase(kernel.name, pattern)


def discover(extra: Iterable[Path] = ()) -> Registry:
    """Every op and kernel of the package, the entry points, $PERFSUITE_KERNELS and the `extra` folders.

    A file that cannot be imported or clashes with another becomes a `Problem`.
    """
    registry = Registry()
    for ours in importlib.import_module(_OURS).__path__:
        for family in _families(Path(ours)):
            _read(registry, family, f"{_OURS}.{family.name}")
    for root in (*_entry_points(registry), *_environment(registry), *extra):
        for family in _families(root):
            _read(registry, family, _package(family))
    return registry


def _families(root: Path) -> list[Path]:
    """The folder itself if it holds Python files (beside a package's __init__), else its sub-folders that do."""
    if any(path.name != "__init__.py" for path in root.glob("*.py")):
        return [root]
    return sorted(path for path in root.iterdir() if path.is_dir() and any(path.glob("*.py")))


def _entry_points(registry: Registry) -> Iterator[Path]:
    for entry in importlib.metadata.entry_points(group=ENTRY_POINTS):
        try:
            yield from (Path(path) for path in entry.load().__path__)
        except Exception as wrong:
            registry.problems.append(Problem(Path(entry.value), f"entry point {entry.name}: {_says(wrong)}"))


def _environment(registry: Registry) -> Iterator[Path]:
    for name in filter(None, os.environ.get("PERFSUITE_KERNELS", "").split(os.pathsep)):
        path = Path(name).expanduser().resolve()
        if path.is_dir():
            yield path
        else:
            registry.problems.append(Problem(path, "PERFSUITE_KERNELS names it, but it is not a folder"))


def _package(folder: Path) -> str:
    """A package for a folder outside ours, so that its files can import each other relatively.

    The path's digest keeps two folders of the same name apart.
    """
    tag = hashlib.sha256(str(folder).encode()).hexdigest()[:8]
    name = f"{_THEIRS}.{folder.name}_{tag}"
    for package, path in ((_THEIRS, []), (name, [str(folder)])):
        if package not in sys.modules:
            module = types.ModuleType(package)
            module.__path__ = path
            sys.modules[package] = module
    return name


def _read(registry: Registry, folder: Path, package: str) -> None:
    # ops.py first: a kernel may import it, and its own problems should be told once.
    for path in sorted(folder.glob("*.py"), key=lambda p: (p.name != "ops.py", p.name)):
        if path.name == "__init__.py":
            continue
        try:
            module = importlib.import_module(f"{package}.{path.stem}")
            for op in getattr(module, "OPS", ()) if path.name == "ops.py" else ():
                _add_op(registry, replace(op, family=folder.name))
            kernel = getattr(module, "KERNEL", None)
            if kernel is not None:
                _add_kernel(
                    registry,
                    replace(kernel, family=folder.name, name=path.stem, digest=code_digest(path, kernel.sources)),
                )
        except Exception as wrong:  # a user's file may raise anything while it is imported
            registry.problems.append(Problem(path, _says(wrong)))


def _add_op(registry: Registry, op: Op) -> None:
    if op.name in registry.ops:
        raise ValueError(f"the op {op.name} is already defined by the family {registry.ops[op.name].family}")
    registry.ops[op.name] = op


def _add_kernel(registry: Registry, kernel: Kernel) -> None:
    if str(kernel) in registry.kernels:
        raise ValueError(f"the kernel {kernel} is already defined elsewhere: rename the folder or the file")
    registry.kernels[str(kernel)] = kernel


def _says(wrong: Exception) -> str:
    return f"{type(wrong).__name__}: {wrong}"


def code_digest(path: Path, sources: Sequence[str] = ()) -> str:
    """Digest of a kernel's code: its file, the files of its folder that it imports (ops.py apart), and its sources.

    Raises FileNotFoundError for a declared source that does not exist.
    """
    files: set[Path] = set()
    pending = [path]
    while pending:
        file = pending.pop()
        if file not in files:
            files.add(file)
            pending += _imported(file)
    for name in sources:
        source = path.parent / name
        if not source.is_file():
            raise FileNotFoundError(f"{path.name} declares the source {name}, which is not in {path.parent}")
        files.update(native.source_files(source))
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def _imported(file: Path) -> list[Path]:
    """The sibling files that a Python file imports, ops.py apart: workloads may be added without new measurements."""
    names: list[str] = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level == 1 and not module:
                names += [alias.name for alias in node.names]
            elif node.level == 1 or module.startswith(f"{_OURS}.{file.parent.name}"):
                last = module.rpartition(".")[2]
                names += [alias.name for alias in node.names] if last == file.parent.name else [last]
    siblings = (file.with_name(f"{name}.py") for name in names if name != "ops")
    return [path for path in siblings if path.is_file()]
