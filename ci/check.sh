#!/usr/bin/env bash
# What CI runs: a fresh virtual environment, style, types, tests, and the two commands of the README for real.
# Usage: ci/check.sh. PYTHON chooses the interpreter, 3.11 or newer.
set -euo pipefail
cd "$(dirname "$0")/.."

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
export PERFSUITE_CACHE="$scratch/cache" TRITON_CACHE_DIR="$scratch/triton" TORCHINDUCTOR_CACHE_DIR="$scratch/inductor"

step() { printf '\n== %s\n' "$*"; }

step "install into a fresh virtual environment"
"${PYTHON:-python3}" -m venv "$scratch/venv"
bin="$scratch/venv/bin"
"$bin/python" -m pip install -qq --disable-pip-version-check -c ci/constraints.txt -e '.[test]'
"$bin/python" -c 'import torch; print("torch", torch.__version__)'

step "ruff"
"$bin/ruff" check .
"$bin/ruff" format --check perfsuite kernels tests ci

step "mypy"
"$bin/mypy"

step "pytest"
"$bin/python" -m pytest -n 2 --dist worksteal -q

step "perfsuite tune, then report"
database="$scratch/results/perfsuite.db"
"$bin/perfsuite" tune --quick --db "$database" 'softmax[rows=64,cols=1000,f32]'
"$bin/perfsuite" best --db "$database" softmax
page=$("$bin/perfsuite" report --db "$database" --out "$scratch/report" | tail -n 1)
test -s "$page"
printf '\nAll checks passed.\n'
