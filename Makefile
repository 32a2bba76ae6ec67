# The few words a person types; `make` alone lists them. Each sets up what it needs: system packages (apt-get), .venv with
# the pinned requirements, the build. What is there already is not done again.
BUILD ?= build/dev
VENV ?= .venv
PREFIX ?= /usr/local
MODEL ?= llama
JOBS ?= $(shell nproc)
QUICK ?=
STAGES ?=
CMAKE_ARGS ?=
PYTHON := $(abspath $(VENV))/bin/python
# The programs of the virtual environment (cmake, ninja, ruff) come first.
export PATH := $(abspath $(VENV))/bin:$(PATH)
# Tests and examples run from the sources with the library of this build.
NATIVE = PYTHONPATH=$(CURDIR)/python LIGER_NATIVE_DIR=$(abspath $(BUILD))
# The aarch64 driver runs under emulation, thirty times slower: every operator and mode, but a part of the cases.
AARCH64_TEST ?= --quick

SYSTEM := build/.stamps/system
TOOLS := build/.stamps/tools
SETUP := build/.stamps/venv

# A pipe fails with any of its programs.
SHELL := bash
.SHELLFLAGS := -o pipefail -ec

.DEFAULT_GOAL := help
.PHONY: help
help: ## this list
	@grep -hE '^[a-z0-9_-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9_-]+):.*## (.*)/  make \1|\2/' | column -t -s '|'

# ---- set-up --------------------------------------------------------------------------------------------------------

$(SYSTEM): tools/system_packages.sh
	@tools/system_packages.sh cc=gcc c++=g++ pkg-config=pkg-config clang-format=clang-format \
	    python3=python3 python-venv=python3-venv python-headers=python3-dev
	@mkdir -p $(@D) && touch $@

# What a build needs; it need not wait for torch.
$(TOOLS): requirements/build.txt $(SYSTEM)
	@test -x $(PYTHON) || python3 -m venv $(VENV)
	$(PYTHON) -m pip install --quiet --disable-pip-version-check -r requirements/build.txt
	@mkdir -p $(@D) && touch $@

# A torch without CUDA where there is no GPU: the default one brings several gigabytes of CUDA packages.
$(SETUP): requirements/dev.txt $(TOOLS)
	@tools/install_torch.sh $(PYTHON) requirements/dev.txt
	$(PYTHON) -m pip install --quiet --disable-pip-version-check -r requirements/dev.txt
	@mkdir -p $(@D) && touch $@

.PHONY: setup build build-% clean
setup: $(SETUP)

build: build-dev ## the library, the binding and the test programs, in build/dev

build-%: $(TOOLS)
	@test -f build/$*/build.ninja || cmake --preset $* -DPython_EXECUTABLE=$(PYTHON) $(CMAKE_ARGS)
	@cmake --build build/$* -j $(JOBS)

clean: ## removes what was built, not .venv
	rm -rf build dist

# ---- use -----------------------------------------------------------------------------------------------------------

.PHONY: demo bench wheel install format
demo: build $(SETUP) ## a model learns real text twice, stock and patched; MODEL=llama, qwen3, gemma3, mistral, phi3; table, build/demo/demo.png
	$(NATIVE) $(PYTHON) examples/train.py --model $(MODEL) $(DEMO_ARGS)

bench: build $(SETUP) ## times against peers; results under bench/results/
	$(NATIVE) $(PYTHON) bench/run.py $(BENCH_ARGS)

wheel: $(SETUP) ## the Python wheel for every GPU architecture, in dist/, its contents and ABI checked
	@rm -f dist/*.whl
	$(PYTHON) -m build --wheel --no-isolation --outdir dist -Ccmake.define.LIGER_CUDA_ARCHS=release
	$(PYTHON) tools/check_wheel.py dist/*.whl
	$(PYTHON) -m abi3audit --strict dist/*.whl
	$(PYTHON) tools/check_library.py build/wheel/libliger.so

install: build-release ## C library, headers, pkg-config and CMake package, to PREFIX (/usr/local)
	cmake --install build/release --prefix $(PREFIX)
	@ldconfig 2>/dev/null || true # root's installation into a system folder is found by the loader from then on

format: $(SETUP) ## formats C, CUDA and Python sources
	git ls-files -co --exclude-standard '*.c' '*.h' '*.cu' '*.cuh' | xargs clang-format -i
	ruff format --quiet . && ruff check --quiet --fix .

# ---- checks --------------------------------------------------------------------------------------------------------

.PHONY: test checks lint test-c test-abi test-asan test-tsan test-sets test-cuda-build test-python test-transformers test-trl gpu-test gpu-test-multi test-aarch64
# In two lanes, so that no core waits for the last file of a build or for a program of one thread; pytest, which uses all
# cores by itself, comes last and prints the closing line.
test: ## everything that needs no GPU
	@$(MAKE) --no-print-directory -j 2 --output-sync=target checks
	@$(MAKE) --no-print-directory test-python

checks: build-dev lint test-asan test-tsan test-c test-sets test-abi test-cuda-build

lint: $(SETUP) ## formatting, include law, types
	tools/lint.sh

DRIVE = tools/side_by_side.sh $(JOBS)
test-c: build ## C driver on every instruction set that this machine has; the harness must catch planted errors
	$(BUILD)/harness_selftest
	$(BUILD)/liger_fuzz
	tools/driver_runs.sh $(BUILD)/liger_test | $(DRIVE) $(BUILD)/logs/c $(BUILD)/liger_test $(TEST_ARGS)

test-abi: build ## headers alone as C99 and C++11, exported names, struct layouts, needed libraries, size
	$(PYTHON) tests/abi/check_abi.py
	$(PYTHON) tools/check_library.py $(BUILD)/libliger.so --symbols tests/abi/symbols.txt

# Sanitized builds hold the instruction sets that this machine has; no other would run.
test-asan: export ASAN_OPTIONS = detect_leaks=1:allocator_may_return_null=1
test-asan: export UBSAN_OPTIONS = print_stacktrace=1:halt_on_error=1
test-asan: build-asan
	build/asan/harness_selftest
	build/asan/liger_fuzz
	tools/driver_runs.sh build/asan/liger_test | $(DRIVE) build/asan/logs/c build/asan/liger_test --quick

test-sets: test-c test-asan ## the driver and the sanitizers left out the same instruction sets: those that are not here
	diff <(grep -hs 'not here' $(BUILD)/logs/c-*.log | sort -u) <(grep -hs 'not here' build/asan/logs/c-*.log | sort -u)

# What runs on several threads, on the widest instruction set: how work is divided is one source for all sets.
# gcc 12's ThreadSanitizer cannot run where a kernel scatters addresses widely (vm.mmap_rnd_bits = 32).
FIXED_ADDRESSES = $(shell setarch -R true 2>/dev/null && echo setarch -R)
TSAN_RUNS = '--op core' '--mode determinism' '--mode stride' '--mode alias'
test-tsan: export TSAN_OPTIONS = halt_on_error=1
test-tsan: build-tsan
	printf '%s\n' $(TSAN_RUNS) | $(DRIVE) build/tsan/logs/c $(FIXED_ADDRESSES) build/tsan/liger_test --quick

test-cuda-build: build ## no kernel spills registers, on sm_80 and sm_90a: as the build's own nvcc said
	$(PYTHON) tools/check_cuda_build.py --build $(BUILD)

test-python: build $(SETUP) ## pytest; prints the closing line
	$(NATIVE) $(PYTHON) -m pytest tests/python -n $(JOBS) $(PYTEST_ARGS)

test-transformers: build $(SETUP) ## every family, flag and dtype, on three releases of transformers; installs them under build/
	$(NATIVE) tools/test_transformers.sh $(PYTHON) -n $(JOBS) $(PYTEST_ARGS)

test-trl: build $(SETUP) ## the trainers of two older releases of TRL, with and without the package; installs them under build/
	$(NATIVE) tools/test_trl.sh $(PYTHON) -n $(JOBS) $(PYTEST_ARGS)

gpu-test: ## on a machine with a GPU: installs nothing, needs no network; QUICK=1, or STAGES="build driver-cpu" for a part
	QUICK=$(QUICK) STAGES="$(STAGES)" tools/gpu_test.sh

gpu-test-multi: ## on a machine with two GPUs: heads that are split over them, replicas, a GPU that is not current
	STAGES="build pytest-multi" tools/gpu_test.sh

test-aarch64: $(TOOLS) ## cross build, reduced driver under emulation
	@tools/system_packages.sh aarch64-linux-gnu-gcc=gcc-aarch64-linux-gnu qemu-aarch64=qemu-user
	@test -f build/aarch64/build.ninja || cmake --preset aarch64
	@cmake --build build/aarch64 -j $(JOBS)
	LIGER_TEST_EMULATED=1 qemu-aarch64 -L /usr/aarch64-linux-gnu build/aarch64/liger_test $(AARCH64_TEST)
