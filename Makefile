# Two commands do all set-up: `make demo` and `make test`. The rest is for people who work on the code.
PYTHON ?= python3
# The versions the suite is run with; any torch that pyproject.toml admits will do.
TORCH ?= torch==2.13.0
INTEROP_TORCH ?= torch==2.14.1 torchvision==0.29.1

BIN := .venv/bin
INTEROP := .venv-interop/bin

.PHONY: bench setup interop demo test test-slow test-versions coverage lint gpu gpu-wheels clean

setup: .venv/installed

.venv/installed: pyproject.toml Makefile
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet $(TORCH)
	$(BIN)/pip install --quiet -e '.[dev]'
	touch $@

# The other projects' libraries, in an environment of their own: timm wants torchvision, which wants its own torch.
# ffcv compiles and needs OpenCV and libturbojpeg headers; where it does not build, its tests are skipped and say so.
interop: .venv-interop/installed

.venv-interop/installed: Makefile
	$(PYTHON) -m venv .venv-interop
	$(INTEROP)/pip install --quiet setuptools wheel $(INTEROP_TORCH)
	$(INTEROP)/pip install --quiet timm webdataset datasets
	$(INTEROP)/pip install --quiet --no-build-isolation ffcv==1.0.2 || echo "ffcv did not build; its tests will be skipped"
	touch $@

demo: setup
	$(BIN)/mlpdata convert shapes --res 32 --format both
	$(BIN)/mlpdata info shards/shapes-32
	$(BIN)/mlpdata train recipes/shapes.yaml
	$(BIN)/mlpdata preview shards/shapes-32 -o demo/shapes.png --augment recipes/shapes.yaml
	@echo "contact sheet: demo/shapes.png    curve: see the run directory above"

test: setup interop
	$(BIN)/python -m pytest -n auto --maxprocesses 4

test-slow: setup interop
	$(BIN)/python -m pytest -m slow

# By hand: the oldest and the newest versions that pyproject.toml admits, and every Python that is here; several GB a row.
test-versions:
	$(PYTHON) tests/versions.py

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	$(BIN)/basedpyright --level error

coverage: setup
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --cov --cov-report=term:skip-covered

# On a machine with an NVIDIA GPU and, if need be, no network: everything that only a GPU can show, in nine minutes.
# GPU_PYTHON has a CUDA build of torch; wheels of what it lacks may be carried there (`make gpu-wheels` fetches them).
GPU_PYTHON ?= $(PYTHON)
WHEELS ?= wheels
gpu:
	@mkdir -p build/gpu
	@if ls $(WHEELS)/*.whl >/dev/null 2>&1; then \
	  $(GPU_PYTHON) -m pip install --quiet --no-index --no-deps --upgrade --target build/gpu/site $(WHEELS)/*.whl; fi
	PYTHONPATH="$(CURDIR):$(CURDIR)/build/gpu/site:$$PYTHONPATH" $(GPU_PYTHON) tests/bench/gpu.py --out build/gpu

gpu-wheels:
	$(PYTHON) -m pip download --quiet --no-deps --dest $(WHEELS) click datasets deflate filelock huggingface_hub hypothesis \
	  msgspec platformdirs pyarrow pytest pyyaml rapidgzip safetensors simplejpeg webdataset xxhash

# Measures what needs no data of anybody and appends it to tests/bench/results.jsonl: ten minutes on an idle machine.
bench: setup
	$(BIN)/python tests/bench/record.py $(if $(wildcard $(INTEROP)/python),--ffcv-python $(INTEROP)/python)
	$(BIN)/python tests/pages.py

clean:
	rm -rf .venv .venv-interop build *.egg-info
