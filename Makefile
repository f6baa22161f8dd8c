# make demo: install everything into .venv, then train, export and verify the quickstart.
# make test: install everything into .venv, then run the tests.   make lint: style and types.
PYTHON ?= python3
VENV := .venv
INSTALLED := $(VENV)/.installed

.PHONY: demo test lint install schema architecture clean

demo: $(INSTALLED)
	$(VENV)/bin/pipeline train-export configs/quickstart.yaml

# Two processes of one thread each: threads would spend most of the time waiting for each other.
test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n 2 --dist worksteal

lint: $(INSTALLED)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

install: $(INSTALLED)

$(INSTALLED): pyproject.toml setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("python >= 3.11 is needed, this is " + sys.version.split()[0] + ": run make PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	@echo 'installing into $(VENV): PyTorch and the rest, several GB; minutes, depending on the network'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

# Writes the schemas of verification.json and, after a change of pipeline/config, of the config.
schema: $(INSTALLED)
	$(VENV)/bin/python -m deploy.verify.schema > docs/verification.schema.json
	$(VENV)/bin/python -m pipeline.config > configs/schema.json

# Draws docs/architecture.svg again, needed after a change of the imports between rooms.
architecture: $(INSTALLED)
	$(VENV)/bin/python -m docs.draw_architecture > docs/architecture.svg

clean:
	rm -rf $(VENV)
