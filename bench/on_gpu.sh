#!/usr/bin/env bash
# Everything that wants an H100, in one command: bench/on_gpu.sh OUT [SECONDS]
#
# Builds, checks every op on its kernels and runs the `gpu` tests, runs small shapes under compute-sanitizer, then times
# the benchmarks; SECONDS (570) bounds the whole. Correctness comes first, and within each suite of benchmarks the rows
# that say most (Benchmark.rank). A stage that runs out of its time is stopped and keeps what it has. A kernel that hangs
# or loses the device costs its own test or row, and the check of its op. Nothing is downloaded: needed are nvcc (on PATH,
# in CUDA_HOME or /usr/local/cuda), a C++20 compiler, and a python3 with torch, cmake, ninja, pybind11, setuptools, pytest
# and tkpy's other dependencies. Installs tkpy into that python3 (editable). PYTHON names another one.
#
# OUT gets few files, each written as the run goes on:
#   summary.txt   a line a stage: what it was, how it ended, how long it took
#   log.txt       all output
#   ops.jsonl micro.jsonl models.jsonl   rows
#   tables.txt    the rows as tables, with published figures beside them;  plots.tar.gz   as pictures
#
# New rows and tests are found by themselves: this file names none. Exit status: 0 if every stage passed.
set -euo pipefail

if [[ $# -lt 1 || $# -gt 2 || $1 == -* || ! ${2:-570} =~ ^[0-9]+$ ]]; then
  echo "usage: bench/on_gpu.sh OUT [SECONDS]" >&2
  exit 2
fi
cd "$(dirname "${BASH_SOURCE[0]}")/.."
mkdir -p "$1"
out=$(cd "$1" && pwd)
readonly out total=${2:-570} python=${PYTHON:-python3}
cores=$(nproc)
export OMP_NUM_THREADS=4 PYTHONUNBUFFERED=1 MAX_JOBS=$cores CMAKE_BUILD_PARALLEL_LEVEL=$cores
export TKPY_BUILD_DIR=$PWD/build/on_gpu PIP_BREAK_SYSTEM_PACKAGES=1 PIP_DISABLE_PIP_VERSION_CHECK=1
PATH=$PATH:${CUDA_HOME:-/usr/local/cuda}/bin # nvcc, compute-sanitizer
failed=0
SECONDS=0 # bash counts from here

say() { echo "$*" | tee -a "$out/log.txt"; }

# Why nothing can run on a GPU here; empty where it can.
why_not() {
  if ! command -v nvidia-smi >/dev/null; then
    echo "there is no nvidia-smi"
  elif ! nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | grep -q '^9\.0'; then
    echo "nvidia-smi names no GPU of compute capability 9.0"
  fi
}
reason=$(why_not)

# For --per-op: its arguments, followed by --op and a name, for every op that has kernels, each in a process of its own.
per_op() {
  "$python" -c "from tkpy import registry
for name, op in registry.ops().items():
  if 'cuda' in op.available: print(name)" |
    xargs -P $((cores / 2 + 1)) -I {} timeout --foreground --kill-after=5 60 "$@" --op {}
}
export -f per_op
export python cores

# stage NAME UNTIL [--per-op] COMMAND...: runs COMMAND until UNTIL hundredths of the whole time have passed; what earlier
# stages did not use is there for later ones. Status 3 is a benchmark that lost the device: the command goes on behind it.
stage() {
  local name=$1 until=$(($2 * total / 100)) began=$SECONDS status=3 each=()
  shift 2
  if [[ $1 == --per-op ]]; then
    each=(bash -c 'set -o pipefail; per_op "$@"' "$1")
    shift
  fi
  say "== $name: $*"
  local why=$reason
  if [[ -z $why ]] && ! command -v "$1" >/dev/null; then why="there is no $1"; fi
  if [[ -z $why ]] && ((until - SECONDS < 1)); then why="no time left"; fi
  if [[ -n $why ]]; then
    say "$name: not run ($why)" | tee -a "$out/summary.txt"
    failed=1
    return
  fi
  while ((status == 3 && until - SECONDS > 0)); do
    status=0
    timeout --signal=INT --kill-after=10 "$((until - SECONDS))" "${each[@]}" "$@" >>"$out/log.txt" 2>&1 || status=$?
    ((status == 0)) || failed=1
  done
  case $status in
    0) say "$name: ok, $((SECONDS - began)) s" ;;
    3 | 124 | 130 | 137) say "$name: out of time after $((SECONDS - began)) s; what it had done is kept" ;;
    *) say "$name: FAILED with status $status after $((SECONDS - began)) s: $(tail -n 1 "$out/log.txt")" ;;
  esac | tee -a "$out/summary.txt"
}

tkpy=("$python" -c "from tkpy.cli import main; main()")
small=("${tkpy[@]}" check --backend cuda --device cuda --dtype bfloat16) # Triton's kernels are checked by gpu tests
# torch asks the driver for things that it may not have: such answers are no errors.
sanitizer=(compute-sanitizer --report-api-errors no --error-exitcode 9 --tool)

# benchmarks SUITE UNTIL OPTION...: its rows; those that the file has already are left out.
benchmarks() {
  stage "$1" "$2" "${tkpy[@]}" bench "$1" "${@:3}" --patience 45 --resume --out "$out/$1.jsonl"
}

: >"$out/summary.txt"
: >"$out/log.txt"
rm -f "$out"/{ops,micro,models}.jsonl
nvidia-smi >>"$out/log.txt" 2>&1 || true
stage build 28 "$python" -m pip install --no-index --no-deps --no-build-isolation -e .
stage "check of every op" 36 --per-op "${small[@]}" --all-cases
stage "gpu tests" 52 "$python" bench/gpu_tests.py
stage memcheck 58 --per-op "${sanitizer[@]}" memcheck "${small[@]}"
stage racecheck 63 --per-op "${sanitizer[@]}" racecheck "${small[@]}"
benchmarks "ops" 80 --seconds 0.3
benchmarks "micro" 90 --seconds 0.2
benchmarks "models" 95 --seconds 1

# show SUITE OPTION...: a suite's rows, if there is time.
show() {
  [[ -s $out/$1.jsonl ]] && ((total > SECONDS)) || return 0
  timeout "$((total - SECONDS))" "${tkpy[@]}" bench show "$out/$1.jsonl" "${@:2}" 2>&1 || true
}

# Tables first: drawing takes longer.
report() {
  local plots suite
  plots=$(mktemp -d)
  for suite in ops micro models; do show "$suite" --against published; done >"$out/tables.txt"
  for suite in ops micro models; do show "$suite" --plots "$plots/$suite"; done >>"$out/log.txt"
  tar -czf "$out/plots.tar.gz" -C "$plots" .
  rm -r "$plots"
}
if [[ -z $reason ]]; then report; fi
say "$((SECONDS)) s in all; see $out/summary.txt"
exit "$failed"
