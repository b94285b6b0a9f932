# make demo, make test, make bench; the rest is for development. PYTHON chooses the interpreter.

PYTHON ?= python3
VENV := .venv
CHECKED := .venv-checked
PEERS := .peers
DOCS := .venv-docs
FRAMEWORKS := .venv-frameworks
RAY := .venv-ray
# Of this release pip takes the build for CPUs, if it finds one: it is a tenth of the other.
TORCH_PACKAGES := torch~=2.13.0 torchdata ml_dtypes
FRAMEWORK_PACKAGES := lightning accelerate datasets transformers keras jax tensorflow-cpu
BIN := $(VENV)/bin
# Of the modules of all these packages few are imported: Python compiles them then.
PIP := -m pip install --quiet --disable-pip-version-check --no-compile
# Tests beside each other.
BESIDE := --numprocesses logical --maxprocesses 4 --dist worksteal
# In the loops of frameworks, which take long to import, in each process of a test again.
IN_LOOPS := $(BESIDE) -p no:cacheprovider --timeout 300
# Tests of compiled modules, in this process.
COMPILED := $(foreach room,activation batches channel_* choice core global_rng maps mux rng \
	rng_scopes seeded seeds snapshots sources stream,tests/test_$(room).py)
SOURCES := $(wildcard $(foreach kind,pyx pxd h,pescador/*.$(kind) pescador/*/*.$(kind))) \
	CMakeLists.txt pyproject.toml
STUBS = $(subst /,.,$(basename $(shell find pescador -name '*.pyi')))

.PHONY: demo test test-all test-checked test-debug test-torch test-frameworks test-ray test-long soak \
	soak-parallel \
	lint annotate clean bench bench-full bench-instructions bench-env publish docs

demo: $(VENV)/demo
	$(BIN)/python examples/out_of_core.py

# Without the development tools: what a user installs.
$(VENV)/demo: $(VENV)/pip
	$(BIN)/python $(PIP) ".[examples]"
	@touch $@
	@rm -f $(VENV)/dev

test: $(VENV)/dev $(PEERS)/done lint test-checked
	$(BIN)/pytest $(BESIDE)

# Once more with array bounds checks compiled in.
test-checked: $(CHECKED)/done $(PEERS)/done
	$(CHECKED)/bin/python -m pytest -q -p no:cacheprovider $(BESIDE) $(COMPILED) \
		tests/test_frozen.py tests/parity/test_exactness.py

# A stub says what Python code uses of a compiled module; stubtest holds it to the module. Classes
# that only compiled code uses are left out of stubs.
lint: $(VENV)/dev
	$(BIN)/ruff check --quiet .
	$(BIN)/ruff format --quiet --check .
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/cython-lint pescador
	$(BIN)/mypy
	$(BIN)/python -m mypy.stubtest --concise --ignore-missing-stub --ignore-disjoint-bases \
		--mypy-config-file pyproject.toml $(STUBS)

# The suite on each Python from 3.11 on that this machine has.
test-all: $(PEERS)/done
	$(PYTHON) tests/on_every_python.py

# The suite with N times as many random trees, examples and rounds (tests/effort.py), new ones each
# time. Part of it: make test-long N=100 TESTS=tests/parity
N ?= 20
test-long: $(VENV)/dev $(PEERS)/done
	TEST_TIMES=$(N) $(BIN)/pytest $(BESIDE) --timeout $$((120 * $(N))) $(TESTS)

# Millions of items and 200 GB from a worker, and hundreds of streams broken at random moments: a
# few minutes. Part of it: make soak SOAK="--small 0 --large 0 --faults 5000 --seed 1"
soak: $(VENV)/dev
	$(BIN)/python bench/soak.py $(SOAK)

# Random trees, whose workers and consumers are broken at random moments, for two minutes.
soak-parallel: $(VENV)/dev
	$(BIN)/python bench/soak_parallel.py $(SOAK)

# The suite under an allocator that checks what is freed and overwritten.
test-debug: $(VENV)/dev $(PEERS)/done
	PYTHONMALLOC=debug $(BIN)/pytest -q $(BESIDE) $(COMPILED) tests/test_leaks.py tests/test_stores.py \
		tests/test_npy.py tests/test_formats.py tests/test_chunks.py tests/test_workers.py \
		tests/test_placement.py tests/test_parallel*.py

# Side by side with the reference release and others (bench/README.md): under ten minutes, and an hour.
# Part of it: make bench BENCH="--only 'shuffled*' --against peer,hand"
bench: bench-env
	bench/envs/report/bin/python bench/run.py $(BENCH)

bench-full: bench-env
	bench/envs/report/bin/python bench/run.py --profile full $(BENCH)

# The last run of it into docs/benchmarks and the README.
publish: bench-env
	bench/envs/report/bin/python bench/publish.py bench/results/latest.json

# Instructions per sample under callgrind, which no other load on the machine disturbs.
bench-instructions: bench-env
	bench/envs/report/bin/python bench/instructions.py $(BENCH)

# Where contestants are compared; the comparison makes theirs as it needs them.
bench-env:
	@$(PYTHON) bench/contestants.py report

# The site, in docs/_build/html, made anew: plots and examples show what the code does now. Warnings
# are errors, and nothing comes from the network but packages.
docs: $(DOCS)/done
	rm -rf docs/_build docs/gallery
	$(DOCS)/bin/python -m sphinx --fail-on-warning --keep-going --nitpicky --quiet \
		docs docs/_build/html
	@echo "open docs/_build/html/index.html"

# In the loops of frameworks, as far as they can be installed, and the pages about them. What is of
# JAX runs by itself: it has threads, and warns of workers that are forked. So does TensorFlow's.
test-frameworks: $(VENV)/dev $(FRAMEWORKS)/done
	KERAS_BACKEND=torch $(FRAMEWORKS)/bin/python -m pytest $(IN_LOOPS) \
		tests/frameworks docs/how-to pescador/torch.py pescador/keras.py \
		--ignore tests/frameworks/test_jax.py --ignore docs/how-to/jax.rst \
		--ignore tests/frameworks/test_tensorflow.py --ignore docs/how-to/tensorflow.rst
	KERAS_BACKEND=jax $(FRAMEWORKS)/bin/python -m pytest $(IN_LOOPS) \
		tests/frameworks/test_jax.py tests/frameworks/test_keras.py \
		docs/how-to/jax.rst docs/how-to/keras.rst pescador/jax.py pescador/keras.py
	KERAS_BACKEND=tensorflow TF_CPP_MIN_LOG_LEVEL=3 $(FRAMEWORKS)/bin/python -m pytest $(IN_LOOPS) \
		tests/frameworks/test_tensorflow.py tests/frameworks/test_keras.py \
		docs/how-to/tensorflow.rst docs/how-to/keras.rst pescador/keras.py

# Of these, what is about torch alone: skipped, and named, where torch cannot be installed.
test-torch: $(VENV)/dev $(FRAMEWORKS)/torch
	$(FRAMEWORKS)/bin/python -m pytest $(IN_LOOPS) \
		tests/frameworks/test_torch.py docs/how-to/pytorch.rst pescador/torch.py

# On a real Ray: a local cluster, several nodes on this machine, and Ray Train. Under six minutes.
test-ray: $(VENV)/dev $(RAY)/done
	$(RAY)/bin/python -m pytest -p no:cacheprovider tests/on_ray docs/how-to/ray.rst pescador/ray.py

# Cython's pages that show where a line of a loop calls into Python.
annotate: $(VENV)/dev
	mkdir -p annotate
	for file in pescador/*.pyx pescador/*/*.pyx; do \
		$(BIN)/cython -3 -X cdivision=True -X boundscheck=False -X wraparound=False -a \
			$$file -o annotate/$$(basename $$file .pyx).c; \
	done
	@echo "open annotate/*.html"

clean:
	rm -rf $(VENV) $(CHECKED) $(PEERS) $(DOCS) $(FRAMEWORKS) $(RAY) build annotate docs/_build docs/gallery

$(VENV)/pip:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python $(PIP) --upgrade pip
	@touch $@

$(VENV)/dev: $(VENV)/pip $(SOURCES)
	$(BIN)/python $(PIP) --group build --group test --group formats
	$(BIN)/python $(PIP) --no-build-isolation --editable . --config-settings cmake.define.PESCADOR_WERROR=ON
	@touch $@
	@rm -f $(VENV)/demo

$(DOCS)/done: $(SOURCES)
	$(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/python $(PIP) --upgrade pip
	$(DOCS)/bin/python $(PIP) --group build --group docs
	$(DOCS)/bin/python $(PIP) --no-build-isolation --editable . --config-settings build-dir=build/docs
	@touch $@

# The same packages, and pescador built with checks, in front of them. At -O1: more takes longer to
# compile than it saves the tests; with less, deep recursion overflows the stack.
$(CHECKED)/done: $(VENV)/dev $(SOURCES)
	$(PYTHON) -m venv --without-pip $(CHECKED)
	$(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))" \
		> "$$($(CHECKED)/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/tools.pth"
	$(CHECKED)/bin/python $(PIP) --no-build-isolation --no-deps --force-reinstall \
		--editable . --config-settings cmake.define.PESCADOR_BOUNDSCHECK=ON \
		--config-settings cmake.define.CMAKE_C_FLAGS_RELEASE=-O1 \
		--config-settings build-dir=build/checked
	@touch $@

# The frameworks, each if it can be installed, in front of the packages of the tests.
$(FRAMEWORKS)/done: Makefile | $(FRAMEWORKS)/torch
	for package in $(FRAMEWORK_PACKAGES); do \
		$(FRAMEWORKS)/bin/python $(PIP) "$$package" || echo "not installed: $$package"; \
	done
	@touch $@

$(FRAMEWORKS)/torch: | $(VENV)/dev
	$(PYTHON) -m venv --without-pip $(FRAMEWORKS)
	$(BIN)/python -c "import sysconfig; \
		print('import site; site.addsitedir(%r)' % sysconfig.get_path('purelib'))" \
		> "$$($(FRAMEWORKS)/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/tools.pth"
	for package in $(TORCH_PACKAGES); do \
		$(FRAMEWORKS)/bin/python $(PIP) "$$package" || echo "not installed: $$package"; \
	done
	@touch $@

# Likewise.
$(RAY)/done: | $(VENV)/dev
	$(PYTHON) -m venv --without-pip $(RAY)
	$(BIN)/python -c "import sysconfig; \
		print('import site; site.addsitedir(%r)' % sysconfig.get_path('purelib'))" \
		> "$$($(RAY)/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/tools.pth"
	$(RAY)/bin/python $(PIP) "ray[train]>=2.40" grpcio $(filter torch~=%,$(TORCH_PACKAGES))
	@touch $@

# The releases that ours is compared with, in folders of their own.
$(PEERS)/done: | $(VENV)/dev
	$(BIN)/python tests/parity/fetch.py $(PEERS)
	@touch $@
