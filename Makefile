# `make` prints the verbs. Each makes .venv first, with everything at the versions of constraints.txt.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help install demo scenes shards verify preview pretrain export features results test quick fuzz gpu-day same-behaviour evidence-demo evidence-photographs mutants lint bench bench-shards bench-stream bench-step bench-train bench-eval clean

PYTHON ?= python3
VENV ?= .venv
WORK ?= runs/demo
CONSTRAINTS ?= constraints.txt
TESTS ?= not slow and not system and not gpu
PYTEST_ARGS ?=

# What the user gives reaches the recipes as it was typed, through the environment: neither make nor a shell reads it.
GIVEN := PYTHON VENV CONSTRAINTS WORK TESTS IMAGES SHARDS RUN CONFIG NPROC INIT FORMAT HEADS CHECKPOINT SET OVERWRITE DRY_RUN REPAIR OUT PNG PYTEST_ARGS BUDGET DRY PARTS DATA BEFORE N SEED SEEDS WEIGHTS BACKBONE PROTOCOLS FROM PATHS MINUTES AGAIN
# An evaluation is a command of train/evals: `make eval-x RUN=… X=…` hands the folder X on as --x.
ALPHABET := a:A b:B c:C d:D e:E f:F g:G h:H i:I j:J k:K l:L m:M n:N o:O p:P q:Q r:R s:S t:T u:U v:V w:W x:X y:Y z:Z
CAPITAL = $(eval CAPITALS := $(subst $(firstword $(subst :, ,$1)),$(lastword $(subst :, ,$1)),$(CAPITALS)))
upper = $(strip $(eval CAPITALS := $1)$(foreach l,$(ALPHABET),$(call CAPITAL,$l))$(CAPITALS))
EVALS := $(filter-out __init__ trials,$(basename $(notdir $(wildcard train/evals/*.py))))
GIVEN += $(foreach e,$(EVALS),$(call upper,$e))
# A protocol on frozen features is a file of train/evals/frozen/protocols; eval-frozen runs all that the data allow.
FROZEN := frozen $(filter-out __init__,$(basename $(notdir $(wildcard train/evals/frozen/protocols/*.py))))
$(foreach name,$(GIVEN),$(eval override $(name) := $$(value $(name))))
export $(GIVEN)
export PYTHONUTF8 = 1
export PIP_DISABLE_PIP_VERSION_CHECK = 1

COMMA := ,
SPACE := $(subst ,, )
STAMP = $(VENV)/.installed
R2O = "$$VENV/bin/python" -m pipeline.cli
OF_WEIGHTS = "--weights=$$WEIGHTS" "--data=$$DATA" $${FORMAT:+"--format=$$FORMAT"} $${BACKBONE:+"--backbone=$$BACKBONE"} $${NPROC:+"--nproc=$$NPROC"}
SETTINGS = $${CONFIG:+"--config=$$CONFIG"} $${SET:+--set $$SET}

usage-scenes = make scenes OUT=<new folder>
usage-shards = make shards IMAGES=<images> SHARDS=<new folder> [OVERWRITE=1] [DRY_RUN=1]
usage-verify = make verify SHARDS=<folder of shards> [IMAGES=<images, to compare with>] [REPAIR=1]
usage-preview = make preview SHARDS=<folder of shards> PNG=<new file>
usage-pretrain = make pretrain SHARDS=<folder of shards> RUN=<new folder> [NPROC=<processes>] [INIT=<weights>]
usage-same-behaviour = make same-behaviour BEFORE=<another checkout> [OUT=<folder>]
usage-export = make export RUN=<folder of a run> OUT=<file.pth> [FORMAT=torchvision|timm|detectron2|mmseg] [HEADS=1] [CHECKPOINT=<file>]
usage-results = make results FROM=<folder of results> [FORMAT=text|markdown|csv] [OUT=<file>] [PNG=<new file>]
$(foreach e,$(EVALS),$(eval usage-eval-$e = make eval-$e RUN=<folder of a run> $(call upper,$e)=<folder of its data>))
of-weights = WEIGHTS=<file, folder of a run, random or random-bn> DATA=<folder of annotated images>
$(foreach e,$(FROZEN),$(eval usage-eval-$e = make eval-$e $(of-weights) [FORMAT=auto] [BACKBONE=<name>] [CHECKPOINT=<file>] [OUT=<folder>]))
usage-features = make features WEIGHTS=<weights, as above> DATA=<folder of images> OUT=<new folder> [FORMAT=auto] [BACKBONE=<name>]

help:
	@echo 'make demo        the whole pipeline on generated images, in minutes; results in WORK=runs/demo'
	@echo '$(usage-shards)'
	@echo '                 IMAGES: folder, class folders, list file, tar (ImageNet'"'"'s too), WebDataset, Parquet, COCO; path or URL'
	@echo '$(usage-verify)'
	@echo '$(usage-preview)'
	@echo '$(usage-pretrain)'
	@$(foreach e,$(EVALS),echo '$(usage-eval-$e)';)
	@echo '$(usage-eval-frozen)'
	@echo '                 scores frozen features of anybody'"'"'s weights, by PROTOCOLS=$(subst $(SPACE),$(COMMA),$(strip $(filter-out frozen,$(FROZEN)))) or all that the data allow'
	@echo '                 make eval-<protocol> runs that one'
	@echo '$(usage-features)'
	@echo '$(usage-results)'
	@echo '$(usage-export)'
	@echo '                 each of these also takes CONFIG=<file of configs/> and SET="section.key=value …"'
	@echo 'make test        the tests without the slow ones; make quick: those that start no process and take no seconds'
	@echo 'make fuzz        N=5000 SEED=7: changes every file that is read so often, and looks what is made of it'
	@echo 'make lint        format, lint and types; make bench-shards, bench-stream, bench-step, bench-train, bench-eval: speed (make bench: all)'
	@echo 'make gpu-day     all that has to be seen on a GPU, in ten minutes, as a page in OUT=runs/gpu-day; DRY=1: tiny, on a CPU'
	@echo '                 BUDGET=<seconds>: a longer one learns longer; DATA=<photographs>, SHARDS=<made before>, PARTS="<names>"'
	@echo '$(usage-same-behaviour)'
	@echo '                 whether losses, shards, messages and exit codes are those of another checkout'
	@echo 'make evidence-demo  the demo with seeds 1, 2 and 3: does its run beat random weights on each; CONFIG, OUT=runs/evidence-demo'
	@echo 'make evidence-photographs DATA=<folder with imagenette and VOC2012_small> [OUT=runs/methods] [SEEDS="0 1 2"]'
	@echo '                 R2O, its parts, BYOL and DetCon-B at equal compute on photographs, and every protocol: hours'
	@echo 'make mutants     small faults in the code: which do the quick tests not see; MINUTES=40 PATHS="<files and folders>" SEED=0 N=<number>'
	@echo '                 AGAIN=<results>: their survivors once more; OUT=runs/mutants.json'
	@echo 'make clean       remove .venv and caches; runs and shards stay'

demo: $(STAMP)
	@set -f; $(R2O) run "--work=$$WORK" $${SET:+--set $$SET} -- "$${CONFIG:-configs/demo.yaml}"

scenes: need-OUT $(STAMP)
	@set -f; $(R2O) scenes "--out=$$OUT" $(SETTINGS)

shards: need-IMAGES need-SHARDS $(STAMP)
	@set -f; $(R2O) shards "--images=$$IMAGES" "--shards=$$SHARDS" $${OVERWRITE:+--overwrite} $${DRY_RUN:+--dry-run} $(SETTINGS)

verify: need-SHARDS $(STAMP)
	@set -f; $(R2O) verify "--shards=$$SHARDS" $${REPAIR:+--repair} $${IMAGES:+"--images=$$IMAGES"} $(SETTINGS)

preview: need-SHARDS need-PNG $(STAMP)
	@set -f; $(R2O) preview "--shards=$$SHARDS" "--out=$$PNG" $(SETTINGS)

pretrain: need-SHARDS need-RUN $(STAMP)
	@set -f; $(R2O) pretrain "--shards=$$SHARDS" "--run=$$RUN" $${NPROC:+"--nproc=$$NPROC"} $${INIT:+"--init=$$INIT"} $(SETTINGS)

export: need-RUN need-OUT $(STAMP)
	@set -f; $(R2O) export "--run=$$RUN" "--out=$$OUT" $${FORMAT:+"--format=$$FORMAT"} $${HEADS:+--heads} $${CHECKPOINT:+"--checkpoint=$$CHECKPOINT"}

results: need-FROM $(STAMP)
	@set -f; $(R2O) results $${FORMAT:+"--format=$$FORMAT"} $${OUT:+"--out=$$OUT"} $${PNG:+"--picture=$$PNG"} -- "$$FROM"

define evaluation
.PHONY: eval-$1
eval-$1: need-RUN need-$2 $$(STAMP)
	@set -f; $$(R2O) eval-$1 "--run=$$$$RUN" "--$1=$$$$$2" $$(SETTINGS)
endef
$(foreach e,$(EVALS),$(eval $(call evaluation,$e,$(call upper,$e))))

define frozen-evaluation
.PHONY: eval-$1
eval-$1: need-WEIGHTS need-DATA $$(STAMP)
	@set -f; $$(R2O) eval-$1 $$(OF_WEIGHTS) $$$${CHECKPOINT:+"--checkpoint=$$$$CHECKPOINT"} $$$${OUT:+"--out=$$$$OUT"} $2 $$(SETTINGS)
endef
$(eval $(call frozen-evaluation,frozen,$$$${PROTOCOLS:+"--protocols=$$$$PROTOCOLS"}))
$(foreach e,$(filter-out frozen,$(FROZEN)),$(eval $(call frozen-evaluation,$e,)))

features: need-WEIGHTS need-DATA need-OUT $(STAMP)
	@set -f; $(R2O) features $(OF_WEIGHTS) "--out=$$OUT" $(SETTINGS)

need-%:
	@test -n "$$$*" || { echo 'r2o: error: $* is missing: $(usage-$(firstword $(MAKECMDGOALS)))' >&2; exit 2; }

test: $(STAMP)
	@set -f; "$$VENV/bin/python" -m pytest -m "$$TESTS" $$PYTEST_ARGS

# Several processes run the tests, none of which starts one itself: --no-processes sees to that.
quick: $(STAMP)
	@set -f; "$$VENV/bin/python" -m pytest -n auto --maxprocesses=4 --dist worksteal --no-processes -m 'not processes and not long and not slow and not system and not gpu' $$PYTEST_ARGS

fuzz: $(STAMP)
	@set -f; R2O_FUZZ="$$N" R2O_FUZZ_SEED="$$SEED" "$$VENV/bin/python" -m pytest tests/fuzz $$PYTEST_ARGS

gpu-day: $(STAMP)
	@"$$VENV/bin/python" -m tests.gpu.day

same-behaviour: need-BEFORE $(STAMP)
	@"$$VENV/bin/python" -m tests.same_behaviour "$$BEFORE" $${OUT:+"--out=$$OUT"}

evidence-demo: $(STAMP)
	@"$$VENV/bin/python" -m tests.evidence.demo $${CONFIG:+"--config=$$CONFIG"} $${OUT:+"--work=$$OUT"}

evidence-photographs: need-DATA $(STAMP)
	@set -f; "$$VENV/bin/python" -m tests.evidence.photographs "$$DATA" $${OUT:+"--work=$$OUT"} $${SEEDS:+--seeds $$SEEDS}

mutants: $(STAMP)
	@"$$VENV/bin/python" -m tests.mutants $${PATHS:+"--paths=$$PATHS"} $${MINUTES:+"--minutes=$$MINUTES"} $${N:+"--number=$$N"} $${SEED:+"--seed=$$SEED"} $${AGAIN:+"--again=$$AGAIN"} $${OUT:+"--out=$$OUT"}

lint: $(STAMP)
	@"$$VENV/bin/ruff" format --check .
	@"$$VENV/bin/ruff" check .
	@"$$VENV/bin/mypy"

bench: bench-shards bench-stream bench-step bench-train bench-eval

bench-shards: $(STAMP)
	@"$$VENV/bin/python" -m tests.benchmarks.shards

bench-stream: $(STAMP)
	@"$$VENV/bin/python" -m tests.benchmarks.stream

bench-step: $(STAMP)
	@"$$VENV/bin/python" -m tests.benchmarks.step

bench-train: $(STAMP)
	@"$$VENV/bin/python" -m tests.benchmarks.train

bench-eval: $(STAMP)
	@"$$VENV/bin/python" -m tests.benchmarks.evaluation

install: $(STAMP)

# fast-slic's sdist names none of what its build needs, so that comes first and its build is not isolated.
$(STAMP): pyproject.toml constraints.txt
	@rm -f "$$VENV/.installed"
	@"$$PYTHON" -c 'import sys; sys.exit("r2o needs Python 3.11 or newer: make PYTHON=python3.11 …" if sys.version_info < (3, 11) else 0)'
	@command -v "$${CC:-cc}" >/dev/null || { echo 'r2o: error: no C compiler; install one (Debian: apt install build-essential)' >&2; exit 2; }
	@echo "r2o: installing into $$VENV, once: some minutes, about 6 GB"
	"$$PYTHON" -m venv "$$VENV"
	"$$VENV/bin/python" -m pip install --quiet -c "$$CONSTRAINTS" cython numpy setuptools wheel
	"$$VENV/bin/python" -m pip install --quiet -c "$$CONSTRAINTS" --no-build-isolation fast-slic
	"$$VENV/bin/python" -m pip install --quiet -c "$$CONSTRAINTS" --no-build-isolation -e '.[dev]'
	@touch "$$VENV/.installed"

clean:
	rm -rf "$$VENV" .mypy_cache .pytest_cache .ruff_cache *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
