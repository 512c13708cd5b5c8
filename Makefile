# The everyday targets; `make help` lists them. Needs git, make and Python 3.11 or newer.
# Tools go to .tools, packages to .venv; nothing is registered outside this folder.

SHELL = /bin/sh
.SUFFIXES:
.DEFAULT_GOAL = help

PROFILE ?= quick
CORES ?= all
EXPERIMENT ?= classification
PROFILE_DIR ?=
ARGS ?=
PYTEST ?=

UV_VERSION = 0.13.9
UV ?= .tools/bin/uv
PY = .venv/bin/python
READY = .venv/.ready
CHECK = .venv/bin/check-jsonschema --quiet --builtin-schema
SITE = $(if $(filter smoke,$(PROFILE)),data/runs/smoke/)_build/html

# An environment without byte code imports torch three times slower; one user's packages are not another's.
unexport PYTHONDONTWRITEBYTECODE PYTHONPATH PYTHONHOME VIRTUAL_ENV CONDA_PREFIX
export PYTHONNOUSERSITE = 1
export UV_PYTHON_DOWNLOADS = never

.PHONY: help campaign run test-slurm test-kubernetes book pdf test quick install lint lint-workflows check bench rehearse record notebooks lock clean clean-all

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z][a-z-]*:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' Makefile
	@echo
	@echo "  make book PROFILE=smoke    the same book from the smallest settings, in data/runs/smoke"
	@echo "  make book CORES=1          one notebook at a time"
	@echo "  make run EXPERIMENT=classification PRESET=paper PROFILE_DIR=profiles/slurm   on a cluster"
	@echo "  make test PYTEST='-k mask' some tests"

book: $(READY) ## execute what is out of date and build the book
	@$(PY) $(if $(PROFILE_DIR),book/_ext/sharding.py --book $(PROFILE) --profile-dir $(PROFILE_DIR) $(if $(GPUS),--gpus $(GPUS)),book/_ext/execution.py --profile $(PROFILE) build --cores $(CORES))

run: $(READY) ## run or resume an experiment on all processors and GPUs, or on a cluster
	@SALUN_AGAIN="make run EXPERIMENT=$(EXPERIMENT) PRESET=$(or $(PRESET),quick)$(if $(PROFILE_DIR), PROFILE_DIR=$(PROFILE_DIR))$(if $(OUT), OUT=$(OUT))$(if $(GPUS), GPUS=$(GPUS))$(if $(ARGS), ARGS='$(ARGS)')" \
	$(PY) book/_ext/sharding.py $(EXPERIMENT) --preset $(or $(PRESET),quick) --cores $(CORES) \
		--profile-dir "$(PROFILE_DIR)" $(if $(OUT),--out $(OUT)) $(if $(GPUS),--gpus $(GPUS)) $(ARGS)

pdf: book ## the same as one PDF, printed by Chromium
	@$(PY) book/_ext/paper.py $(PROFILE)

test: $(READY) ## run the tests, several at a time
	@OMP_NUM_THREADS=1 $(PY) -m pytest -q -n auto --maxprocesses 4 --dist worksteal $(PYTEST)

quick: $(READY) ## run the unit tests only: under a minute
	@OMP_NUM_THREADS=1 $(PY) -m pytest -q -m "unit and not slow and not long" --ignore=tests/book --ignore=tests/experiments $(PYTEST)

install: $(READY) ## only install the locked packages into .venv

lint: $(READY) lint-workflows ## style, types, which room may use which, and the files of .github
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy
	@.venv/bin/lint-imports --no-cache >.venv/arrows.log || { cat .venv/arrows.log; exit 1; }
	@tail -n 2 .venv/arrows.log

lint-workflows: $(READY)
	@$(CHECK) vendor.github-workflows .github/workflows/*.yml
	@$(CHECK) custom.github-workflows-require-timeout .github/workflows/*.yml
	@$(CHECK) vendor.dependabot .github/dependabot.yml
	@$(CHECK) vendor.github-issue-forms $(filter-out %/config.yml,$(wildcard .github/ISSUE_TEMPLATE/*.yml))
	@$(CHECK) vendor.github-issue-config .github/ISSUE_TEMPLATE/config.yml
	@$(CHECK) vendor.citation-file-format CITATION.cff
	@.venv/bin/zizmor --offline --quiet --no-progress --pedantic .

check: $(READY) ## look at every page of the built book in a headless browser
	@test -f $(SITE)/index.html || { echo "no book in $(SITE): run 'make book PROFILE=$(PROFILE)' first" >&2; exit 2; }
	@$(PY) -m pytest -q tests/book/test_pages.py --book $(SITE) $(PYTEST)

test-slurm: $(READY) ## compute an experiment on a Slurm started for it, which is killed half way (root; Debian)
	@$(PY) tests/clusters/check_slurm.py

test-kubernetes: $(READY) ## compute an experiment through a stand-in of the API of Kubernetes, with pods killed (root)
	@$(PY) tests/clusters/check_kubernetes.py

bench: $(READY) ## run the benchmarks
	@$(PY) -m benchmarks

campaign: $(READY) ## try to lose results, to get stale ones, and to get past the checks; counts go to the book
	@$(PY) -m campaign --record $(ARGS)

rehearse: $(READY) ## run every preset that is not recorded in small, and print what it needs in full
	@$(PY) -m salun_core rehearse

record: $(READY) ## run or resume a preset into data/recorded: make record PRESET=paper
	@test -n "$(PRESET)" || { echo "which preset? for instance: make record PRESET=paper" >&2; exit 2; }
	@$(PY) -m salun_core record $(EXPERIMENT) $(PRESET)

notebooks: $(READY) ## write the parameters cells of the notebooks, and the README's findings
	@$(PY) book/_ext/execution.py declare

lock: | $(filter .tools/%,$(UV)) ## choose versions anew after a change of pyproject.toml
	@$(UV) pip compile pyproject.toml --all-extras --universal --generate-hashes --no-emit-index-url -q -o requirements.lock

clean: ## delete the built book and the executed notebooks; results of runs stay
	rm -rf _build .snakemake data/runs/notebooks data/runs/running data/runs/failed data/runs/smoke

clean-all: clean ## also delete results of runs, the environment and the tools
	rm -rf data/runs .venv .tools

# A Python that is new enough, by the name it has here.
find_python = python=; for p in $(PYTHON) python3 python3.14 python3.13 python3.12 python3.11 python; do \
	command -v "$$p" >/dev/null 2>&1 || continue; \
	"$$p" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' 2>/dev/null || continue; \
	python=$$p; break; done; \
	test -n "$$python" || { echo "no Python from 3.11 to 3.14 here: install one, or name it: make PYTHON=/path/to/python3" >&2; exit 1; }

.tools/bin/uv:
	@$(find_python); \
	echo "Fetching uv $(UV_VERSION) into .tools" >&2; rm -rf .tools; \
	{ "$$python" -m venv .tools && .tools/bin/python -m pip install -q --disable-pip-version-check uv==$(UV_VERSION); } \
	|| { rm -rf .tools; echo "uv was not fetched: this needs Python's venv module (package python3-venv) and a network, or name a uv you have: make UV=uv" >&2; exit 1; }

$(READY): requirements.lock pyproject.toml | $(filter .tools/%,$(UV))
	@$(find_python); \
	if ! .venv/bin/python -c '' 2>/dev/null; then rm -rf .venv; $(UV) venv -q --python "$$python" .venv || exit 1; fi; \
	echo "Installing the locked packages into .venv (about 6 GB on Linux; minutes the first time)" >&2; \
	$(UV) pip sync --python .venv/bin/python --require-hashes requirements.lock && \
	$(UV) pip install -q --python .venv/bin/python --no-deps --no-build-isolation -e . && \
	touch $@
