# Everything on a fresh machine: `make report` runs the default studies to a report, `make test` runs the tests.
# On a machine where torch is installed and nothing can be fetched: `make test PYTHON=/path/to/python VENV=`.

PYTHON ?= python3
VENV ?= .venv
PRESET ?= quick
RUNS ?= runs
OUT ?= report
RECURVE_BUILD ?= auto
export RECURVE_BUILD

ifeq ($(strip $(VENV)),)
PY := $(PYTHON)
INSTALLED := check-environment
else
PY := $(VENV)/bin/python
INSTALLED := $(VENV)/installed
endif

# One build at a time lies in the tree: another mode or compiler builds again.
BUILT := build/built-$(RECURVE_BUILD)-$(subst /,_,$(CXX))
SOURCES := setup.py $(wildcard csrc/*/*.h csrc/*/*.cpp csrc/*/*.cu csrc/*/*/*.h csrc/*/*/*.cpp)

.PHONY: report test test-all sanitize faults benchmark record gpu lint build environment check-environment clean

report: build
	$(PY) -m ablations run epidemic vision --preset $(PRESET) --runs $(RUNS) || [ $$? -eq 1 ]
	$(PY) -m ablations report --preset $(PRESET) --runs $(RUNS) --out $(OUT)

test: build
	$(PY) -m pytest $(TESTS)

test-all: build
	$(PY) -m pytest -m "slow or not slow"

# The kernel tests on a build with the address and undefined-behaviour sanitizers, in a tree of its own. Needs g++.
SANITIZED := ops_recurrent ops_conv properties derivatives probe
sanitize: $(INSTALLED)
	CXX=g++ RECURVE_BUILD=cpu RECURVE_SANITIZE=1 $(PY) setup.py -q build --build-base build/sanitize --build-lib build/sanitize
	cp -R pyproject.toml conftest.py bench tests build/sanitize
	LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libstdc++.so)" \
	ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 PYTHONSAFEPATH=1 PYTHONPATH=build/sanitize \
	$(PY) -m pytest -p no:cacheprovider $(addprefix build/sanitize/tests/recurve/test_,$(addsuffix .py,$(SANITIZED)))

faults: build
	$(PY) tests/ablations/faults.py

benchmark: build
	$(PY) -m pytest --benchmark

# The main table on all threads and on one, published under bench/results and in the README: about 10 minutes.
record: build
	$(PY) -m bench record

# Builds, tests, checks and measures on this machine's GPU in under 10 minutes; writes bench/results/<gpu>.json and .log.
gpu: $(if $(strip $(VENV)),$(INSTALLED))
	$(PY) -m bench.gpu

lint: $(INSTALLED)
	$(PY) -m pip install -q -c constraints.txt ruff mypy clang-format pandas-stubs
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(PY) -c 'import sys, clang_format; sys.exit(clang_format.clang_format())' --dry-run --Werror $$(find csrc -name '*.h' -o -name '*.cpp' -o -name '*.cu')

environment: $(INSTALLED)

build: $(BUILT)

$(BUILT): $(SOURCES) $(filter %/installed,$(INSTALLED)) | $(INSTALLED)
	@mkdir -p build && rm -f build/built-*
	@echo "Building the extension (a few minutes the first time) ..."
	@$(PY) setup.py -q build_ext --inplace > build/log.txt || { cat build/log.txt; exit 1; }
	@touch $@
	@$(PY) -m recurve

$(VENV)/installed: constraints.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install -q -c constraints.txt --upgrade pip setuptools
	$(PY) -m pip install -q -c constraints.txt torch ninja
	RECURVE_BUILD=none $(PY) -m pip install -qq -c constraints.txt --no-build-isolation --editable '.[test]'
	@touch $@

check-environment:
	@$(PY) -c "import importlib.util as u, sys; \
	needed = 'torch ninja setuptools numpy pandas scipy statsmodels kornia pooch PIL rich matplotlib seaborn jinja2 nbformat nbclient ipykernel pytest pytest_benchmark hypothesis expecttest'.split(); \
	missing = [m for m in needed if u.find_spec(m) is None]; \
	sys.exit('$(PY) lacks: ' + ', '.join(missing) + '; install them, or let make set up its own environment: drop VENV=' if missing else 0)"

clean:
	rm -rf build recurve/_C*.so
