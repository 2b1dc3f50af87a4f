# Every target works inside .venv, which is made on first use. `make` alone lists the targets.

PYTHON ?= python3
L ?= 8
PROFILE ?= study
OUT ?= out.ipynb
EXECUTOR ?= local
SWEEP ?=

# Threads of OpenMP that wait spin for a moment, as small layers need, then sleep, so that decoding threads get the cores.
export GOMP_SPINCOUNT ?= 3000

BIN := .venv/bin
STAMP := .venv/installed
NOTEBOOKS = $(sort $(wildcard notebooks/*.ipynb))

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help venv reproduce index test bench gpu retrain sweep study status lint format notebooks docs constraints clean distclean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "%-12s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))
	@echo 'Variables: PYTHON=$(PYTHON) for venv; L=$(L) PROFILE=$(PROFILE) for reproduce, index, retrain and sweep; OUT=$(OUT) for reproduce; EXECUTOR=$(EXECUTOR) (or slurm) and SWEEP for sweep'

venv: $(STAMP)  ## make .venv with $PYTHON and install the kit into it

# The stamp goes first and comes back last, so a failed install is never taken for a good one.
# pip is the last thing `python -m venv` makes: where it is missing, .venv is missing or half made.
# pip compiles modules by one core, compileall by all; of those that it cannot, such as templates, the log tells.
$(STAMP): pyproject.toml constraints.txt
	@rm -f $@
	@test -x $(BIN)/pip || $(PYTHON) -c 'import sys; v = sys.version_info[:2]; v >= (3, 11) or sys.exit("The kit needs Python 3.11 or newer, but $(PYTHON) is %d.%d; run: make $(MAKECMDGOALS) PYTHON=python3.11" % v)'
	@test -x $(BIN)/pip || $(PYTHON) -m venv .venv
	$(BIN)/pip install --no-compile -c constraints.txt -e ".[dev]"
	@$(BIN)/python -m compileall -q -j 0 .venv/lib > .venv/compileall.log || true
	@touch $@

reproduce: $(STAMP)  ## run the ratio study (Table 4) with $L and $PROFILE into $OUT
	TQDM_MININTERVAL=10 $(BIN)/papermill --log-output notebooks/04_ratio_study.ipynb $(OUT) -p L $(L) -p profile $(PROFILE)

index: $(STAMP)  ## index the real videos of $PROFILE: what is missing, corrupt, too short or there twice
	$(BIN)/python -m workflow.index --profile $(PROFILE)

# Two files at a time: the tests with one thread each, by name, since the last by name are short, where those with the
# fewest tests would be long; then the notebooks, those with the most cells first, whose kernels often wait for one core.
test: $(STAMP)  ## run the tests, and every notebook against its committed outputs
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder tests
	$(BIN)/pytest --nbval -n 2 --dist loadfile notebooks

# About 85 minutes on 2 cores, twice that where the processor multiplies bfloat16; whatever else runs there shows in the figures. pytorchvideo joins in where it is
# installed: pip install -e ".[bench]".
bench: $(STAMP)  ## time the kit against peers and a matrix product, into benchmarks/results/
	@mkdir -p benchmarks/results
	$(BIN)/python benchmarks/networks.py benchmarks/results/aggregators.csv --part aggregators
	$(BIN)/python benchmarks/networks.py benchmarks/results/networks.csv --part networks
	$(BIN)/python benchmarks/videos.py benchmarks/results/videos.csv
	$(BIN)/python benchmarks/data_path.py benchmarks/results/data_path.csv
	TQDM_DISABLE=1 $(BIN)/python benchmarks/training.py benchmarks/results/training.csv
	$(BIN)/python benchmarks/growth.py benchmarks/results/growth.csv benchmarks/results/growth.png
	$(BIN)/python benchmarks/draw.py benchmarks/results

gpu: $(STAMP)  ## check and time everything on a GPU, in 8 minutes, into runs/gpu/
	$(BIN)/python benchmarks/gpu.py

# Snakemake makes what is missing. SWEEP adds to its options and configuration: SWEEP='seeds=0 --dry-run'.
sweep: $(STAMP)  ## train and measure all of Table 4 in $PROFILE, side by side, by $EXECUTOR (docs/cluster.md)
	@$(BIN)/python -c 'import snakemake' 2> /dev/null || $(BIN)/pip install -c constraints.txt -e ".[sweep]"
	TQDM_MININTERVAL=10 $(BIN)/snakemake --snakefile workflow/Snakefile --workflow-profile workflow/$(EXECUTOR) --config profile=$(PROFILE) $(SWEEP)

# One profile after the other, since each takes all cores. Networks that come with the repository are not trained again.
study: $(STAMP)  ## train and measure the study: three trainings of the clip networks, all lengths and units, into params/results.csv
	@echo 'The clip networks of a training took about 2 hours of one core of a busy machine, R3D-50 not counted; the 180 heads on them take less than 1. It goes on after any end.'
	@for profile in study study_1 study_2; do \
	    $(MAKE) --no-print-directory sweep PROFILE=$$profile SWEEP="'aggregators=[mean,lstm,gru,fast_gru]' $(SWEEP)" || exit; done
	$(if $(findstring dry-run,$(SWEEP)),@echo 'A dry run writes no results.',$(BIN)/python -m workflow.results --keep $(or $(FASTER_RUNS),runs)/study*/aggregators/*)

status: $(STAMP)  ## list what is in runs/: state, size, and when it was finished
	@$(BIN)/python workflow/status.py

# Each network is trained by the command that the manifest will name, two at a time with one thread each. An
# interrupted run goes on; for a run from nothing, remove runs/retrain first.
retrain: $(STAMP)  ## train the shipped networks of $PROFILE again, compare, and replace params/weights
	$(BIN)/python workflow/ship.py --profile $(PROFILE)

lint: $(STAMP)  ## check style and format of modules, tests and notebooks
	$(BIN)/ruff check
	$(BIN)/ruff format --check

format: $(STAMP)  ## apply the formatter and the safe fixes
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

# nbconvert (it comes with jupyterlab) runs each notebook in its own folder and fresh kernel, with the parameters
# written in it, and saves it only if no cell failed. Metadata is cut down to the kernel, the language and cell tags.
# Progress bars are off, since nbval would compare them; an output that names this machine's folders fails the target.
notebooks: $(STAMP)  ## re-run all notebooks in place, in order, at their default parameters
	TQDM_DISABLE=1 $(BIN)/jupyter nbconvert --to notebook --inplace --execute \
	    --ExecutePreprocessor.record_timing=False \
	    --ClearMetadataPreprocessor.enabled=True \
	    --ClearMetadataPreprocessor.preserve_nb_metadata_mask="{'kernelspec', ('language_info', 'name')}" \
	    --ClearMetadataPreprocessor.preserve_cell_metadata_mask=tags \
	    $(NOTEBOOKS)
	@! grep -nF -e '$(CURDIR)/' -e '/site-packages/' -e '/ipykernel_' $(NOTEBOOKS)

# Without network and without running anything. A link that leads nowhere and a page that no list holds fail the target.
docs: $(STAMP)  ## build the site out of the notebooks as committed, docs/ and the docstrings, into runs/docs/
	@$(BIN)/python -c 'import sphinx, myst_nb, furo' 2> /dev/null || $(BIN)/pip install -c constraints.txt -e ".[docs]"
	@rm -rf docs/api
	$(BIN)/sphinx-build --fail-on-warning --keep-going --quiet -c docs . runs/docs
	@echo Open runs/docs/index.html

constraints: $(STAMP)  ## write the versions installed in .venv to constraints.txt
	$(BIN)/pip freeze --exclude-editable > .venv/freeze.txt
	grep '^#' constraints.txt > .venv/constraints.txt
	grep '==' .venv/freeze.txt | sed 's/+.*//' | grep -vE '^(nvidia-|cuda-|triton==|pip==|setuptools==|wheel==)' >> .venv/constraints.txt
	mv .venv/constraints.txt constraints.txt
	@touch $(STAMP)

clean:  ## remove executed copies and caches; runs/ stays
	rm -rf out*.ipynb docs/api .snakemake .pytest_cache .ruff_cache .hypothesis build dist *.egg-info
	find . \( -path ./.venv -o -path ./.git -o -path ./runs \) -prune -o \
	    -type d \( -name __pycache__ -o -name .ipynb_checkpoints \) -prune -exec rm -rf {} +

distclean: clean  ## clean, and remove .venv and runs/ (generated videos, checkpoints, features) too
	rm -rf .venv runs
