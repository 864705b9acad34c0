#!/usr/bin/env bash
# Build the extension with sanitizers and run the emulator's tests under them:  sanitize.sh address|thread [pytest arguments]
#   address   AddressSanitizer and UndefinedBehaviorSanitizer; every test of the emulator but those that bound its memory,
#             those of Python around it, and Triton's kernels, which would take an hour
#   thread    ThreadSanitizer; the tests that run blocks on several host threads
# Ends at the first report. Needs g++ with its sanitizers; the extension it builds is not the one that is installed.
set -euo pipefail
kind=${1:?address or thread}
shift
cd "$(dirname "$0")/../.."
folder=$PWD/build/sanitize/$kind
mkdir -p "$folder"

cmake -G Ninja -S . -B "$folder/cmake" -DCMAKE_CXX_COMPILER=g++ -DPython_EXECUTABLE="$(command -v python)" \
  -DTKPY_SANITIZE="$kind" -DTKPY_MICROBENCH=OFF >"$folder.log"
cmake --build "$folder/cmake" --target _C
# The package again, by links, with this extension in place of its own.
rm -rf "$folder/site"
mkdir "$folder/site"
cp -rs "$PWD/tkpy" "$folder/site"
rm -f "$folder"/site/tkpy/_C*.so
cp "$folder"/cmake/_C*.so "$folder/site/tkpy"

cd tests/emulator
case $kind in
  address)
    runtime=libasan.so
    chosen=(test_async.py test_bad_waits.py test_census.py test_deadlock_report.py test_fuzz.py test_isa_forms.py test_multimem.py
      test_order.py test_parser.py test_registers.py test_sabotage.py test_schedules.py test_stack_and_heap.py
      test_video.py test_wmma_programs.py faults programs)
    ;;
  thread)
    runtime=libtsan.so
    chosen=(test_order.py test_schedules.py programs)
    ;;
esac
# CPython frees little at exit, and its own code is not instrumented. Exceptions must find libstdc++ when the runtime starts.
export ASAN_OPTIONS=detect_leaks=0 TSAN_OPTIONS="ignore_noninstrumented_modules=1 halt_on_error=1" UBSAN_OPTIONS=print_stacktrace=1
export LD_PRELOAD="$(g++ -print-file-name=$runtime) $(g++ -print-file-name=libstdc++.so.6)"
exec python -c 'import sys, pytest; sys.exit(pytest.main(sys.argv[1:]))' -x -s -o pythonpath="$folder/site" "$@" "${chosen[@]}"
