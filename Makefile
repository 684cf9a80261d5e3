.DEFAULT_GOAL := help
.PHONY: help install develop chat test lint browser affect-head affect-generative clean

PYTHON ?= python3
LIMBIC := .venv/bin/limbic

help:             ## Show what each target does
	@grep -hE '^[a-z-]+: *.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 18

install:          ## Build .venv with the pinned runtime (compiles llama.cpp once, about 4 minutes)
	@$(PYTHON) requirements/install.py runtime

develop:          ## The same, with the test and training extras
	@$(PYTHON) requirements/install.py develop

chat: install     ## Open a live chat on the embedded model, offline
	@$(LIMBIC) chat

test: develop     ## Run all tests
	@.venv/bin/python -m pytest

lint: develop     ## ruff, mypy and the import rules
	@.venv/bin/ruff check . && .venv/bin/ruff format --check .
	@.venv/bin/mypy
	@.venv/bin/lint-imports

affect-head: develop  ## Remake the affect head: make affect-head DATA=folder OUT=folder [ENCODER=folder] [ROUNDS=4] [QUICK=1]
	@.venv/bin/python -m trainers.affect.head.reproduce $(if $(ENCODER),--encoder $(ENCODER)) $(if $(DATA),--data $(DATA)) $(if $(OUT),--out $(OUT)) $(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(QUICK),--quick)

affect-generative: develop  ## Make the generative head and its table: DATA=folder OUT=folder [QUICK=1]
	@.venv/bin/python -m trainers.affect.head.reproduce --generative $(if $(DATA),--data $(DATA)) $(if $(OUT),--out $(OUT)) $(if $(QUICK),--quick)

clean:            ## Remove .venv and caches; logs and data stay
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis
