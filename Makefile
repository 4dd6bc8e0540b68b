# Set-up and the everyday commands. Each target makes what it needs and uses it again the next time.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
# A second environment, without torch: what a host has that only gates prebuilt models.
CORE   := .venv-core
KIT    := --chip cpu --spec shapes_d0

.PHONY: help setup acceptance test lint unit slow kit perf budget selftest kills nightly clean

help:
	@echo "make acceptance  judge the embedded kit on this CPU: the whole chain, from checkpoint to verdict"
	@echo "make test        lint, types, all tests but the nightly ones, the self-test, the suite's own speed"
	@echo "make unit        unit tests and doctests alone"
	@echo "make slow        tests that take minutes: whole gates in other environments"
	@echo "make budget      the suite's own speed, as ratios to its budgets"
	@echo "make kit         the acceptance and perf suites on the kit in one run"
	@echo "make perf        throughput and the suite's own speed on the kit"
	@echo "make selftest    the gate tested by known faults; FULL=1 for 30 clean runs over the whole kit"
	@echo "make kills       200 kills at random moments of a gate; KILLS=20 for fewer, WHOLE=1 over the whole kit"
	@echo "make nightly     what takes longer: whole simulated gates, noise, 5,000 images, more budgets"
	@echo "make clean       remove what was built; environments and reports stay"

acceptance: $(READY)
	$(BIN)/pytest -m acceptance $(KIT) --report-dir=reports/shapes_d0

test:
	@.ci/parts setup lint unit slow selftest budget

setup: $(READY) $(CORE)/.ready

lint: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

unit: $(READY)
	$(BIN)/pytest -n 2
	$(BIN)/pytest -W error --doctest-modules support --ignore=support/simulator/site

slow: $(READY) $(CORE)/.ready
	$(BIN)/pytest -m "slow and not nightly"

nightly: $(READY) $(CORE)/.ready
	$(BIN)/pytest -m nightly

kit: $(READY)
	$(BIN)/pytest -m "acceptance or perf or (budget and not nightly)" $(KIT) --report-dir=reports/$@

budget: $(READY)
	$(BIN)/pytest perf -m "budget and not nightly" -s

perf: $(READY)
	$(BIN)/pytest -m "perf or (budget and not nightly)" $(KIT) --report-dir=reports/$@

selftest: $(READY)
	$(BIN)/pytest -m selftest $(if $(FULL),--full)

kills: $(READY)
	$(BIN)/python -m support.trials --kills=$(or $(KILLS),200) $(if $(WHOLE),--whole-kit)

clean:
	rm -rf artifacts .benchmarks .hypothesis .pytest_cache .mypy_cache .ruff_cache

$(READY): pyproject.toml
	@echo "Setting up $(VENV): about two minutes and 6 GB, once."
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or later is needed, this is " + sys.version.split()[0] + ": make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check '.[export,cpu,dev]'
	@touch $@

$(CORE)/.ready: pyproject.toml
	@echo "Setting up $(CORE): half a minute, once."
	$(PYTHON) -m venv $(CORE)
	$(CORE)/bin/python -m pip install --quiet --disable-pip-version-check '.[cpu]'
	@touch $@
