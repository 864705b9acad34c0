"""The rows: every file here defines BENCHMARKS or benchmarks(); see tkpy/bench/spec.py."""
