# Everything happens in a virtual environment in this directory; nothing else needs to be installed.
#
#   make demo   real decoded video, shared between processes, every frame checked
#   make test   build sdist and wheel, install the wheel, test what was installed
#   make abi3   the wheel for every CPython from 3.11: build it, test its core
#   make debug  a build with assertions and counters of living objects: the suite's core over it; nothing may be left alive
#   make stress minutes of crashes, stops, endings, scribbling, strange files and garbage: ARGS=10; docs/testing.md
#   make matrix the tests on other Pythons, without the GIL, and on an emulated ARM, as root: ARGS="3.14 aarch64-c"
#   make lint   ruff, cython-lint, mypy, stubs against the modules, clang-format, hadolint, workflows
#
# PYTHON picks the interpreter (3.11 or later), ARGS goes to the demo, to pytest, to the stress program or to the matrix.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/pip install --quiet --disable-pip-version-check

# What takes less than three minutes over the debug build; ARGS=tests is all there is.
DEBUG_TESTS := ring frame packets slots publisher session waiting segment endings fake_driver

.PHONY: test stress demo abi3 debug matrix lint build clean

test: build
	$(PIP) --group test "$$(echo dist/*.whl)[framecache]"
	CUFRAMES_TEST_INSTALLED=1 $(BIN)/pytest $(ARGS)

# cython and setuptools build the extension modules once more, under a sanitizer.
stress: build
	$(PIP) --group test "$$(echo dist/*.whl)[framecache]" "cython>=3.2,<4" "setuptools>=77"
	PYTHONPATH=tests PYTHONSAFEPATH=1 $(BIN)/python -m stress $(ARGS)

demo: build
	$(BIN)/cuframes demo --source "$$($(BIN)/python tools/clip.py)" $(ARGS)

abi3: $(VENV)/ready
	CUFRAMES_ABI3=1 $(BIN)/python -m build --wheel --outdir dist/abi3 . >build.log 2>&1 || { cat build.log >&2; exit 1; }
	$(BIN)/python tools/check_dist.py dist/abi3
	rm -rf $(VENV)/abi3
	$(PIP) --group test numpy
	$(PIP) --no-deps --target $(VENV)/abi3 dist/abi3/*-abi3-*.whl
	PYTHONPATH=$(VENV)/abi3 $(BIN)/pytest -q tests/test_ring.py tests/test_frame.py tests/test_packets.py tests/test_slots.py

# Beside the wheel that is installed, not in its place.
debug: $(VENV)/ready
	rm -rf build/debug/dist $(VENV)/debug
	CUFRAMES_DEBUG=1 $(BIN)/python -m build --wheel --outdir build/debug/dist . >build.log 2>&1 || { cat build.log >&2; exit 1; }
	$(PIP) --group test numpy "av>=14" rich typer
	$(PIP) --no-deps --group clips
	$(PIP) --no-deps --target $(VENV)/debug build/debug/dist/*.whl
	PYTHONPATH=$(abspath $(VENV)/debug) PYTHONSAFEPATH=1 $(BIN)/python -c "from cuframes._native import debug"
	PYTHONPATH=$(abspath $(VENV)/debug) PYTHONSAFEPATH=1 $(BIN)/pytest -q $(or $(ARGS),$(DEBUG_TESTS:%=tests/test_%.py))

matrix:
	$(PYTHON) tools/matrix.py $(ARGS)

lint: $(VENV)/ready
	$(PIP) --group lint "numpy>=2" "av>=14" rich typer "cuda-bindings>=13,<14" fastapi uvicorn prometheus-client
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/cython-lint cuframes
	$(BIN)/mypy
	$(BIN)/python tools/stubs.py --check
	$(BIN)/python -P -c "import cuframes._core" 2>/dev/null || $(MAKE) build
	PYTHONSAFEPATH=1 $(BIN)/python -m mypy.stubtest --ignore-disjoint-bases --mypy-config-file pyproject.toml --allowlist tools/stubtest.txt cuframes._core cuframes._native
	$(BIN)/clang-format --dry-run --Werror cuframes/include/cuframes/*.h tests/c/*.c tests/c/*.cpp bench/*.c
	$(BIN)/hadolint deploy/Dockerfile
	@# Its package downloads a program from elsewhere, which not every machine can.
	if command -v actionlint >/dev/null; then actionlint; else echo "no actionlint here: CI looks at the workflows"; fi

# As a user's pip would do it: an sdist, and from that a wheel, each in an environment of its own.
build: $(VENV)/ready
	rm -rf dist
	$(BIN)/python -m build --outdir dist . >build.log 2>&1 || { cat build.log >&2; exit 1; }
	$(BIN)/python tools/check_dist.py
	$(BIN)/pip uninstall --quiet --yes cuframes
	$(PIP) "$$(echo dist/*.whl)[cli]"
	$(PIP) --no-deps --group clips

$(VENV)/ready:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "cuframes needs Python 3.11 or later; say which: make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV) || \
		{ echo "no virtual environment; on Debian first: apt install python3-venv python3-dev gcc" >&2; exit 1; }
	$(PIP) --upgrade "pip>=25.1" build
	touch $@

clean:
	rm -rf $(VENV) build dist wheelhouse build.log *.egg-info cuframes/*.so cuframes/_native/*.so
