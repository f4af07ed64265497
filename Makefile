# What each target installs is said by `make help`. Everything lands in $(VENV); nothing outside it is changed, but for
# the lab parts of `make test` (tests/lab/install.sh, only as root where apt-get exists).
#
# On Linux without a GPU, take PyTorch's CPU build (200 MB instead of 3 GB): set PIP_EXTRA_INDEX_URL to the CPU index
# that PyTorch's install page names.

# The first Python of these that is new enough; `make PYTHON=…` takes another.
PYTHON ?= $(shell for p in python3.11 python3; do command -v $$p >/dev/null 2>&1 \
	&& $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' && echo $$p && break; done)
VENV ?= .venv
PYTEST_ARGS ?=
# Where `make bench` writes what it found, for benchmarks/figures.py.
FIGURES ?= out/figures
BENCHMARKS ?= additivity drift budget throughput kill_resume remote_overhead same_number opencl_exact arm_exact faults tda2x_fit tda2x_vs_zigzag tda2x_speed fixed_point fusion_detection onnx_zoo launch_bound peak_memory nb201_900 nb201_transfer coverage phones predictor_speed nb201_search nb201_limit moga_speed gpu_throughput supernet_memory fairness lazy specialise

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet install -c constraints.txt

.PHONY: help demo test lint format bench docs wheel clean
.DELETE_ON_ERROR:

help:
	@echo "make demo   profile this machine, fit, search, validate, write the report page   (installs: core + torch)"
	@echo "make test   run the tests                              (installs: core + dev; as root also the lab parts)"
	@echo "make lint   ruff check, ruff format --check, mypy                                (installs: core + dev)"
	@echo "make bench  the figures that README and docs quote                               (installs: core + dev)"
	@echo "make docs   build the documentation site into site/                              (installs: core + docs)"
	@echo "make wheel  build the wheel into dist/                                           (installs: core + dev)"

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "latbench needs Python 3.11 or newer, and neither python3.11 nor python3 is: say \
	which with make PYTHON=/path/to/python" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# One stamp a set of extras, so that a second `make` starts at once. torch comes first and alone: pip then keeps the
# build that the user chose when it sees `torch` again among the requirements.
$(VENV)/.torch: $(BIN)/python constraints.txt
	$(PIP) "torch==2.13.0"
	@touch $@

$(VENV)/.demo: $(VENV)/.torch pyproject.toml
	$(PIP) -e ".[search]"
	@touch $@

$(VENV)/.dev: $(VENV)/.torch pyproject.toml
	$(PIP) -e ".[dev]"
	@touch $@ $(VENV)/.demo

$(VENV)/.docs: $(BIN)/python constraints.txt pyproject.toml
	$(PIP) -e ".[docs]"
	@touch $@

demo: $(VENV)/.demo
	$(BIN)/latbench demo

test: $(VENV)/.dev
	tests/lab/install.sh
	$(BIN)/python -m pytest -n auto --dist worksteal $(PYTEST_ARGS)

lint: $(VENV)/.dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(VENV)/.dev
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: $(VENV)/.dev
	@mkdir -p $(FIGURES)
	@missed=; for name in $(BENCHMARKS); do \
		$(BIN)/python -m benchmarks.$$name --json $(FIGURES)/$$name.json || missed="$$missed $$name"; done; \
	test -z "$$missed" || { echo "no figures, or a target that was missed:$$missed" >&2; exit 1; }

docs: $(VENV)/.docs
	$(BIN)/mkdocs build --strict

wheel: $(VENV)/.dev
	$(BIN)/python -m build --wheel --outdir dist

clean:
	rm -rf build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache
