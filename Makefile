# make demo       compress a network on embedded 8x8 images, from training to report
# make lint       format check, lint, types
# make test       tests but the slow ones and those that need CIFAR-10; five minutes on two cores
# make test-all   all tests
# make format     rewrite the files as the format check wants them
#
# Everything happens in .venv, made on first use and again when pyproject.toml changes.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
# Installed before the rest, so that another build (say, a CPU-only one) can be chosen:
#   make test TORCH="torch==2.13.0 --index-url URL"
TORCH ?= torch==2.13.0
DEMO ?= runs/demo
WORKERS ?= 2

BIN := .venv/bin
STAMP := .venv/.installed

# The import names as a tree of links, for tools that read files and run nothing (mypy, editors).
NAMES := .names

.PHONY: names demo test test-all lint format install clean

install: $(STAMP)

$(STAMP): pyproject.toml
	@echo "Installing into .venv (once; a few minutes)"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -qq --upgrade pip
	$(BIN)/python -m pip install -qq $(TORCH)
	$(BIN)/python -m pip install -qq -e ".[dev]"
	@touch $(STAMP)

demo: $(STAMP)
	@echo "Training a small network on 1,797 handwritten digits, evaluating 100 plans with"
	@echo "half of its multiply-adds, fine-tuning, exporting to ONNX and reporting, in $(DEMO)."
	@echo "An interrupted demo goes on where it stopped; remove $(DEMO) to start anew."
	@$(BIN)/amc compress --model digitsnet --data digits --budget macs=0.5 --agent ddpg-one-shot \
		--evaluations 100 --seed 0 --out $(DEMO) --resume

names:
	@rm -rf $(NAMES) && mkdir -p $(NAMES)/amc_compress
	@ln -s ../amc_env $(NAMES)/amc_env
	@for item in agents learners experiments/*; do ln -s ../../$$item $(NAMES)/amc_compress/; done

lint: $(STAMP) names
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# One thread per worker: two test processes with a thread pool each would fight over the cores. Each
# begins with a half of the tests, in their order, so that most of what a file shares is made once;
# who is ready takes from the other.
test test-all: export OMP_NUM_THREADS = 1
test: $(STAMP)
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal --hypothesis-profile fast \
		-m "not slow and not data"

test-all: $(STAMP)
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv .names .mypy_cache .ruff_cache .pytest_cache .hypothesis
