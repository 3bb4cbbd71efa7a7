# `make demo` and `make test` are all the set-up there is: both create .venv and use it again.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --doctest-modules mt_convert tests --ignore=tests/helpers -n 2 -rs
FAST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests -n 2 -rs -m "not slow and not long"

.DEFAULT_GOAL := help
.PHONY: help demo test test-long check mutants fuzz durations lower-bounds format smoke golden coverage clean

help:  ## list what make can do
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## /  make \1\t/' | expand -t 19

demo: $(STAMP)  ## convert a network for handwritten digits and print the table (2 minutes)
	$(BIN)/mt-convert run digits --out runs/digits

test: $(STAMP)  ## the tests of every change, and the examples in docstrings (10 minutes)
	$(PYTEST) -m "not long"

test-long: $(STAMP)  ## what `make test` leaves out: whole networks, every recipe, every family
	$(PYTEST) -m long

check: $(STAMP)  ## format, lint, types and the fast tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy > $(VENV)/types.txt 2>&1 & types=$$!; $(FAST); tests=$$?; wait $$types; typed=$$?; cat $(VENV)/types.txt; exit $$((tests | typed))

mutants: $(STAMP)  ## one-line faults, each of which a guarding test must find (5 minutes); ONLY=WORD: some
	$(BIN)/python tests/helpers/mutants.py $(ONLY)

fuzz: $(STAMP)  ## 2,000 damaged or forged inputs for every reader of files (10 minutes)
	MT_CONVERT_FUZZ=2000 OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/test_hostile_input.py -rs

durations: $(STAMP)  ## `make test`, with the tests that took longest
	$(PYTEST) -m "not long" --durations=100 --durations-min=0.3

lower-bounds: $(STAMP)  ## the fast tests with the oldest dependencies that pyproject.toml allows
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python .venv-lowest
	$(BIN)/uv pip install --quiet --python .venv-lowest/bin/python --resolution lowest-direct -e ".[demo,dev]"
	OMP_NUM_THREADS=1 .venv-lowest/bin/python -m pytest tests -n 2 -rs -m "not slow and not long"

format: $(STAMP)  ## rewrite the files as `make check` wants them
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

smoke: $(STAMP)  ## the smoke variant of every recipe, on synthetic images
	rm -rf runs/smoke
	@set -e; for recipe in recipes/*.yaml; do \
		name=$$(basename $$recipe .yaml); \
		echo "== $$name"; \
		$(BIN)/mt-convert run $$recipe --smoke --out runs/smoke/$$name; \
	done

golden: $(STAMP)  ## rewrite the expected numbers in eval/expected
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests -m golden --golden

coverage: $(STAMP)  ## try every architecture of timm (a day on one core; continues where it was stopped)
	OMP_NUM_THREADS=1 $(BIN)/python eval/coverage/regenerate.py --sweep

clean:  ## remove what tools leave behind; .venv, runs and data stay
	rm -rf .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist

# The peers and tonic come without their own dependencies, which do not fit ours or are for sound; what
# the parts we use import stands behind them.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[demo,dev]"
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-deps spikingjelly sinabs loguru pbr nir nirtorch h5py tonic aedat importRosbag
	touch $@
