# make setup | demo | test | test-slow | campaign | lint | bench
PYTHON ?= python3
BIN := .venv/bin
# one thread a process: the tests run side by side, and results do not depend on the number of threads
TEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

.PHONY: setup demo test test-slow campaign lint format bench clean

setup: .venv/ready

# ONE resolver call: a second one could replace torch by a build with gigabytes of CUDA libraries
.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	touch $@

demo: setup
	rm -rf runs/demo
	$(BIN)/eitrain fit --out runs/demo
	$(BIN)/eiexport runs/demo --target reference --target torch --target onnx --target lava
	$(BIN)/eiexport runs/demo --quantize 8 --target torch --target loihi --target lava --out runs/demo/export-int8

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

# 200 random integer networks on every engine, registers and spikes, and whether every branch was hit
campaign: setup
	OMP_NUM_THREADS=1 $(BIN)/python tests/campaign.py --networks 200 --write

bench: setup
	$(BIN)/python benchmarks/step_floor.py
	$(BIN)/python benchmarks/loihi_speed.py
	$(BIN)/python benchmarks/resnet_step.py

clean:
	rm -rf .venv build *.egg-info
