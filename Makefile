# Two commands do all set-up: `make demo` and `make test`. The rest is for people who work on the code.
PYTHON ?= python3
# The versions the suite is run with; any torch that pyproject.toml admits will do.
TORCH ?= torch==2.13.0
INTEROP_TORCH ?= torch==2.14.1 torchvision==0.29.1

BIN := .venv/bin
INTEROP := .venv-interop/bin
STRANGERS := .venv-strangers/bin

.PHONY: bench setup interop strangers demo test test-slow test-strangers test-versions coverage lint gpu gpu-wheels clean

# Makes the environment of the target. A Python that is too old is told before gigabytes are downloaded for it. What an
# earlier call has not finished is removed: venv would mix it with another Python's. What is finished is brought up to date.
define environment
@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "mlpdata needs Python 3.11 or newer; " \
  "$(PYTHON) is %d.%d: make $(or $(MAKECMDGOALS),setup) PYTHON=python3.12" % sys.version_info[:2])'
test -e $@ || $(PYTHON) -m venv --clear $(@D)
endef

setup: .venv/installed

.venv/installed: pyproject.toml Makefile
	$(environment)
	@echo "installing $(TORCH) and what mlpdata needs: some minutes; 7 GB if this torch is built for CUDA"
	$(BIN)/pip install --quiet $(TORCH)
	$(BIN)/pip install --quiet -e '.[dev]'
	touch $@

# The other projects' libraries, in an environment of their own: timm wants torchvision, which wants its own torch.
# ffcv compiles and needs OpenCV and libturbojpeg headers; where it does not build, its tests are skipped and say so.
interop: .venv-interop/installed

.venv-interop/installed: Makefile
	$(environment)
	$(INTEROP)/pip install --quiet setuptools wheel $(INTEROP_TORCH)
	$(INTEROP)/pip install --quiet timm webdataset datasets
	$(INTEROP)/pip install --quiet --no-build-isolation ffcv==1.0.2 || echo "ffcv did not build; its tests will be skipped"
	touch $@

# A dozen more libraries, and what mlpdata requires but not mlpdata: nine gigabytes, so not a part of `make test`. What
# does not install is said, and its tests are skipped. streaming asks for an older numpy than the others: hence --no-deps.
strangers: .venv-strangers/installed

.venv-strangers/installed: Makefile pyproject.toml
	$(environment)
	@echo "installing a dozen libraries: nine gigabytes, many minutes; that pip is not content with streaming is expected"
	$(STRANGERS)/pip install --quiet $(INTEROP_TORCH)
	$(STRANGERS)/pip install --quiet . && $(STRANGERS)/pip uninstall --quiet --yes mlpdata
	for library in lightning accelerate torchdata litdata jax tensorflow-cpu keras nvidia-dali-cuda120; do \
	  $(STRANGERS)/pip install --quiet $$library || echo "$$library did not install; its tests will be skipped"; done
	$(STRANGERS)/pip install --quiet --no-deps mosaicml-streaming && $(STRANGERS)/pip install --quiet boto3 brotli catalogue \
	  paramiko python-snappy transformers zstd || echo "streaming did not install; its tests will be skipped"
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

# Runs what `mlpdata snippet` prints for these libraries, and writes the table of mlpdata/loader/README.md.
test-strangers: setup strangers
	MLPDATA_RECORD_STRANGERS=1 $(BIN)/python -m pytest -m strangers
	$(BIN)/python tests/pages.py

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
	rm -rf .venv .venv-interop .venv-strangers build *.egg-info
