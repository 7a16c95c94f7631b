# make demo   set up .venv, train SASRec on ml-100k without and with distillation (three seeds), write a report
# make test   set up .venv, check style, types and spelling, build the documentation, run the tests
# make docs   build the documentation into build/site (open build/site/index.html)
PYTHON ?= python3
VENV ?= .venv
EXAMPLES ?= 200
SEED ?=
BIN = $(VENV)/bin
PROSE = README.md CHANGELOG.md Makefile mkdocs.yml setup.py run_recbole_prmkd.py docs hyper properties recbole_prmkd tests benchmarks examples

.PHONY: help demo docs test test-slow test-fuzz lint format bench bench-all reproduce clean
.DEFAULT_GOAL := help

help:
	@head -3 Makefile | sed 's/^# //'
	@echo "make test-fuzz   try new wrong inputs, EXAMPLES=200 of each kind"
	@echo "make test-slow | bench | bench-all | reproduce | lint | format | clean"

$(VENV)/.installed: setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[demo,docs,test]'
	touch $@

demo: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python run_recbole_prmkd.py --compare=none,auto,ensemble --models=SASRec --datasets=ml-100k \
	    --seeds=3 --compare_jobs=2 --config_files=properties/demo.yaml --kd_output_dir=runs/demo

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/codespell --ignore-words-list=noes,shceduler,recal --skip='*.csv,*.svg,*.pyc' $(PROSE)

# Strict: a warning is an error. Nothing is fetched.
docs: $(VENV)/.installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

format: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: lint docs
	$(BIN)/python -m pytest

test-slow: $(VENV)/.installed
	$(BIN)/python -m pytest -m slow

# `make test` has a small fixed part of it. SEED=... repeats a run.
test-fuzz: $(VENV)/.installed
	PRMKD_EXAMPLES=$(EXAMPLES) $(BIN)/python -m pytest tests/test_fuzz.py tests/test_stock.py --hypothesis-show-statistics \
		$(if $(SEED),--hypothesis-seed=$(SEED))

# Cost of distillation, speed of teachers, encoding and recommending, as ratios inside one run, in one table. Another data set:
# make bench DATA="--dataset=... --data_path=..."
bench: $(VENV)/.installed
	$(BIN)/python benchmarks/bench.py $(DATA)

bench-all: $(VENV)/.installed
	$(BIN)/python benchmarks/bench.py --all $(DATA)

# The comparisons of docs/results.md on the data sets that are present. It first says how long that takes; --estimate stops there:
# make reproduce DATA="--data_path=... --estimate"
reproduce: $(VENV)/.installed
	$(BIN)/python benchmarks/reproduce.py $(DATA)

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
