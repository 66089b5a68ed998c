# The commands of this project. Each one first makes the environment in .venv if it is not there or out of date.
#
#   make train                            set up, then a first run: mbpo on window-close, minutes on two CPU cores
#   make train ARGS="agent=sac seed=1"    the same with settings changed
#   make train ARGS="experiment=window_close agent=mbpo_ivideogpt"   another experiment: iVideoGPT, from pixels
#   make test                             set up, then the tests             (ARGS="-k replay" to choose)
#   make bench                            set up, then the benchmarks        (ARGS="imagination" to choose)
#   make lint                             set up, then ruff and mypy

VENV := .venv
BIN := $(VENV)/bin
ARGS ?=
PYTHON ?=
GL_PACKAGES := libegl1 libgl1 libopengl0

.DEFAULT_GOAL := help
.PHONY: help setup train test bench lint ruff mypy

help:
	@sed -n '2,/^$$/s/^# \{0,1\}//p' Makefile

setup: $(VENV)/.installed $(VENV)/.gl

train: setup
	@$(BIN)/mbrl train $(if $(findstring experiment=,$(ARGS)),,experiment=quickstart) $(ARGS)

test: setup
	@$(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist loadgroup $(ARGS)

bench: setup
	@$(BIN)/mbrl bench $(ARGS)

lint: ruff mypy

ruff: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .

mypy: $(VENV)/.installed
	$(BIN)/mypy

# The first Python that answers and is new enough. PYTHON=/path/to/python comes first.
$(BIN)/python:
	@for python in $(PYTHON) python3.11 python3.12 python3.13 python3 python; do \
	  if $$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; then \
	    echo "mbrl: making $(VENV) with $$($$python --version)"; \
	    $$python -m venv $(VENV) && exit 0; \
	    rm -rf $(VENV); \
	    echo "mbrl: error: $$python cannot make a virtual environment; on Debian: apt-get install python3-venv" >&2; \
	    exit 1; \
	  fi; \
	done; \
	echo "mbrl: error: no Python 3.11, 3.12 or 3.13 found; install one, or name it: make PYTHON=/path/to/python3.11" >&2; \
	exit 1

# The stamp is made last, so that a set-up that was broken off is taken up again by the next call.
$(VENV)/.installed: constraints.txt pyproject.toml | $(BIN)/python
	@echo "mbrl: installing the pinned packages (some minutes, once)"
	@$(BIN)/python -m pip install --quiet --quiet --constraint constraints.txt "$$(grep '^torch==' constraints.txt)"
	@$(BIN)/python -m pip install --quiet --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

# MuJoCo draws off screen through EGL; Mesa's software driver serves where there is no GPU.
GL_WORKS = MUJOCO_GL=$${MUJOCO_GL:-egl} $(BIN)/python -c 'from mujoco import GLContext; GLContext(8, 8).make_current()'

$(VENV)/.gl: $(VENV)/.installed
	@if [ "$$(uname)" = Linux ] && ! $(GL_WORKS) 2>/dev/null; then \
	  as_root=; \
	  if [ "$$(id -u)" != 0 ]; then as_root="sudo -n"; fi; \
	  if command -v apt-get >/dev/null && $$as_root true 2>/dev/null; then \
	    echo "mbrl: installing the OpenGL libraries: $(GL_PACKAGES)"; \
	    $$as_root apt-get update -qq && \
	    $$as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(GL_PACKAGES) >/dev/null; \
	  fi; \
	  if ! $(GL_WORKS) 2>/dev/null; then \
	    echo "mbrl: error: OpenGL libraries are missing; run: sudo apt-get install -y $(GL_PACKAGES)" >&2; \
	    exit 1; \
	  fi; \
	fi
	@touch $@
