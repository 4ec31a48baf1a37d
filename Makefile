# Needs only Python 3.11 or newer and make: everything else goes into .venv.
PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
BIN := $(VENV)/bin

.PHONY: demo test test-slow accelerators accelerators-cuda mutants docs lint format clean

# The main job: trains the network of Xue & Xin (2019) on planar shapes to exact
# zeros, and writes its table and figures. Interrupted, it resumes.
demo: $(VENV)/.ready
	$(BIN)/python -m experiments curves

test: $(VENV)/.ready
	$(BIN)/python -m pytest -m 'not slow' --numprocesses auto --dist worksteal

# The tests that `make test` leaves out, which CI runs too.
test-slow: $(VENV)/.ready
	$(BIN)/python -m pytest -m slow --numprocesses auto --dist worksteal

# What the compilers of TPUs and of NVIDIA GPUs, which need no such device, make of the
# library: tests of traffic, temporaries and communication. The second takes 5 GB.
accelerators: .venv-tpu/.ready
	JAX_PLATFORMS=cpu .venv-tpu/bin/python -m pytest -m accelerators tests/test_accelerators.py

accelerators-cuda: .venv-cuda/.ready
	JAX_PLATFORMS=cpu .venv-cuda/bin/python -m pytest -m accelerators tests/test_accelerators.py

# Environments of their own, because with libtpu installed plain JAX looks for a TPU. All
# but the compiler they take from the first one.
.venv-%/.ready: $(VENV)/.ready
	$(BIN)/python -m venv .venv-$*
	echo $(abspath $(VENV))/lib/python*/site-packages \
	  > $$(echo .venv-$*/lib/python*/site-packages)/base.pth
	.venv-$*/bin/python -m pip install --quiet --disable-pip-version-check \
	  --constraint $(CONSTRAINTS) --editable '.[$*]'
	touch $@

# Injects defects into the library and writes who notices into tests/mutants.md.
mutants: $(VENV)/.ready
	$(BIN)/python tests/mutants.py

# The site, in docs/_build: a warning is an error, and every reference is checked.
docs: $(VENV)/.ready
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --nitpicky docs docs/_build

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/codespell

format: $(VENV)/.ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(VENV)/.ready: pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "Python 3.11+ needed"'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  --constraint $(CONSTRAINTS) --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) .venv-tpu .venv-cuda runs
