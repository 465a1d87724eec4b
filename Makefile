# make setup | demo | test | test-slow | lint | bench
PYTHON ?= python3
BIN := .venv/bin
# one thread a process: the tests run side by side, and results do not depend on the number of threads
TEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

.PHONY: setup demo test test-slow lint format bench clean

setup: .venv/ready

# ONE resolver call: a second one could replace torch by a build with gigabytes of CUDA libraries
.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	touch $@

demo: setup
	rm -rf runs/demo
	$(BIN)/eitrain fit --out runs/demo
	$(BIN)/eiexport runs/demo --target reference --target torch --target lava

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: lint
	$(TEST) -m "not slow"

test-slow: setup
	$(TEST) -m slow

bench: setup
	$(BIN)/python benchmarks/step_floor.py

clean:
	rm -rf .venv build *.egg-info
