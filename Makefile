.PHONY: setup demo study baseline test lint types clean
PY := .venv/bin/python

setup: .venv/.installed ## make .venv and install everything the tests need

.venv/.installed: pyproject.toml install.sh scripts/install.py scripts/install_plan.py
	@bash install.sh

demo: setup ## train a small model on the standard library's source, on this machine, in minutes
	@$(PY) -m lit_gpt.tools.demo

study: setup ## a scaling law on this machine, in a quarter of an hour: the second thing to do here
	@$(PY) -m lit_gpt.tools.demo --prepare_only
	@$(PY) launch_scripts/ladder.py launch_scripts/studies/laptop.yaml run --gpus cpu,cpu
	@$(PY) -m lit_gpt.tools.fit out/laptop --law power --fix c=0 --lowest_per depth --hold_out largest
	@$(PY) -m lit_gpt.tools.report out/laptop --law power:c=0

baseline: setup ## the strong baseline on one GPU, 120M tokens of installed packages' source; SOURCE=folder is another
	@$(PY) -m lit_gpt.tools.baseline $(if $(SOURCE),--source $(SOURCE))

test: export OMP_NUM_THREADS = 1 # one thread per worker, or the workers fight over the cores
test: export PYTHONDONTWRITEBYTECODE = # where it is set, every process would compile the package again
test: setup ## the whole CPU suite
	@$(PY) -m pytest -n 2 --dist worksteal

lint: setup
	@$(PY) -m ruff check . && $(PY) -m ruff format --check .

types: setup
	@$(PY) -m pyright

clean:
	rm -rf .venv out build *.egg-info
