#!/usr/bin/env bash
# Everything that wants an H100, in one command: bench/on_gpu.sh OUT [SECONDS]
#
# Builds, runs the `gpu` tests and the check of every op on its kernels, runs small shapes under compute-sanitizer, then
# times the benchmarks; SECONDS (570) bounds the whole. Correctness comes first, and within each suite of benchmarks the
# rows that say most (Benchmark.rank); a stage that runs out of its time is stopped and keeps what it has. Nothing is
# downloaded: needed are nvcc, a C++20 compiler, and a python3 with torch, cmake, ninja, pybind11, pytest and tkpy's other
# dependencies. Installs tkpy into that python3 (editable). PYTHON names another one.
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
export TKPY_BUILD_DIR=$PWD/build/on_gpu
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

# stage NAME UNTIL COMMAND...: runs COMMAND until UNTIL hundredths of the whole time have passed; what earlier stages did
# not use is there for later ones.
stage() {
  local name=$1 until=$(($2 * total / 100)) began=$SECONDS status=0
  shift 2
  say "== $name: $*"
  if [[ -n $reason ]]; then
    say "$name: not run ($reason)" | tee -a "$out/summary.txt"
    failed=1
    return
  fi
  local limit=$((until - SECONDS))
  if ((limit < 1)); then
    say "$name: not run (no time left)" | tee -a "$out/summary.txt"
    failed=1
    return
  fi
  timeout --signal=INT --kill-after=10 "$limit" "$@" >>"$out/log.txt" 2>&1 || status=$?
  case $status in
    0) say "$name: ok, $((SECONDS - began)) s" ;;
    124 | 130 | 137) say "$name: out of time after $((SECONDS - began)) s; what it had done is kept" ;;
    *) say "$name: FAILED with status $status after $((SECONDS - began)) s: $(tail -n 1 "$out/log.txt")" ;;
  esac | tee -a "$out/summary.txt"
  ((status == 0)) || failed=1
}

tkpy=("$python" -c "from tkpy.cli import main; main()")
kernels=(--backend cuda --backend triton --device cuda --dtype bfloat16)

: >"$out/summary.txt"
: >"$out/log.txt"
nvidia-smi >>"$out/log.txt" 2>&1 || true
stage build 30 "$python" -m pip install --no-index --no-deps --no-build-isolation -e .
stage "gpu tests" 48 "$python" -m pytest -m gpu -q
stage "check of every op" 54 "${tkpy[@]}" check "${kernels[@]}" --all-cases
stage memcheck 60 compute-sanitizer --tool memcheck --error-exitcode 9 "${tkpy[@]}" check --backend cuda --device cuda --dtype bfloat16
stage racecheck 65 compute-sanitizer --tool racecheck --error-exitcode 9 "${tkpy[@]}" check --backend cuda --device cuda --dtype bfloat16
stage "ops" 82 "${tkpy[@]}" bench ops --seconds 0.3 --out "$out/ops.jsonl" --against published
stage "micro" 91 "${tkpy[@]}" bench micro --seconds 0.2 --out "$out/micro.jsonl" --against published
stage "models" 96 "${tkpy[@]}" bench models --seconds 1 --out "$out/models.jsonl"

report() {
  local plots suite
  plots=$(mktemp -d)
  for suite in ops micro models; do
    [[ -s $out/$suite.jsonl ]] || continue
    "${tkpy[@]}" bench show "$out/$suite.jsonl" --against published --plots "$plots/$suite" || true
  done >"$out/tables.txt" 2>&1
  tar -czf "$out/plots.tar.gz" -C "$plots" .
  rm -r "$plots"
}
if [[ -z $reason ]]; then report; fi
say "$((SECONDS)) s in all; see $out/summary.txt"
exit "$failed"
