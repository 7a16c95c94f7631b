# make demo   set up .venv, run the main job on ml-100k, say where the results lie
# make test   set up .venv, lint, type-check, test
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
RUN = $(BIN)/python run_recbole_prmkd.py --model=SASRec --dataset=ml-100k --config_files=properties/demo.yaml

.PHONY: help demo test test-slow lint format bench reproduce clean
.DEFAULT_GOAL := help

help:
	@head -2 Makefile | sed 's/^# //'
	@echo "make test-slow | bench | reproduce | lint | format | clean"

$(VENV)/.installed: setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[demo,test]'
	touch $@

demo: $(VENV)/.installed
	$(RUN) --kd=none --kd_output_dir=runs/demo/none
	$(RUN) --kd=prmkd --kd_output_dir=runs/demo/prmkd
	$(BIN)/python -m recbole_prmkd.report runs/demo/none runs/demo/prmkd

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: lint
	$(BIN)/python -m pytest

test-slow: $(VENV)/.installed
	$(BIN)/python -m pytest -m slow

# What encoding and PyGLightGCN gain, what distillation costs, as ratios inside one run; another data set: make bench DATA="--dataset=... --data_path=..."
bench: $(VENV)/.installed
	$(BIN)/python benchmarks/encoding.py $(DATA)
	$(BIN)/python benchmarks/lightgcn.py $(DATA)
	$(BIN)/python benchmarks/epoch.py $(DATA)
	$(BIN)/python benchmarks/catalogue.py

# The comparisons of docs/results.md on the data sets that are there; says first how long that takes. Make it stop there,
# or name the data: make reproduce DATA="--data_path=... --estimate"
reproduce: $(VENV)/.installed
	$(BIN)/python benchmarks/reproduce.py $(DATA)

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
