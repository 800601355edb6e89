"""Whether the compiler really works here: a small program for each ISA, and one for OpenMP, compiled and run."""

from __future__ import annotations

import signal
import subprocess
import tempfile
from pathlib import Path

from perfsuite.toolchain.native import ISA_FLAGS, compiler, missing_compiler

# Each returns 0 when an instruction of the ISA computes what it should. No headers: <immintrin.h> alone takes 0.9 s.
_PROGRAMS = {
    "avx2": """
        typedef float V __attribute__((vector_size(32)));
        int main() {
          V sum = V{} + 1.0f, one = V{} + 1.0f;
          asm("vfmadd231ps %1, %1, %0" : "+x"(sum) : "x"(one));
          return sum[7] != 2.0f; }""",
    "avx512": """
        typedef float V __attribute__((vector_size(64)));
        int main() {
          V sum = V{} + 1.0f, one = V{} + 1.0f;
          asm("vfmadd231ps %1, %1, %0" : "+v"(sum) : "v"(one));
          return sum[15] != 2.0f; }""",
    "avx512_bf16": """
        typedef float V __attribute__((vector_size(64)));
        typedef int I __attribute__((vector_size(64)));
        int main() {
          V sum = V{};
          I ones = I{} + 0x3f803f80;
          asm("vdpbf16ps %1, %1, %0" : "+v"(sum) : "v"(ones));
          return sum[15] != 2.0f; }""",
    # ARCH_REQ_XCOMP_PERM for XTILEDATA (system call 158), then a product of two tiles of 16 rows of 64 ones.
    "amx": """
        extern "C" long syscall(long, ...);
        int main() {
          if (syscall(158, 0x1023, 18)) return 2;
          unsigned char shape[64] = {1}, ones[1024];
          int sums[256];
          for (int t = 0; t < 3; ++t) shape[16 + 2 * t] = 64, shape[48 + t] = 16;
          for (unsigned char& one : ones) one = 1;
          asm volatile("ldtilecfg %1; tilezero %%tmm0; tileloadd (%2, %3), %%tmm1; tileloadd (%2, %3), %%tmm2;"
                       "tdpbssd %%tmm2, %%tmm1, %%tmm0; tilestored %%tmm0, (%4, %3); tilerelease"
                       : "=m"(sums) : "m"(shape), "r"(ones), "r"(64L), "r"(sums), "m"(ones));
          return sums[255] != 64; }""",
}
_OPENMP = "#include <omp.h>\nint main() { int n = 0;\n#pragma omp parallel reduction(+ : n)\nn += 1;\nreturn n < 1; }"
_SECONDS = 20.0


def isa_fails(isa: str) -> str | None:
    """Why a program for the ISA (one of native.ISA_FLAGS) cannot be compiled or run here, or None."""
    return _fails(_PROGRAMS[isa], ISA_FLAGS[isa])


def openmp_fails() -> str | None:
    """Why a program with OpenMP cannot be compiled or run here, or None."""
    return _fails(_OPENMP, ())


def _fails(source: str, flags: tuple[str, ...]) -> str | None:
    path = compiler()
    if path is None:
        return missing_compiler()
    with tempfile.TemporaryDirectory() as folder:
        code, program = Path(folder, "smoke.cpp"), Path(folder, "smoke")
        code.write_text(source)
        try:
            command = [path, "-std=c++20", "-fopenmp", "-O1", *flags, str(code), "-o", str(program)]
            built = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS)
            if built.returncode != 0:
                return _first_error(built.stderr) or f"{path} ended with exit code {built.returncode}"
            ended = subprocess.run([str(program)], capture_output=True, timeout=_SECONDS).returncode
        except (OSError, subprocess.SubprocessError) as wrong:
            return str(wrong)
    if ended < 0:
        return f"the program was ended by {signal.Signals(-ended).name}"
    return f"the program computed something wrong (exit code {ended})" if ended else None


def _first_error(text: str) -> str | None:
    """The first line of a compiler's output that tells an error, without the temporary path before it."""
    line = next((line for line in text.splitlines() if "error" in line), None)
    return line and line[line.index("error") :]
