# make setup | demo | test | test-slow | campaign | fuzz | peers | lint | bench
PYTHON ?= python3
BIN := .venv/bin
# one thread a process: the tests run side by side, and results do not depend on the number of threads
FUZZED := torch,torch32,loihi,onnx,onnx-step,c
TEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

.PHONY: setup demo test test-slow campaign fuzz peers lint format bench clean

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

# generated networks on every engine, and damaged files through every reader
fuzz: setup
	OMP_NUM_THREADS=1 $(BIN)/python tests/fuzz.py --floats 2000 --integers 2000 --files 500 --targets $(FUZZED)

# docs/support.md: what other tools make of our files, each in an environment that it resolves in
TOOLS := snntorch norse spikingjelly rockpool
TORCH := torch==2.13.0 torchvision==0.28.0 h5py==3.16.0 numpy==2.4.6

peers: setup .venv-peers/ready .venv-sinabs/ready .venv-sinabs-nir/ready
	$(BIN)/python benchmarks/support_matrix.py $(TOOLS:%=--python %=.venv-peers/bin/python) \
	  --python sinabs=.venv-sinabs/bin/python --python "sinabs, newer nir=.venv-sinabs-nir/bin/python" --write

.venv-peers/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet -c constraints.txt -e ".[peers]"
	touch $@

# sinabs asks for a nir that this project cannot use
.venv-sinabs/ready .venv-sinabs-nir/ready: pyproject.toml
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet $(TORCH) sinabs==3.1.3 "nir<=1.0.4"
	$(if $(findstring -nir,$@),$(@D)/bin/python -m pip install --quiet --no-deps nir==1.0.8 nirtorch==2.6)
	touch $@

bench: setup
	$(BIN)/python benchmarks/step_floor.py
	$(BIN)/python benchmarks/loihi_speed.py
	$(BIN)/python benchmarks/resnet_step.py
	$(BIN)/python benchmarks/onnx_speed.py

clean:
	rm -rf .venv .venv-* build *.egg-info
