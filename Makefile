# `make` lists the targets. The first `make setup` fetches packages; nothing else uses the network.
PYTHON ?= python3
IMAGES ?= docs/demo/cats

# Which build of torch: empty for the package index's, which on Linux has CUDA; cpu for one without.
# What was chosen once stays.
TORCH ?= $(shell cat .venv/.torch 2> /dev/null)

BIN := .venv/bin
STAMP := .venv/.installed$(TORCH)
LOCK := requirements$(if $(TORCH),-$(TORCH)).lock

# A file's tests stay in one process: they share what its fixtures have trained.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -q --numprocesses auto --maxprocesses 4 --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help setup test test-all test-slurm lint types format demo demo-emoji demo-edit bench live lock clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP) ## make .venv, install the locked versions; TORCH=cpu: without the GPU packages

$(STAMP): pyproject.toml $(LOCK)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "cyclelight needs Python 3.11 or newer; name one: make setup PYTHON=python3.11" >&2; exit 1; }
	@echo "Installing into .venv (minutes the first time, about $(if $(TORCH),2,6) GB)"
	@# venv over a half-made environment repairs it; over a good one it is not run.
	@test -x $(BIN)/uv || { $(PYTHON) -m venv .venv && \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check uv; }
	@# Compiled here, since where Python may not write it would compile at each start.
	@# Editable by a path file, which editors and type checkers follow; an import hook they do not.
	@$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python \
		$(if $(TORCH),--torch-backend $(TORCH)) \
		--config-settings editable_mode=compat --requirement $(LOCK) --editable .
	@echo $(TORCH) > .venv/.torch
	@touch $@

test: $(STAMP) ## run the tests, but for the slow ones
	@$(PYTEST) -m "not slow"

test-all: $(STAMP) ## run every test but those of SLURM
	@$(PYTEST) -m "not slurm"

test-slurm: $(STAMP) ## start a SLURM on this machine and run the job scripts (root on Debian)
	@command -v sbatch > /dev/null || { apt-get update -q && \
		apt-get install -q -y --no-install-recommends slurm-wlm munge; } > /dev/null 2>&1 || \
		echo "SLURM cannot be installed here: its tests are skipped" >&2
	@$(BIN)/pytest -q -rsP -m slurm tests/test_slurm.py

lint: $(STAMP) ## check style and formatting
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check .

types: $(STAMP) ## check the types
	@$(BIN)/mypy

format: $(STAMP) ## format the code and sort its imports
	@$(BIN)/ruff check --quiet --fix .
	@$(BIN)/ruff format --quiet .

demo: $(STAMP) ## translate cats into dogs; your own images: make demo IMAGES=path
	@$(BIN)/lightning predict --config configs/translate/cat2dog.yaml \
		--model.source checkpoints/cat --model.target checkpoints/dog \
		--data.source "$(IMAGES)" --output demo --overwrite
	@echo "The sources beside their translations: demo/gallery.png. Your own: make demo IMAGES=path/to/images"

demo-emoji: $(STAMP) ## translate Google's emoji into Twitter's style, without licence worries
	@$(BIN)/lightning predict --config configs/translate/cat2dog.yaml \
		--model.source checkpoints/emoji_google --model.target checkpoints/emoji_twitter \
		--data.source docs/demo/emoji --output demo-emoji --overwrite
	@echo "The sources beside their translations: demo-emoji/gallery.png"

demo-edit: $(STAMP) ## edit emoji by texts: other skin tones, hair, professions
	@$(BIN)/lightning edit docs/demo/edits/edits.csv --model.model checkpoints/emoji_text \
		--model.scale 1.5 --model.method.steps 20 --model.method.eta 1 \
		--scores.clip checkpoints/emoji_clip --scores.least_match 0.6 --output demo-edit --overwrite
	@echo "The sources beside what the texts made of them: demo-edit/gallery.png"

bench: $(STAMP) ## time the translation on this machine, each way to speed it up (6 minutes on two cores)
	@$(BIN)/lightning benchmark --output bench

ORT := onnxruntime-web@1.30.0
LIVE := docs/live/lib

live: $(LIVE)/ort-wasm-simd-threaded.wasm ## fetch what docs/live runs in (14 MB, from npm), say how to open it
	@echo "python3 -m http.server --directory docs, then http://localhost:8000/live/"

$(LIVE)/ort-wasm-simd-threaded.wasm:
	@command -v npm > /dev/null || { echo "make live needs npm, to fetch $(ORT)" >&2; exit 1; }
	@mkdir -p $(LIVE)
	@cd $(LIVE) && tar -xzf "$$(npm pack --silent $(ORT))" --strip-components=2 \
		package/dist/ort.wasm.bundle.min.mjs package/dist/$(@F)
	@rm $(LIVE)/*.tgz

lock: $(STAMP) ## resolve the newest allowed versions into requirements.lock and -cpu.lock
	@$(BIN)/uv lock --quiet --upgrade
	@{ echo "# The versions that this project is developed and tested with, for pip and uv alike."; \
		echo "# Made from pyproject.toml by \`make lock\`; not edited by hand."; \
		$(BIN)/uv export --quiet --frozen --no-hashes --no-annotate --no-header --no-emit-project \
			--all-groups; } > requirements.lock.new
	@mv requirements.lock.new requirements.lock
	@grep -vE '^(nvidia|cuda)-|^triton=' requirements.lock > requirements-cpu.lock
	@# uv.lock names the registry of whoever made it.
	@rm uv.lock

clean: ## remove what tests, tools and the demo left behind (not .venv)
	@rm -rf demo demo-emoji demo-edit bench build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	@find cyclelight datamodules tests -name __pycache__ -type d -prune -exec rm -rf {} +
