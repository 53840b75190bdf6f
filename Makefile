# The two commands: `make replay`, `make test`. Each installs what it needs first.
VENV := .venv
PYTHON ?= python3
BIN := $(VENV)/bin
PEERS := .venv-peers
SGLANG_VENV := .venv-sglang
SGLANG ?= 0.5.23
TRACE ?=
# `make gpu` uses what is there: torch >= 2.6, triton >= 3.2, cuda-python >= 12.8, and nothing else.
GPU_PYTHON ?= python3
RESULTS ?= bench/results

.PHONY: help install replay test test-sglang install-sglang mutants check proto bench peers gpu clean

help:
	@echo "make replay   move the pages of a workload through device, host and disk, every byte checked"
	@echo "make test     run the test suite"
	@echo "make test-sglang   run SGLang's own HiCache over our storage backend (2.5 GB; SGLANG=0.5.16)"
	@echo "make mutants  break the storage in seven ways: a named test must see each (minutes)"
	@echo "make check    ruff, mypy --strict, import-linter (writes nothing)"
	@echo "make proto    generate the Python of bodocache/cluster/planner.proto, with the oldest tools"
	@echo "make bench    the measurements behind every figure, as JSON under bench/results/"
	@echo "make peers    install what bench/listio.py compares with (LMCache, vLLM, NIXL: 1.6 GB)"
	@echo "make gpu      on a machine with a GPU, under 9 minutes: every kernel checked, then measured"

install: $(VENV)/.installed

# Without a GPU the CPU build of torch comes first: any other order brings gigabytes of CUDA.
$(VENV)/.installed: pyproject.toml
	@echo "== installing into $(VENV) (about 2 GB, mostly torch and triton; minutes on a slow line)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@if command -v nvidia-smi >/dev/null 2>&1; then $(BIN)/pip install -q "torch>=2.6"; \
	 else $(BIN)/pip install -q torch==2.13.0; fi
	@$(BIN)/pip install -q -e ".[test]"
	@touch $@

replay: install
	@echo "== replaying $(if $(TRACE),$(TRACE),a generated workload) with real bytes"
	$(BIN)/bodocache replay $(TRACE)

test: install
	@echo "== running the test suite"
	$(BIN)/python -m pytest -n 2 --dist worksteal

# Beside our packages, as the peers are; another version than the pinned one lies beside that one.
install-sglang: export PYTHONNOUSERSITE := 1
install-sglang: install
	@echo "== installing sglang $(SGLANG) for CPUs into $(SGLANG_VENV)"
	@missing=""; command -v g++ >/dev/null || missing="g++"; \
	 test -f /usr/include/openssl/sha.h || missing="$$missing libssl-dev"; \
	 if [ -n "$$missing" ] && [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	   apt-get update -qq && apt-get install -y -qq $$missing; fi
	@test -x $(SGLANG_VENV)/bin/python || $(PYTHON) -m venv $(SGLANG_VENV)
	@test -f $(SGLANG_VENV)/.installed || { \
	 $(SGLANG_VENV)/bin/pip install -q torch==2.13.0 numpy && \
	 $(SGLANG_VENV)/bin/pip install -q -r tests/peer/sglang/deps.txt && \
	 $(SGLANG_VENV)/bin/pip install -q --no-deps sglang==0.5.23 -r tests/peer/sglang/deps_alone.txt && \
	 touch $(SGLANG_VENV)/.installed; }
	@test $(SGLANG) = 0.5.23 || test -d $(SGLANG_VENV)/$(SGLANG) || \
	 $(SGLANG_VENV)/bin/pip install -q --no-deps --target $(SGLANG_VENV)/$(SGLANG) sglang==$(SGLANG)
	@ours=$$($(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))"); \
	 theirs=$$($(SGLANG_VENV)/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))"); \
	 echo "import site; site.addsitedir('$$ours')" >"$$theirs/ours.pth"

test-sglang: install-sglang
	@echo "== sglang $(SGLANG) over our storage backend"
	PYTHONPATH=$(SGLANG_VENV)/$(SGLANG):$$PYTHONPATH \
	 $(SGLANG_VENV)/bin/python -m pytest tests/peer/sglang -m peer

mutants: install
	@echo "== breaking a copy of the storage in seven ways"
	$(BIN)/python -m pytest -m mutants -v

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	cd typecheck && ../$(BIN)/mypy --config-file ../pyproject.toml -p bodocache
	$(BIN)/lint-imports

# A test generates it anew and compares.
proto: install
	$(BIN)/python -m grpc_tools.protoc -I . --python_out=. --pyi_out=. bodocache/cluster/planner.proto

bench: install
	@for script in bench/*.py; do case $$script in bench/_*|bench/gpu_*|bench/kernels.py) ;; *) \
	  run=$(BIN)/python; \
	  case $$script in */listio.py) ! test -x $(PEERS)/bin/python || run=$(PEERS)/bin/python;; \
	    */sglang_storage.py) run=$(SGLANG_VENV)/bin/python; test -x $$run || continue;; esac; \
	  echo "== $$script"; $$run $$script --json bench/results/$$(basename $$script .py).json || exit 1;; \
	esac; done

# Beside our packages, not among them: peers pin theirs.
peers: install
	@echo "== installing peers into $(PEERS); then: $(PEERS)/bin/python bench/listio.py"
	@test -x $(PEERS)/bin/python || $(PYTHON) -m venv $(PEERS)
	@ours=$$($(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))"); \
	 theirs=$$($(PEERS)/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))"); \
	 echo "import site; site.addsitedir('$$ours')" >"$$theirs/ours.pth"
	$(PEERS)/bin/pip install -q --no-deps -r bench/peers.txt

gpu: export PYTHONPATH := $(CURDIR)
# Every stage runs, whatever the one before it did; their limits add up to less than 9 minutes.
gpu:
	@status=0; said=""; \
	stage() { \
	  what="$$1"; shift; echo "== $$what"; "$$@"; code=$$?; said="$$said\n== $$code: $$what"; \
	  [ $$code = 0 ] || { echo "== failed ($$code): $$*"; status=1; }; \
	}; \
	stage "checking every kernel's bytes" \
	  timeout -k 2 175 $(GPU_PYTHON) bench/gpu_checks.py --json $(RESULTS)/gpu_checks.json; \
	if command -v compute-sanitizer >/dev/null 2>&1; then \
	  stage "a part of it under compute-sanitizer" \
	    timeout -k 2 60 compute-sanitizer --error-exitcode 1 $(GPU_PYTHON) bench/gpu_checks.py --quick; \
	else echo "== compute-sanitizer is not here: left out"; fi; \
	stage "calibrating" timeout -k 2 45 $(GPU_PYTHON) -m bodocache.kernels.calibrate; \
	stage "measuring" \
	  timeout -k 2 240 $(GPU_PYTHON) bench/kernels.py --json $(RESULTS)/kernels.json; \
	printf "$$said\n(exit codes)\n"; exit $$status

clean:
	rm -rf $(VENV) $(PEERS) $(SGLANG_VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
