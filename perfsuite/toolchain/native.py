"""C++ sources to shared libraries: compiled by g++ or clang++ for one ISA, cached by the digest of all that goes in."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

import platformdirs

# What a translation unit may use. The CPU_CAPABILITY macros choose the width of at::vec::Vectorized.
_AVX512 = ("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512cd", "-mprefer-vector-width=512")
_FMA = ("-mavx2", "-mfma", "-mf16c")
ISA_FLAGS: dict[str, tuple[str, ...]] = {
    "avx2": (*_FMA, "-DCPU_CAPABILITY=AVX2", "-DCPU_CAPABILITY_AVX2"),
    "avx512": (*_FMA, *_AVX512, "-DCPU_CAPABILITY=AVX512", "-DCPU_CAPABILITY_AVX512"),
    "avx512_bf16": (*_FMA, *_AVX512, "-mavx512bf16", "-DCPU_CAPABILITY=AVX512", "-DCPU_CAPABILITY_AVX512"),
    "amx": (
        *_FMA,
        *_AVX512,
        "-mavx512bf16",
        "-mavx512vnni",
        "-mamx-tile",
        "-mamx-bf16",
        "-mamx-int8",
        "-DCPU_CAPABILITY=AVX512",
        "-DCPU_CAPABILITY_AVX512",
    ),
}
_FLAGS = ("-O3", "-std=c++20", "-shared", "-fPIC", "-fopenmp", "-fno-math-errno", "-fno-trapping-math", "-Wall")
_INCLUDE = re.compile(r'^\s*#\s*include\s*"([^"]+)"', re.MULTILINE)
_TIMEOUT = 300.0


class CompileError(Exception):
    """A source did not compile; the message is the compiler's own."""


def compiler() -> str | None:
    """The C++ compiler: $CXX, else g++, else clang++; None where there is none."""
    named = os.environ.get("CXX")
    found = shutil.which(shlex.split(named)[0]) if named else None
    return found or (None if named else shutil.which("g++") or shutil.which("clang++"))


def missing_compiler() -> str | None:
    """The reason why native kernels cannot be built here, or None."""
    if compiler() is not None:
        return None
    if os.environ.get("CXX"):
        return f"CXX={os.environ['CXX']!r} is not a compiler that can be run: correct or unset it"
    return "no C++ compiler: install g++ (apt-get install g++) or set CXX"


@functools.cache
def compiler_version() -> str:
    path = compiler()
    if path is None:
        return "none"
    done = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=30)
    return done.stdout.splitlines()[0] if done.stdout else path


def source_files(source: Path) -> tuple[Path, ...]:
    """The source and every quoted include beside it, recursively, each once."""
    seen: dict[Path, None] = {}
    pending = [source]
    while pending:
        path = pending.pop()
        if path in seen or not path.is_file():
            continue
        seen[path] = None
        pending += [path.parent / name for name in _INCLUDE.findall(path.read_text())]
    return tuple(seen)


def load(source: Path, isa: str, defines: Mapping[str, int | str] | None = None, *, torch: bool = False) -> ctypes.CDLL:
    """The library compiled from `source` for `isa` with `-Dname=value` for each define.

    `torch=True` compiles against the headers that PyTorch ships and links libtorch_cpu (at::vec needs the headers only
    but includes c10; brgemm needs both). Raises CompileError with the compiler's message.
    """
    path = str(build(source, isa, defines, torch=torch))
    if torch:
        import torch as _  # noqa: F401, its libraries must be in the process first
    return ctypes.CDLL(path)


def build(source: Path, isa: str, defines: Mapping[str, int | str] | None = None, *, torch: bool = False) -> Path:
    """Compile if the cache does not have it; the path of the shared library."""
    path = compiler()
    if path is None:
        raise CompileError(missing_compiler())
    flags = [*_FLAGS, *ISA_FLAGS[isa], *(f"-D{name}={value}" for name, value in sorted((defines or {}).items()))]
    links: list[str] = []
    if torch:
        include, library = _torch_paths()
        flags += [f"-I{include}", f"-I{include}/torch/csrc/api/include"]
        links = [f"-L{library}", f"-Wl,-rpath,{library}", "-ltorch_cpu", "-lc10"]
    target = cache_dir() / f"{source.stem}-{isa}-{_digest(source, path, flags)}.so"
    if not target.exists():
        _compile([path, *flags, str(source), *links], target)
    return target


def cache_path() -> Path:
    """Where compiled kernels are kept: below $PERFSUITE_CACHE, else the platform's cache folder."""
    root = Path(os.environ.get("PERFSUITE_CACHE") or platformdirs.user_cache_dir("perfsuite", appauthor=False))
    return root / "native"


def cache_dir() -> Path:
    """The folder of compiled kernels, which is made if need be."""
    folder = cache_path()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _digest(source: Path, path: str, flags: list[str]) -> str:
    digest = hashlib.sha256("\0".join([compiler_version(), path, *flags]).encode())
    for file in sorted(source_files(source)):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:20]


def _compile(command: list[str], target: Path) -> None:
    """Compile beside the target and rename, so that a killed compile never leaves half a library."""
    handle, temporary = tempfile.mkstemp(suffix=".so", dir=target.parent)
    os.close(handle)
    try:
        done = subprocess.run([*command, "-o", temporary], capture_output=True, text=True, timeout=_TIMEOUT)
        if done.returncode != 0:
            raise CompileError(done.stderr.strip() or f"{command[0]} ended with exit code {done.returncode}")
        Path(temporary).replace(target)
    except subprocess.TimeoutExpired as late:
        raise CompileError(f"{command[0]} took longer than {_TIMEOUT:.0f} s and was stopped") from late
    finally:
        Path(temporary).unlink(missing_ok=True)


@functools.cache
def _torch_paths() -> tuple[Path, Path]:
    import torch

    root = Path(torch.__file__).parent
    return root / "include", root / "lib"
