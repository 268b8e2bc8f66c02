# make quickstart   install, then the whole job on real photographs; results in quickstart/
# make test         install, then the tests
# make check        install, then lint, types, the import contract and the tests
# make site         install, then the pages as a web site, in site/; make site-serve shows them while they are edited

PYTHON ?= python3
VENV ?= .venv
QUICKSTART ?= quickstart
# More options for `hvae-codec train` in the quickstart, such as TRAIN="--steps 20".
TRAIN ?=
# The same for `hvae-codec prune`.
PRUNE ?=
# Processes that run tests; a test keeps one core busy, for a moment two.
TEST_PROCESSES ?= 2

HVAE = $(abspath $(VENV))/bin/hvae-codec
IN_QUICKSTART = cd $(QUICKSTART) && $(HVAE)

.PHONY: quickstart test lint docs check install site site-serve clean-quickstart
.DELETE_ON_ERROR:

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml constraints.txt $(wildcard hvae_codec/archive/kernel/*)
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

# Each step leaves a mark when it is done, so that an interrupted quickstart goes on where it stopped.
quickstart: $(QUICKSTART)/.pruned
	$(IN_QUICKSTART) info runs/latest
	$(IN_QUICKSTART) info out.zarr
	$(IN_QUICKSTART) info pruned.zarr
	@echo 'Open in a browser:  $(QUICKSTART)/runs/photos/analysis/report.html (what a cutoff costs, with pictures)'
	@echo '                    $(QUICKSTART)/runs/pruned/analysis/report.html (before and after pruning)'
	@echo 'Decoded images:     $(QUICKSTART)/images/'
	@echo 'To look at a store: cd $(QUICKSTART) && $(HVAE) look out.zarr'

$(QUICKSTART)/.data: | $(VENV)/installed
	@mkdir -p $(QUICKSTART)
	$(IN_QUICKSTART) sample-data data
	@touch $@

$(QUICKSTART)/.trained: $(QUICKSTART)/.data
	$(IN_QUICKSTART) train data --out runs/photos $(TRAIN) $$(test -f runs/photos/config.json && echo --resume)
	@touch $@

$(QUICKSTART)/.analyzed: $(QUICKSTART)/.trained
	$(IN_QUICKSTART) analyze-kl data
	@touch $@

$(QUICKSTART)/.encoded: $(QUICKSTART)/.analyzed
	$(IN_QUICKSTART) encode --keep 3% --overwrite data out.zarr
	@touch $@

$(QUICKSTART)/.decoded: $(QUICKSTART)/.encoded
	rm -rf $(QUICKSTART)/images
	$(IN_QUICKSTART) decode out.zarr images
	@touch $@

# Into a run and a store of its own: the commands above go on with the whole model.
$(QUICKSTART)/.pruned: $(QUICKSTART)/.decoded
	$(IN_QUICKSTART) prune data --keep 1% --codes --model runs/photos --out runs/pruned $(PRUNE)
	$(IN_QUICKSTART) encode --model runs/pruned --overwrite data pruned.zarr
	@touch $@

clean-quickstart:
	rm -rf $(QUICKSTART)

test: $(VENV)/installed
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest --numprocesses $(TEST_PROCESSES) --dist worksteal

lint: $(VENV)/installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

# The command reference, from the commands' own --help, and the picture of the rooms in CONTRIBUTING.md.
docs: $(VENV)/installed
	$(VENV)/bin/python docs/build_commands.py
	$(VENV)/bin/python docs/build_rooms.py

# The site, and a check that its links lead somewhere. mkdocs-material otherwise prints what its authors think of mkdocs 2.
site site-serve: export NO_MKDOCS_2_WARNING = 1

site: $(VENV)/installed
	$(VENV)/bin/mkdocs build --quiet
	$(VENV)/bin/python docs/check_links.py site

site-serve: $(VENV)/installed
	$(VENV)/bin/mkdocs serve

check: lint test
