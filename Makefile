PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN := $(BIN)/mla-experiments
DEMO := --config experiments/demo.yaml
INSTALL := $(BIN)/pip install --quiet --constraint constraints.txt

.PHONY: help demo test test-exhaustive test-versions test-release test-mutants docs docs-numbers clean

help:  ## what can be made
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

demo: $(VENV)/.installed  ## prepare the sample, train and compare four mechanisms (minutes on 2 cores)
	$(RUN) data $(DEMO)
	$(RUN) train $(DEMO) $(if $(wildcard weights/*/run.json),--resume)
	$(RUN) eval $(DEMO)

test: $(VENV)/.installed-dev  ## lint, types and the whole test suite
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest --quiet -n 2 --dist worksteal

test-exhaustive: $(VENV)/.installed-dev  ## what `make test` tries in part, as every config of transformers
	$(BIN)/pytest --quiet -n 2 --dist worksteal -m exhaustive

test-versions: $(VENV)/.installed-dev  ## contract, generation, training, export at the oldest and newest libraries
	$(BIN)/python tests/versions.py

test-release: $(VENV)/.installed-dev  ## build and check what is released, and run the tutorial from it alone
	$(BIN)/python tests/release.py

test-mutants: $(VENV)/.installed-dev  ## change the code in 24 places and see whether the tests notice (an hour or more)
	$(BIN)/pip install --quiet cosmic-ray
	$(BIN)/python tests/mutants.py

docs: $(VENV)/.installed-dev  ## the site, in site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

docs-numbers: $(VENV)/.installed-dev  ## hold the tables of the documents to the results that they come from
	$(BIN)/python docs/tables.py

clean:  ## remove the virtual environments
	rm -rf $(VENV) .venv-versions

# torch first and pinned: its plain name would bring gigabytes of CUDA to a machine without a GPU
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) torch==2.13.0
	$(INSTALL) --editable .[sample,study]
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(INSTALL) --editable .[dev]
	@touch $@
