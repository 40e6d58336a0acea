# Every target sets up .venv by itself. You need Python 3.11 or newer, make and an internet connection.
PYTHON ?= python3
WORKERS ?= 2
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
TEMPLATES := $(VENV)/share/jupyter/nbconvert/templates# nbconvert looks there; pip install -e puts nothing there

.DEFAULT_GOAL := help
.PHONY: help report test browser-test bench ablation lab lint docs lock notebooks clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo "  PYTHON=python3.12  the Python that makes .venv                   (now: $(PYTHON))"
	@echo "  ARGS=\"--quick\"     more options for report, test and notebooks"
	@echo "  NNLIB_DATA_DIR=…   the folder that contains cifar-10-batches-py  (default: data/)"

report: $(READY)  ## execute every notebook and write report/index.html (first run: downloads CIFAR-10, 170 MB)
	$(BIN)/nnlib report $(ARGS)

test: $(READY)  ## run the tests, WORKERS=2 at a time
	$(BIN)/python -m pytest -n $(WORKERS) $(ARGS)

browser-test: $(READY)  ## open every notebook in JupyterLab in Chromium and use the widgets (downloads Chromium if you have none)
	@command -v chromium || command -v google-chrome || command -v chromium-browser || $(BIN)/playwright install --with-deps chromium
	$(BIN)/python -m pytest tests/browser $(ARGS)

ablation: $(READY)  ## train from `classic` to `best`, one change at a time: about ten minutes, on CIFAR-10
	$(BIN)/python benchmarks/ablation.py $(ARGS)

bench: $(READY)  ## measure speed against peers, ten minutes: keep the machine quiet (ARGS="speed small": only these)
	$(BIN)/python benchmarks/bench.py $(ARGS)

lab: $(READY)  ## open JupyterLab on the notebooks
	$(BIN)/jupyter lab --notebook-dir=notebooks

lint: $(READY)  ## check style, imports between rooms, and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

# The rooms are public names of nnlib, so pdoc finds them; the files that are in no room are named here.
MODULES := $(subst /,.,$(basename $(filter-out %/__init__.py %/__main__.py,$(wildcard nnlib/*.py))))
docs: $(READY)  ## write the API reference, from the docstrings, to build/api/index.html
	$(BIN)/python -W error -m pdoc --docformat google -o build/api nnlib $(MODULES)

lock: $(READY)  ## for maintainers: write requirements-lock.txt, the newest versions that fit pyproject.toml
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/python -m uv pip compile --quiet --universal --python-version 3.11 --extra test --upgrade \
		--no-header --no-annotate --output-file requirements-lock.txt pyproject.toml

notebooks: $(READY)  ## for maintainers: execute the notebooks in place, with their outputs and figures
	$(BIN)/nnlib report --in-place $(ARGS)

clean:  ## remove .venv, report/ and caches; the data and your runs stay
	rm -rf $(VENV) report build nnlib.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis

# pyproject.toml is newer than the stamp after a change of the dependencies. Then pip brings .venv up to date.
$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "nnlib needs Python 3.11 or newer; name one: make PYTHON=python3.12 …"; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV) || \
		{ rm -rf $(VENV); echo "$(PYTHON) cannot make environments: install its venv package (python3-venv)"; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[test]"
	@mkdir -p $(TEMPLATES) && ln -sfn "$(CURDIR)/nnlib/report/templates/nnlib" $(TEMPLATES)/nnlib
	@touch $@
