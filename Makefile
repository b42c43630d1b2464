# Everything starts from here, on a fresh machine too: `make run` and `make test` set up what they
# need, and can be repeated.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
MINUTES ?= 10
RELOADS ?= 1000

.DEFAULT_GOAL := help

.PHONY: help
help:  ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST)

$(BIN)/handfast: pyproject.toml scripts/setup
	PYTHON=$(PYTHON) scripts/setup run $(VENV)

$(VENV)/.tested-with: pyproject.toml scripts/setup
	PYTHON=$(PYTHON) scripts/setup test $(VENV)
	touch $@

.PHONY: run
run: $(BIN)/handfast  ## Start the proxy on its embedded default, and print a curl line to try
	@$(BIN)/handfast serve

.PHONY: test
test: lint docs costs unit kernel  ## Check, build and test everything

.PHONY: lint
lint: $(VENV)/.tested-with
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	scripts/lint-packaging $(BIN)

.PHONY: unit
unit: export PYTHONPATH = $(CURDIR)/tests
unit: $(VENV)/.tested-with
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest
	TEST_IN_MOTION=1 $(BIN)/coverage run -m pytest tests/unit/relay
	$(BIN)/python -m harness.measuring
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

# Kernel TLS is tested on a kernel that has it, which is booted for that: see tests/harness/guest.py.
# The relay's own tests, those of applications, and the TLS clients once more, then, with all sessions
# in that kernel.
IN_GUEST := tests/kernel tests/unit/relay tests/unit/app \
  $(addprefix tests/interop/test_,relay.py endings.py targets.py upstream_tls.py curl.py gnutls.py \
    openssl_cli.py pyopenssl.py rustls.py stdlib.py) \
  $(addprefix tests/features/test_upgrade.py::test_a_,half_closed_connection_stays_half_closed \
    transfer_that_an_upgrade_falls_into_arrives_unharmed) \
  $(addprefix tests/features/test_upgrade.py::test_,\
    every_connection_goes_on_under_the_next_program \
    what_waits_for_a_client_that_does_not_read_moves_with_it)

.PHONY: kernel
kernel: export PYTHONPATH = $(CURDIR)/tests
kernel: export TEST_KERNEL_TLS = on
kernel: $(VENV)/.tested-with  ## Test kernel TLS, on a kernel that is booted for it
	$(BIN)/python -m harness.guest pytest --color=no -p no:cacheprovider \
	  --override-ini=timeout=300 $(IN_GUEST)
	TEST_IN_MOTION=1 $(BIN)/python -m harness.guest pytest --color=no -p no:cacheprovider \
	  --override-ini=timeout=300 tests/kernel/test_moving.py tests/unit/relay
	$(BIN)/python -m harness.guest bench.costs --homes "kernel TLS" --units 3

.PHONY: bench
bench: $(VENV)/.tested-with  ## Measure against nginx, hitch, HAProxy and stunnel, as root (15 minutes; QUICK=1: 4)
	$(BIN)/python -m compileall -q src  # as an installation has it
	$(BIN)/python -m bench --amount $(if $(QUICK),quick,full) $(if $(SYSTEMS),--systems $(SYSTEMS)) \
	  $(if $(SCENARIOS),--scenarios '$(SCENARIOS)')

.PHONY: publish
publish: $(VENV)/.tested-with  ## Make a run the one that the documentation shows (RESULTS=bench/results/X.json)
	$(BIN)/python -m bench.publish $(RESULTS)

.PHONY: costs
costs: $(VENV)/.tested-with  ## Count system calls and instructions, and compare with bench/costs.json, as root
	$(BIN)/python -m bench.costs

.PHONY: upgrades
upgrades: $(VENV)/.tested-with  ## Upgrade handfast under 10,000 connections, and tell what became of them
	$(BIN)/python -m bench.upgrades

.PHONY: soak
soak: export PYTHONPATH = $(CURDIR)/tests
soak: $(VENV)/.tested-with  ## Cause faults at random under load, as root (MINUTES=10 SEED= RELOADS=1000)
	$(BIN)/python -m soak --minutes $(MINUTES) --reloads $(RELOADS) $(if $(SEED),--seed $(SEED))

.PHONY: docs
docs: $(VENV)/.tested-with  ## Build the documentation into site/
	$(BIN)/sphinx-build --fail-on-warning --quiet docs site

.PHONY: clean
clean:  ## Remove what the other targets made
	rm -rf $(VENV) site .coverage .coverage.* .hypothesis .mypy_cache .ruff_cache .pytest_cache
