#!/usr/bin/env bash
# What is run on a machine with a GPU, within 9 minutes: the GPU tests; tuning; our kernels, eager, torch.compile (as it is
# and with max-autotune) and Liger-Kernel, where it is installed, in the same interleaved runs; report and export.
# Usage: ci/gpu.sh OUT_DIR. PYTHON chooses the interpreter; perfsuite is taken from this checkout, its dependencies from
# the interpreter. SECONDS_IN_ALL (540) can be shortened for a rehearsal.
set -uo pipefail
cd "$(dirname "$0")/.."
if [ $# -ne 1 ]; then
  echo "usage: ci/gpu.sh OUT_DIR" >&2
  exit 2
fi

total=${SECONDS_IN_ALL:-540}
out=$1
mkdir -p "$out"
out=$(cd "$out" && pwd)
python=${PYTHON:-python3}
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PERFSUITE_DB="$out/perfsuite.db"
# A peer that compiles for longer is left out.
export PERFSUITE_LIMIT_BUILD="${PERFSUITE_LIMIT_BUILD:-60}"
policy=cuda,graph
# What is compared first: 2^26 elements and more, then few long rows, then what models have; the rest as time allows.
first=(
  'softmax[rows=16384,cols=4096,bf16]' 'rms_norm[rows=16384,cols=4096,bf16]' 'layer_norm[rows=16384,cols=4096,bf16]'
  'softmax[rows=16384,cols=4096,f32]' 'add_rms_norm[rows=16384,cols=4096,bf16]'
  'cross_entropy[rows=1024,cols=128256,bf16]' 'layer_norm_backward[rows=16384,cols=4096,bf16]'
  'softmax[rows=1,cols=4194304,f32]' 'softmax[rows=16,cols=128256,bf16]' 'rms_norm[rows=16,cols=128256,bf16]'
  'group_norm[n=2,c=320,h=64,w=64,groups=32,bf16]' 'batch_norm[n=8,c=64,h=56,w=56,bf16]'
)
ours='triton_*'
status=0
missed=()

step() { printf '\n== %s (%d s of %d)\n' "$*" "$SECONDS" "$total"; }
left() { echo $((total - SECONDS)); }
# run LIMIT NAME COMMAND...: COMMAND for at most LIMIT seconds; its failure is told at the end, and stops nothing.
run() {
  local limit=$1 name=$2 most=$(($(left) - 5))
  shift 2
  step "$name"
  [ "$limit" -gt "$most" ] && limit=$((most > 5 ? most : 5))
  timeout --signal=INT --kill-after=10 "$limit" "$@"
  local code=$?
  if [ $code -ne 0 ]; then
    status=1
    missed+=("$name ended with exit code $code$([ $code -eq 124 ] && echo ", stopped after $limit s")")
  fi
  return $code
}
# timed SHARE LEAST NAME COMMAND...: COMMAND with --budget, SHARE percent of what is left before the last steps' 75 s.
timed() {
  local budget=$((($(left) - 75) * $1 / 100)) least=$2 name=$3
  shift 3
  if [ "$budget" -ge "$least" ]; then
    run $((budget + 30)) "$name" "$@" --budget "${budget}s"
  else
    missed+=("$name: no time was left for it")
  fi
}
cli=("$python" -m perfsuite.cli)

run 60 "machine" "${cli[@]}" doctor
parallel=$("$python" -c 'import xdist' 2>/dev/null && echo "-n 4")
run $((total / 4)) "GPU tests" "$python" -m pytest -q $parallel -m gpu $(grep -l 'mark\.gpu' tests/*.py)
timed 55 20 "tune" "${cli[@]}" tune --quick --policy "$policy" "${first[@]}" "$ours"
timed 80 15 "compare" "${cli[@]}" compare --peers --rounds 12 --policy "$policy" --out "$out/compare.jsonl" \
  "${first[@]}" "$ours"
run 15 "best" "${cli[@]}" best
run 40 "report" "${cli[@]}" report --policy "$policy" --out "$out/report"
run 15 "export" "${cli[@]}" export --here "$out/trials.jsonl"

step "what was not reached"
"$python" - "$out" "${first[@]}" "$ours" <<'PY' || missed+=("the list of what was not reached")
import sys
from pathlib import Path

from rich.console import Console

from perfsuite import registry, session, standings
from perfsuite.comparison import Journal

out, patterns = Path(sys.argv[1]), sys.argv[2:]
compared = set()
if (out / "compare.jsonl").exists():
    journal = Journal.load(out / "compare.jsonl")
    compared = set(journal.races)
    with (out / "compare.txt").open("w") as file:
        standings.show(journal, Console(file=file, width=200), goals=False)
    print((out / "compare.txt").read_text())
won = {str(entry.workload) for entry in session.best(None, str(out / "perfsuite.db")) if entry.policy.device == "cuda"}
wanted = [str(job.workload) for job in registry.discover().select(patterns)]
print(f"of {len(wanted)} workloads {len(won & set(wanted))} have a winner on this GPU, {len(compared)} were compared")
for workload in wanted:
    lacking = " and ".join(["no winner"] * (workload not in won) + ["not compared"] * (workload not in compared))
    if lacking:
        print(f"not reached: {workload}: {lacking}")
PY
for what in ${missed[@]+"${missed[@]}"}; do
  echo "not done: $what"
done
exit $status
