# Needs Rust (cargo) and Python >= 3.11; everything else is installed into .venv*.
# On Linux as root with iproute2 and nftables the tests in network namespaces run too.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO_VENV := .venv-demo
export CARGO_TARGET_DIR ?= $(CURDIR)/target
# Workers for pytest: the tests wait more than they compute.
TEST_WORKERS ?= 4
# What the tests of events measure, for the report of the matrix.
NETLAB_FIGURES := $(CURDIR)/target/netlab-figures.jsonl

RUST_SOURCES := Cargo.toml Cargo.lock $(shell find rust tests/interop tests/netlab/middlebox -name '*.rs' -o -name Cargo.toml)
PYTHON_SOURCES := pyproject.toml README.md LICENSE $(shell find python -name '*.py' -o -name '*.pyi')

.PHONY: help demo test test-rust test-python netlab lint format bench wheel clean

help:  ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 22

demo: $(DEMO_VENV)/.installed  ## Build, install, watch nodes find each other, also in hostile networks
	@$(DEMO_VENV)/bin/python -m anyreach.cli.demo
	@cd tests && ../$(DEMO_VENV)/bin/python -m netlab.demo

test: test-rust test-python  ## Build (fast profile) and run all tests

test-rust: $(BIN)/.built
	cargo test --workspace --quiet

test-python: $(BIN)/.built
	cargo build --quiet --package anyreach-interop-peers --package anyreach-netlab-middlebox --bins
	$(BIN)/python -m pytest -n $(TEST_WORKERS) --dist loadgroup

netlab: $(BIN)/.built  ## Connect every pair of kinds of networks, as root; about 20 minutes
	cargo build --quiet --package anyreach-netlab-middlebox
	rm -f $(NETLAB_FIGURES)
	NETLAB=full REQUIRE_NETLAB=1 NETLAB_FIGURES=$(NETLAB_FIGURES) $(BIN)/python -m pytest \
		tests/netlab/test_punched.py tests/netlab/test_punched_pairs.py \
		tests/netlab/test_punched_events.py -n $(TEST_WORKERS) --dist loadgroup
	$(BIN)/python -m tests.netlab.matrix --runs 3 --figures $(NETLAB_FIGURES) \
		--output docs/benchmarks-nat.md

lint: $(BIN)/.built  ## Check format, lints, types and stubs
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --quiet -- -D warnings
	$(BIN)/ruff check python tests benches
	$(BIN)/ruff format --check python tests benches
	$(BIN)/mypy
	$(BIN)/python -m mypy.stubtest anyreach._core

format: $(BIN)/.deps  ## Format the sources
	cargo fmt --all
	$(BIN)/ruff format python tests benches
	$(BIN)/ruff check --fix python tests benches

bench: $(BIN)/.deps $(DEMO_VENV)/.installed  ## Compare with quinn, noq, aioquic and qh3; measure paths; about 30 minutes
	cargo build --release --package anyreach-interop-peers --bins
	cargo bench --package anyreach-wire
	cargo bench --package anyreach-quic --bench packets
	$(BIN)/pip install --quiet --force-reinstall --no-deps dist/anyreach-*.whl
	$(BIN)/python -m pytest benches/test_calls.py -p no:xdist --benchmark-only
	$(BIN)/python benches/run.py --output docs/benchmarks.md
	$(BIN)/python benches/relays.py --output docs/benchmarks-relays.md
	$(BIN)/python benches/punching.py --output docs/benchmarks-paths.md
	$(BIN)/python benches/overlay.py --output docs/benchmarks-overlay.md
	rm -f $(BIN)/.built

wheel: dist/.built  ## Build the release wheel into dist/

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "anyreach needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade 'pip>=25.1'

# The demonstration and the wheel need this much; the tests need the rest.
$(BIN)/maturin: | $(BIN)/python
	$(BIN)/pip install --quiet 'maturin>=1.9,<2'

$(BIN)/.deps: pyproject.toml | $(BIN)/python
	$(BIN)/pip install --quiet --group dev
	touch $@

$(BIN)/.built: $(RUST_SOURCES) $(BIN)/.deps
	$(BIN)/maturin develop --profile dev --quiet
	touch $@

dist/.built: $(RUST_SOURCES) $(PYTHON_SOURCES) | $(BIN)/maturin
	rm -rf dist
	$(BIN)/maturin build --release --quiet --out dist
	touch $@

$(DEMO_VENV)/.installed: dist/.built
	$(PYTHON) -m venv --clear $(DEMO_VENV)
	$(DEMO_VENV)/bin/pip install --quiet --disable-pip-version-check --no-index dist/anyreach-*.whl
	touch $@

clean:  ## Remove what the other targets made
	cargo clean
	rm -rf $(VENV) $(DEMO_VENV) dist python/anyreach/*.so .pytest_cache .mypy_cache .ruff_cache
