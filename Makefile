# `make demo`, `test`, `sanitize`, `lint`, `bench`: each installs what it needs into .venv first, once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
EXTRAS := open_clip,transformers,parquet,bench,dev
CSRC := $(shell find csrc -name '*.cpp' -o -name '*.h')
PIP := $(BIN)/python -m pip install -qq
PYTEST := $(BIN)/python -m pytest

.PHONY: demo test test-quick sanitize lint format bench bench-guard clean

# Exit code 1 says that something is flagged, as some of these pictures are meant to be.
demo: $(VENV)/.built
	$(BIN)/guardcore screen examples/pictures --encoder builtin --policy demo --heatmaps demo-out/heatmaps || test $$? -eq 1
	@echo "Heat maps are in demo-out/heatmaps."

test: $(VENV)/.built $(VENV)/.extras
	$(PYTEST) $(PYTEST_ARGS)

test-quick: $(VENV)/.built $(VENV)/.extras
	$(PYTEST) -m "not slow" $(PYTEST_ARGS)

# The operators' tests on C++ kernels built with sanitizers: GCC on Linux, about a quarter of an hour.
sanitize: $(VENV)/.extras
	.ci/sanitize $(PYTEST_ARGS)

lint: $(VENV)/.extras
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/clang-format --dry-run --Werror $(CSRC)
	$(BIN)/mypy

format: $(VENV)/.extras
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/clang-format -i $(CSRC)

bench: $(VENV)/.built $(VENV)/.extras $(VENV)/.rivals
	$(BIN)/python -m bench.run $(or $(BENCH_ARGS),sinkhorn)

# Our operators must not have become slower relative to their definitions, timed in the same run.
bench-guard: $(VENV)/.built $(VENV)/.extras
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest bench/test_guard.py -rP --benchmark-columns=median,iqr,rounds $(PYTEST_ARGS)

clean:
	rm -rf build dist demo-out *.egg-info guardcore/_C*.so $(VENV)/.built

# torch comes first: the native build needs it in the environment, and pip must not isolate the build from it.
$(VENV)/.torch:
	@echo "Installing torch into $(VENV): several gigabytes, a few minutes."
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) --upgrade pip
	@$(PIP) "torch>=2.10" torchvision "setuptools>=77" wheel ninja
	touch $@

# The package without its library, which is built in a step of its own: there only what changed is compiled.
$(VENV)/.core: pyproject.toml setup.py $(VENV)/.torch
	@echo "Installing guardcore."
	@GUARDCORE_BUILD=0 $(PIP) --no-build-isolation -e .
	touch $@

$(VENV)/.built: $(CSRC) $(VENV)/.core
	@echo "Building the C++ kernels."
	@PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -W ignore setup.py --quiet build_ext --inplace > $(VENV)/build.log 2>&1 \
		|| { cat $(VENV)/build.log; exit 1; }
	@grep "^guardcore:" $(VENV)/build.log || true  # the reason, if there is nothing to build with
	touch $@

# What tests, lint and benchmarks need on top.
$(VENV)/.extras: $(VENV)/.core
	@echo "Installing what tests, lint and benchmarks need."
	@GUARDCORE_BUILD=0 $(PIP) --no-build-isolation -e '.[$(EXTRAS)]'
	touch $@

# What only benchmarks need: other people's solvers, JAX among them. torch stays the one that the library was built for.
$(VENV)/.rivals: $(VENV)/.core
	@echo "Installing the libraries to compare with."
	@$(BIN)/python -m pip freeze --exclude-editable | grep -E "^(torch|numpy)==" > $(VENV)/versions.txt
	@GUARDCORE_BUILD=0 $(PIP) --no-build-isolation -c $(VENV)/versions.txt -e '.[rivals]'
	touch $@
