# `make help` lists the targets.

PREFIX ?= /usr/local
DESTDIR ?=
CARGO ?= cargo
FUZZ_SECONDS ?= 60
TARGET := $(or $(CARGO_TARGET_DIR),target)
BINARY ?= $(TARGET)/release/buildlock

root := $(DESTDIR)$(PREFIX)
bash_completion := $(root)/share/bash-completion/completions
fish_completion := $(root)/share/fish/vendor_completions.d
zsh_completion := $(root)/share/zsh/site-functions
man1 := $(root)/share/man/man1
tmpfiles := $(root)/lib/tmpfiles.d

# Subcommands that have a manual page of their own.
subcommands := status path prune cache lint fingerprint completions man
fuzz_targets := reference holder_record command duration engine_answer
prose := src tests docs examples benches fuzz/fuzz_targets README.md CHANGELOG.md CONTRIBUTING.md \
  SECURITY.md Makefile .ci
scripts := .ci/run tests/demo.sh tests/support/engine/debian-13 tests/stand-in/docker

.DELETE_ON_ERROR:
.PHONY: all install uninstall test test-debian test-engines test-examples test-scale chaos fuzz lint bench bench-caches bench-check demo completions man clean help

all: $(BINARY)                 ## build the release binary (the default)

# Links the C library statically, if the linker finds a static one, and for a fixed address. With no
# libraries to load and no addresses to correct, the program starts faster (docs/performance.md).
# `make STATIC=` links as cargo does.
STATIC ?= $(shell folder=$$(mktemp -d) && echo 'int main(void) { return 0; }' | \
  $${CC:-cc} -static -x c - -o "$$folder/it" 2>/dev/null && echo yes; rm -rf "$$folder")
link = $(if $(STATIC),-C target-feature=+crt-static -C relocation-model=static)

# `sudo make install` after `make` must not run cargo, which would leave files of root behind.
$(BINARY): Cargo.toml Cargo.lock $(shell find src -name '*.rs')
	+$(CARGO) rustc --release --locked --bin buildlock -- $(link)
	@touch -c $@

install: $(BINARY)             ## install below PREFIX (/usr/local), in DESTDIR if given
	install -d "$(root)/bin" "$(man1)" "$(tmpfiles)"
	install -d "$(bash_completion)" "$(fish_completion)" "$(zsh_completion)"
	install -m 755 "$(BINARY)" "$(root)/bin/buildlock"
	install -m 644 man/*.1 "$(man1)"
	install -m 644 completions/buildlock.bash "$(bash_completion)/buildlock"
	install -m 644 completions/buildlock.fish "$(fish_completion)/buildlock.fish"
	install -m 644 completions/_buildlock "$(zsh_completion)/_buildlock"
	{ echo "# Lock files of buildlock. Other users cannot remove what root owns."; \
	  for folder in "" /image-locks /named-locks /cache-locks /build-slots; do \
	    echo "d /tmp/buildlock$$folder 1777 root root -"; \
	  done; \
	  echo "d /tmp/buildlock/verified.0 0755 root root -"; \
	  echo "f /tmp/buildlock/guard 0666 root root -"; } >"$(tmpfiles)/buildlock.conf"
	chmod 644 "$(tmpfiles)/buildlock.conf"

uninstall:                     ## remove the installed files
	rm -f "$(root)/bin/buildlock" "$(tmpfiles)/buildlock.conf"
	rm -f "$(man1)/buildlock.1" $(subcommands:%="$(man1)/buildlock-%.1")
	rm -f "$(bash_completion)/buildlock" "$(fish_completion)/buildlock.fish"
	rm -f "$(zsh_completion)/_buildlock"

# Most tests wait for a process or for time to pass, so more of them run at once than there are
# processors.
test: export RUST_TEST_THREADS ?= 8
test:                          ## run the tests, without the long ones below; BUILDLOCK_REQUIRE_ENGINE=1: skip none
	+$(CARGO) test --locked
	+$(CARGO) test --locked --no-default-features --lib

test-debian:                   ## as root: Debian 13's engines for the tests, in a folder that is kept
	@tests/support/engine/debian-13 make

test-engines:                  ## the tests with a real engine, on each engine with each client
	+BUILDLOCK_TEST_ENGINES=all $(CARGO) test --locked --test real -- --test-threads=2 \
	  real_engine:: registry::
	+BUILDLOCK_TEST_ENGINES=all BUILDLOCK_TEST_CONTEXTS=300 BUILDLOCK_TEST_STEPS=100 \
	  $(CARGO) test --locked --test real -- --test-threads=2 contexts:: dockerfile:: if_changed::
	+$(CARGO) test --locked --test real -- --ignored compose:: several:: cache_that_is_pruned

test-examples:                 ## build the examples in the engine; cargo fetches crates, a minute
	+$(CARGO) test --locked --test real -- --ignored examples::

test-scale:                    ## a thousand waiters, calls and tags, one test after the other; long waits
	+BUILDLOCK_TEST_SCALE=1000 $(CARGO) test --locked --test cli thousand -- --test-threads=1
	+$(CARGO) test --locked --test cli -- --ignored --nocapture slots_are_never_idle
	+$(CARGO) test --locked --test real -- --ignored silence::

chaos: SECONDS ?= 600
chaos:                         ## run calls beside a saboteur for SECONDS (600), steered by SEED
	+$(CARGO) test --locked --test chaos -- --seed $(or $(SEED),$(shell date +%s)) \
	  --seconds $(SECONDS)

lint:                          ## check formatting, clippy, dependencies, spelling, shell scripts
	$(CARGO) fmt --check
	+$(CARGO) clippy --all-targets --locked -- -D warnings
	+$(CARGO) clippy --all-targets --locked --no-default-features -- -D warnings
	+$(CARGO) clippy --locked --manifest-path fuzz/Cargo.toml -- -D warnings
	@if $(CARGO) deny --version >/dev/null 2>&1; then \
	  $(CARGO) deny --locked check licenses bans sources || exit; \
	  said=$$(timeout 60 $(CARGO) deny --locked check advisories 2>&1) || case $$said in \
	  *"failed to fetch advisory database"*) \
	    echo "lint: the advisory database cannot be fetched, advisories not checked" >&2;; \
	  *) echo "$$said" >&2; false;; \
	  esac || exit; \
	else \
	  echo "lint: no cargo-deny, dependencies not checked (cargo install --locked cargo-deny)" >&2; \
	  test -z "$$CI"; \
	fi
	@if command -v codespell >/dev/null; then \
	  codespell --ignore-words-list abd,crate,doas,fo,nd,regsitry,uptodate $(prose); \
	else \
	  echo "lint: no codespell, spelling not checked" >&2; \
	fi
	@if command -v shellcheck >/dev/null; then \
	  shellcheck --severity=warning $(scripts); \
	else \
	  echo "lint: no shellcheck, scripts not checked" >&2; \
	fi

fuzz:                          ## run each fuzz target for FUZZ_SECONDS (60); needs nightly Rust, cargo-fuzz
	+$(CARGO) +nightly fuzz build
	@for target in $(fuzz_targets); do \
	  echo "fuzz: $$target, $(FUZZ_SECONDS) s"; \
	  mkdir -p fuzz/corpus/$$target || exit; \
	  $(CARGO) +nightly fuzz run $$target fuzz/corpus/$$target fuzz/seeds/$$target -- \
	    -max_total_time=$(FUZZ_SECONDS) -timeout=10 -rss_limit_mb=1024 -malloc_limit_mb=256 \
	    -print_final_stats=1 || exit; \
	done

bench: all                     ## measure times beside docker and flock, on the real engine
	+$(CARGO) test --quiet --locked --bench bench -- --buildlock "$(BINARY)" $(BENCH)

bench-caches: all              ## measure five builds that share cargo's cache; BENCH=...
	+$(CARGO) test --quiet --locked --bench caches -- --buildlock "$(BINARY)" $(BENCH)

bench-check: all               ## count the instructions of a skip; needs valgrind
	+$(CARGO) test --quiet --locked --bench instructions -- --buildlock "$(BINARY)"

# Uses the release binary if it is up to date, because building it takes minutes.
demo:                          ## run eight calls at once for one tag: one build, seven waits
	+@binary="$(BINARY)"; \
	if [ ! -x "$$binary" ] || [ -n "$$(find Cargo.toml Cargo.lock src -newer "$$binary")" ]; then \
	  $(CARGO) build --locked --profile demo --no-default-features --bin buildlock || exit; \
	  binary="$(TARGET)/demo/buildlock"; \
	fi; \
	tests/demo.sh "$$binary"

completions:                   ## regenerate completions/
	@mkdir -p completions
	+$(CARGO) run --quiet --locked -- completions bash >completions/buildlock.bash
	+$(CARGO) run --quiet --locked -- completions zsh >completions/_buildlock
	+$(CARGO) run --quiet --locked -- completions fish >completions/buildlock.fish
	+$(CARGO) run --quiet --locked -- completions elvish >completions/buildlock.elv
	+$(CARGO) run --quiet --locked -- completions powershell >completions/_buildlock.ps1

man:                           ## regenerate man/
	@mkdir -p man
	+$(CARGO) run --quiet --locked -- man >man/buildlock.1
	+for name in $(subcommands); do \
	  $(CARGO) run --quiet --locked -- man $$name >man/buildlock-$$name.1 || exit; \
	done

clean:                         ## remove what was built
	$(CARGO) clean

help:                          ## print this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 14
