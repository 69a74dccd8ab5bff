# One profile (release) serves every target, so that dependencies are compiled once.

CARGO ?= cargo
# How long `make fuzz` runs each target.
FUZZ_SECONDS ?= 60
# More for benches/servers, whichever mode: --disk DIR, --ram DIR, --rounds N, --seconds N, --size MIB.
BENCH_OPTIONS ?=
SHELL_SCRIPTS := $(shell grep -rlE '^\#!.*\bbash' .ci scripts tests --include='*' --exclude='*.rs' --exclude='*.md')

.DEFAULT_GOAL := help
.PHONY: help demo test test-vm lint audit bench bench-code fuzz build doc

help: ## List these targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 12

demo: ## Set up, build, and show one volume's life on the embedded KMS
	scripts/setup demo
	$(CARGO) build --release --locked
	scripts/demo

test: ## Set up and run every test
	scripts/setup test
	$(CARGO) test --release --locked

test-vm: ## The kernel's NBD client and vsock, in a virtual machine (Debian, root, some minutes)
	scripts/setup vm
	$(CARGO) build --release --locked
	tests/vm/boot "$(CURDIR)/tests/vm/checks $(CURDIR)/target/release/sealblk"

lint: ## Format, clippy, documentation, dependencies, layers and scripts
	scripts/setup lint
	$(CARGO) fmt --check
	@for script in $(SHELL_SCRIPTS); do echo "bash -n $$script"; bash -n "$$script" || exit 1; done
	shellcheck $(SHELL_SCRIPTS)
	$(CARGO) deny --locked check bans licenses sources
	$(CARGO) clippy --release --all-targets --locked -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --release --locked --no-deps
	$(CARGO) test --release --locked --test tidy

audit: ## Check dependencies against the RustSec advisories (needs network access to them)
	scripts/setup lint
	$(CARGO) deny --locked check advisories

bench: ## Compare the server with others, and write the figures into docs/performance (forty minutes)
	scripts/setup bench
	$(CARGO) build --release --locked
	benches/servers --disk target --write $(BENCH_OPTIONS)
	benches/servers --scaling --write $(BENCH_OPTIONS)
	benches/servers --direct --write $(BENCH_OPTIONS)

bench-code: ## Measure the code by itself: cipher, protocol, volume, one connection
	scripts/setup bench
	$(CARGO) bench --locked --bench '*'

fuzz: ## Run each fuzz target for FUZZ_SECONDS (60), and end with an error at a finding
	scripts/setup fuzz
	scripts/fuzz $(FUZZ_SECONDS)

build: ## Build the binary, target/release/sealblk
	scripts/setup build
	$(CARGO) build --release --locked

doc: ## Build the library's documentation into target/doc
	scripts/setup build
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --release --locked --no-deps
