# make demo    set up .venv, build, run the main job
# make test    the same set-up, then the whole test suite
# make check   format, lint, types, house rules and the fastest tests
# make bench   time the ops against their peers, on a machine with a GPU
# make fuzz    fuzz the emulator (needs clang): tests/emulator/fuzz/README.md
# make sanitize  the emulator's tests under AddressSanitizer, UBSan and ThreadSanitizer
# make clean   remove what the above made

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Tests run in two processes of one thread each: on small tensors more threads only get in each other's way.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadgroup

.PHONY: demo test check bench fuzz sanitize format clean

demo: $(VENV)/ready
	$(BIN)/tkpy demo

test: $(VENV)/ready
	$(PYTEST)

check: $(VENV)/ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(PYTEST) -m fast

bench: $(VENV)/ready
	$(BIN)/tkpy bench ops

FUZZ := build/fuzz
FUZZ_SECONDS ?= 600
fuzz: $(VENV)/ready
	$(BIN)/python tests/emulator/fuzz/corpus.py $(FUZZ)
	PATH=$(CURDIR)/$(BIN):$$PATH cmake -G Ninja -S . -B $(FUZZ)/cmake -DCMAKE_CXX_COMPILER=clang++ -DTKPY_PYTHON=OFF -DTKPY_FUZZ=ON -DTKPY_SANITIZE=ON
	PATH=$(CURDIR)/$(BIN):$$PATH cmake --build $(FUZZ)/cmake --target fuzz_ptx
	mkdir -p $(FUZZ)/corpus $(FUZZ)/crashes
	$(FUZZ)/cmake/fuzz_ptx -max_len=6000 -timeout=20 -max_total_time=$(FUZZ_SECONDS) -dict=$(FUZZ)/words.dict -artifact_prefix=$(FUZZ)/crashes/ $(FUZZ)/corpus $(FUZZ)/seeds

sanitize: $(VENV)/ready
	PATH=$(CURDIR)/$(BIN):$$PATH tests/emulator/sanitize.sh address
	PATH=$(CURDIR)/$(BIN):$$PATH tests/emulator/sanitize.sh thread

format: $(VENV)/ready
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Made anew when the pinned versions, the build, or a source of the compiled part change.
COMPILED := $(shell find csrc cmake -type f) CMakeLists.txt

$(VENV)/ready: pyproject.toml setup.py constraints.txt $(COMPILED)
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "tkpy needs Python 3.11 or newer, got " + sys.version)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt torch triton setuptools cmake ninja pybind11
	TKPY_BUILD_DIR=$(CURDIR)/build/cmake PATH=$(CURDIR)/$(BIN):$$PATH $(BIN)/python -m pip install --quiet --no-build-isolation -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build dist tkpy/_C*.so tkpy/kernels *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis demo_output bench_output
