#!/usr/bin/env bash
# What is run on a machine with a GPU, within 9 minutes: the GPU tests, then tuning, report and export into a folder.
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
policy=cuda,graph
status=0
missed=()

step() { printf '\n== %s (%d s of %d)\n' "$*" "$SECONDS" "$total"; }
left() { echo $((total - SECONDS)); }
# run LIMIT NAME COMMAND...: COMMAND for at most LIMIT seconds; its failure is told at the end, and stops nothing.
run() {
  local limit=$1 name=$2
  shift 2
  step "$name"
  timeout --signal=INT --kill-after=10 "$limit" "$@" 2>&1
  local code=$?
  if [ $code -ne 0 ]; then
    status=1
    missed+=("$name ended with exit code $code$([ $code -eq 124 ] && echo ", stopped after $limit s")")
  fi
  return $code
}

run 60 "machine" "$python" -m perfsuite.cli doctor
run $((total / 4)) "GPU tests" "$python" -m pytest -q -m gpu tests
if [ "$(left)" -gt 90 ]; then
  budget=$(($(left) - 70))
  run $((budget + 40)) "tune" "$python" -m perfsuite.cli tune --full --policy "$policy" --budget "${budget}s" triton_rows
else
  missed+=("tune: no time was left for it")
fi
run 20 "best" "$python" -m perfsuite.cli best
run 40 "report" "$python" -m perfsuite.cli report --policy "$policy" --out "$out/report"
run 15 "export" "$python" -m perfsuite.cli export --here "$out/trials.jsonl"

step "what was not reached"
"$python" - "$out/perfsuite.db" <<'PY' || missed+=("the list of workloads without a winner")
import sys

from perfsuite import registry, session

won = {entry.workload for entry in session.best(None, sys.argv[1]) if entry.policy.device == "cuda"}
wanted = [job.workload for job in registry.discover().select(["triton_rows"])]
missing = [str(workload) for workload in wanted if workload not in won]
print(f"{len(wanted) - len(missing)} of {len(wanted)} workloads have a winner on this GPU")
for workload in missing:
    print("not reached:", workload)
PY
for what in ${missed[@]+"${missed[@]}"}; do
  echo "not done: $what"
done
exit $status
