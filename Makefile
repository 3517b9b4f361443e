# Two commands for a newcomer: `make quickstart` and `make test`. Both set up what they need in .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# torch comes first and alone, so that whatever build is already chosen for this machine satisfies the rest.
TORCH := $(shell grep -m1 '^torch==' constraints.txt)

.PHONY: help install install-dev quickstart test lint unit survive fuzz bench docs clean

help:
	@echo "make quickstart   install, then fine-tune the model in examples/ and show its score before and after"
	@echo "make test         everything that must be green: lint, types, layers, tests"
	@echo "make survive      kill, fill, cut off: every case of docs/reliability.md, some minutes"
	@echo "make fuzz         what whet reads from strangers, fuzzed by coverage; FUZZ='adapter-config dcp' for some alone"
	@echo "make bench        the benchmarks; one JSON line each"
	@echo "make docs         write the generated tables of docs/ again"
	@echo "make install-dev  the environment for working on whet"

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "whet needs Python 3.11 or newer; name one: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.base: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.base
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

install: $(VENV)/.base
install-dev: $(VENV)/.dev

quickstart: install
	$(BIN)/whet train examples/quickstart.yaml

test: lint unit

lint: install-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

unit: install-dev
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist worksteal

# What docs/reliability.md says; SURVIVE_SEED=7 draws other moments.
survive: install-dev
	rm -f benchmarks/results/survive.jsonl benchmarks/results/resume-exact.jsonl
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 SURVIVE=all SURVIVE_REPORT=benchmarks/results/survive.jsonl \
		$(BIN)/python -m pytest --numprocesses 2 --dist worksteal tests/survive
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 SURVIVE=all RESUME_REPORT=benchmarks/results/resume-exact.jsonl \
		$(BIN)/python -m pytest tests/promises/test_g7_ingredients.py tests/promises/test_safe_fuzz.py
	$(BIN)/python docs/make_tables.py

# Half an hour for all targets; what breaks one is kept in fuzzing/findings, and read by make test from then on.
fuzz: install-dev
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[fuzz]'
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m fuzzing $(FUZZ) --seconds $(or $(FUZZ_SECONDS),40)

bench: install-dev
	HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/startup.py
	HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/train.py
	HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/overhead.py
	HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/checkpoints.py
	HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/resume.py
	HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/feeding.py
	HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/prepare.py
	HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/million.py
	HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/packing.py
	HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/levers.py
	HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/loss.py
	HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/lora.py
	HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/lora.py --hidden-size 512 --num-layers 8
	HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/moe.py

docs: install-dev
	$(BIN)/python docs/make_tables.py

clean:
	rm -rf $(VENV) outputs last_run_prepared .mypy_cache .ruff_cache .pytest_cache
