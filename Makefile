# make quickstart   install, then the whole job on real photographs; results in quickstart/
# make test         install, then the tests
# make check        install, then lint, types, the import contract and the tests

PYTHON ?= python3
VENV ?= .venv
# More options for `hvae-codec train` in the quickstart, such as TRAIN="--steps 20".
TRAIN ?=

HVAE = $(abspath $(VENV))/bin/hvae-codec
IN_QUICKSTART = cd quickstart && $(HVAE)

.PHONY: quickstart test lint docs check install clean-quickstart
.DELETE_ON_ERROR:

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

# Each step leaves a mark when it is done, so that an interrupted quickstart goes on where it stopped.
quickstart: quickstart/.decoded
	$(IN_QUICKSTART) info runs/latest
	$(IN_QUICKSTART) info out.zarr
	@echo 'Pictures: quickstart/runs/photos/analysis/cutoffs.png (what a cutoff costs),'
	@echo '          quickstart/runs/photos/analysis/reconstructions.png (originals above decoded images),'
	@echo '          quickstart/images/ (all decoded images)'

quickstart/.data: | $(VENV)/installed
	@mkdir -p quickstart
	$(IN_QUICKSTART) sample-data data
	@touch $@

quickstart/.trained: quickstart/.data
	$(IN_QUICKSTART) train data --out runs/photos $(TRAIN) $$(test -f runs/photos/config.json && echo --resume)
	@touch $@

quickstart/.analyzed: quickstart/.trained
	$(IN_QUICKSTART) analyze-kl data
	@touch $@

quickstart/.encoded: quickstart/.analyzed
	$(IN_QUICKSTART) encode --keep 3% --overwrite data out.zarr
	@touch $@

quickstart/.decoded: quickstart/.encoded
	$(IN_QUICKSTART) decode out.zarr images
	@touch $@

clean-quickstart:
	rm -rf quickstart

test: $(VENV)/installed
	$(VENV)/bin/python -m pytest

lint: $(VENV)/installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

# The command reference, from the commands' own --help.
docs: $(VENV)/installed
	$(VENV)/bin/python docs/build_commands.py

check: lint test
