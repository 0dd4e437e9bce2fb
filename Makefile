# longattn is one header: there is nothing to build before you use it. `make help` lists what can be
# made of the rest of this folder. All that is made lies in build/.

# ---- what you may set, as in: make CC=clang CFLAGS=-O3 test ------------------------------------

BUILD ?= build
STD ?= -std=c11
CFLAGS ?= -O2
CPPFLAGS ?=
LDFLAGS ?=
WARNINGS ?= -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wsign-conversion -Wcast-qual -Wundef \
  -Wdouble-promotion
# -Werror makes warnings errors (.ci/run does).
WERROR ?=
# What runs programs for another machine: qemu-aarch64-static.
RUN ?=
# TIER=quick: a twentieth of the random tests, in 20 seconds.
TIER ?= full
# Of tests/embed: full takes every compiler, level and flag in all combinations (.ci/run does).
EMBED_TIER ?= quick
PREFIX ?= /usr/local
INCLUDEDIR ?= $(PREFIX)/include
LIBDIR ?= $(PREFIX)/lib
DESTDIR ?=
CLANG_FORMAT ?= clang-format
# A machine with only gcc or only clang need not have a cc.
ifeq ($(origin CC),default)
  CC := $(firstword $(foreach c,cc gcc clang,$(shell command -v $(c))) cc)
endif
# Two jobs at a time, if not told otherwise.
ifeq (,$(filter -j% --jobserver%,$(MAKEFLAGS)))
  MAKEFLAGS += -j2
endif

# ---- the machine -------------------------------------------------------------------------------
# A level is a name, the flags that give it, and a folder in build/. Those that this machine can run
# are tested. .ci/run tests two more: "strict" (no fused multiply-add: emulated, the same bits) and
# "nofma" (not emulated: within tolerance). Level "bf16" has dot products of bfloat16, for the tests
# of what may be inexact (BF16= : not).

FLAGS_scalar := -DLONGATTN_SIMD=LONGATTN_SIMD_SCALAR
FLAGS_nofma := $(FLAGS_scalar)
FLAGS_strict := $(FLAGS_scalar) -DLONGATTN_STRICT=1

target := $(shell $(CC) -dumpmachine)
cpu := $(shell (grep -m1 '^flags' /proc/cpuinfo || \
  sysctl -n machdep.cpu.features machdep.cpu.leaf7_features | tr A-Z a-z) 2>/dev/null)
comma := ,
has = $(if $(filter-out $(cpu),$(1)),,yes)

ifneq (,$(filter x86_64% amd64%,$(target)))
  FLAGS_scalar += -mfma
  FLAGS_avx2 := -mavx2 -mfma -mf16c
  FLAGS_avx512 := $(FLAGS_avx2) -mavx512f -mavx512cd -mavx512bw -mavx512dq -mavx512vl
  FLAGS_bf16 := $(FLAGS_avx512) -mavx512bf16
  LEVELS ?= $(if $(call has,fma),scalar,strict) $(if $(call has,avx2 fma f16c),avx2) \
    $(if $(call has,avx512f avx512cd avx512bw avx512dq avx512vl),avx512)
  BF16 ?= $(if $(call has,avx512_bf16),$(if $(filter avx512,$(LEVELS)),bf16))
else ifneq (,$(filter aarch64% arm64%,$(target)))
  FLAGS_bf16 := -march=armv8.2-a+bf16
  LEVELS ?= scalar neon
else
  LEVELS ?= strict
endif
levels := $(strip $(LEVELS))

# A file that says how much stack each function takes, for tests/embed/symbols.sh: clang has it from
# version 13 on.
STACK_USAGE := $(if $(shell $(CC) -fstack-usage -E -x c /dev/null 2>/dev/null),-fstack-usage)

# For programs that are not tests: the best of this machine, and OpenMP where the compiler has it.
accepts = $(shell echo 'int main(void) { return 0; }' | \
  $(CC) $(1) -x c - -o /dev/null 2>/dev/null && echo yes)
ifndef NATIVE
  NATIVE := $(if $(call accepts,-march=native),-march=native)
endif
ifndef OPENMP
  OPENMP := $(if $(call accepts,-fopenmp -include omp.h),-fopenmp -DLONGATTN_OPENMP=1)
endif

# ---- run: the demo and the other programs of examples/lm ---------------------------------------

compile = $(CC) $(CPPFLAGS) $(STD) $(CFLAGS) $(WARNINGS) $(WERROR) -I. -MMD -MP
link = $(LDFLAGS) -pthread -lm

# Each file with a main is a program; the other files are parts of all of them.
lm_mains := $(if $(wildcard examples/lm/*.c),$(shell grep -l '^int main' examples/lm/*.c))
lm_parts := $(filter-out $(lm_mains),$(wildcard examples/lm/*.c))
lm_programs := $(lm_mains:examples/lm/%.c=$(BUILD)/lm/%)

run: $(BUILD)/lm/demo ## the demo: a small language model, four cache policies, a fixed state
	OMP_WAIT_POLICY=passive $(RUN) $<

heads: $(BUILD)/lm/heads ## measures again which heads of the demo's model retrieve
	OMP_WAIT_POLICY=passive $(RUN) $<

profile: $(BUILD)/lm/profile ## scores of its heads by the profiler; full heads chosen by each score
	OMP_WAIT_POLICY=passive $(RUN) $<

speculate: $(BUILD)/lm/speculate ## speculative decoding: the same text, how much faster
	OMP_WAIT_POLICY=passive $(RUN) $<

resume: $(BUILD)/lm/resume ## saves a conversation, and goes on in a second process
	$(RUN) $< $(BUILD)/conversation
	$(RUN) $< --resume $(BUILD)/conversation

storage: $(BUILD)/lm/storage ## perplexity, needles and bytes by storage type of the caches
	OMP_WAIT_POLICY=passive $(RUN) $<

errors: $(BUILD)/$(lastword $(levels))/quant ## the error of int8 and int4 caches, outliers or not
	@$(RUN) $< --table

soak: $(BUILD)/lm/soak ## ten million tokens through sinks and a window: SOAK_TOKENS=100000
	OMP_WAIT_POLICY=passive $(RUN) $<

$(lm_programs): $(BUILD)/lm/%: $(BUILD)/lm/%.o $(lm_parts:examples/lm/%.c=$(BUILD)/lm/%.o)
	$(CC) $(CFLAGS) $(OPENMP) $^ -o $@ $(link)

# -O3: the matrix products of the model are plain C.
$(BUILD)/lm/%.o: examples/lm/%.c $(BUILD)/flags
	@mkdir -p $(@D)
	$(compile) -O3 $(NATIVE) $(OPENMP) -c $< -o $@

# ---- test --------------------------------------------------------------------------------------
# tests/*.c: each a program, built for every level. tests/embed/*.sh: scripts that use the header in
# all the ways that users do. All write a log that ends with "N passed, N failed".

TESTS ?= $(basename $(notdir $(wildcard tests/*.c)))
EMBED ?= $(basename $(notdir $(wildcard tests/embed/*.sh)))
programs := $(foreach l,$(BF16),$(patsubst %,$(BUILD)/$(l)/%,$(filter attend inexact,$(TESTS)))) \
  $(foreach l,$(levels),$(TESTS:%=$(BUILD)/$(l)/%))
# What takes longest first: two jobs then end together.
logs := $(EMBED:%=$(BUILD)/embed/%.log) $(programs:%=%.log)
export BUILD CC CFLAGS LDFLAGS RUN TIER WARNINGS NATIVE OPENMP
export LEVELS := $(levels)
export $(foreach l,$(levels) strict,FLAGS_$(l))

test: $(logs) ## all tests on every SIMD level of this machine; TIER=quick: in 20 seconds
	@tail -qn1 $(logs) | awk '{ passed += $$1; failed += $$3 } \
	  END { printf "%d passed, %d failed\n", passed, failed; exit failed > 0 }'

# A test is compiled once, as the first level has it, and linked with the implementation of each.
# Only the tests of private functions (lattn_..._) contain it themselves (as static: what they do
# not use is left out).
inside := $(if $(TESTS),$(shell grep -lE 'lattn_[a-z0-9_]+_[^a-z0-9_]' $(TESTS:%=tests/%.c)))
inside := $(inside:tests/%.c=%)
first := $(firstword $(levels))

define level_rules
$(BUILD)/$(1)/longattn.o: longattn.h $(BUILD)/flags
	@mkdir -p $$(@D)
	$(compile) $(FLAGS_$(1)) $(STACK_USAGE) -DLONGATTN_IMPLEMENTATION -x c -c $$< -o $$@

$(inside:%=$(BUILD)/$(1)/%): $(BUILD)/$(1)/%: tests/%.c $(BUILD)/flags
	@mkdir -p $$(@D)
	$(compile) $(FLAGS_$(1)) -DLONGATTN_STATIC=1 -MT $$@ -MF $$@.d $$< -o $$@ $(link)

$(addprefix $(BUILD)/$(1)/,$(filter-out $(inside),$(TESTS))): $(BUILD)/$(1)/%: \
  $(BUILD)/$(first)/%.o $(BUILD)/$(1)/longattn.o
	$(CC) $(CFLAGS) $(BUILD)/$(first)/$$*.o $(BUILD)/$(1)/longattn.o -o $$@ $(link)
endef
$(foreach l,$(levels) $(BF16),$(eval $(call level_rules,$(l))))

$(TESTS:%=$(BUILD)/$(first)/%.o): $(BUILD)/$(first)/%.o: tests/%.c $(BUILD)/flags
	@mkdir -p $(@D)
	$(compile) $(FLAGS_$(first)) -DLONGATTN_IMPLEMENTED_ -c $< -o $@

$(BUILD)/bf16/%: export INEXACT = 1
$(programs:%=%.log): %.log: % FORCE
	@sh tests/record $@ $(RUN) $<

# Their quick tier takes the objects of the tests.
$(BUILD)/embed/%.log: tests/embed/%.sh $(levels:%=$(BUILD)/%/longattn.o) FORCE
	@mkdir -p $(@D)
	@TIER=$(EMBED_TIER) sh tests/record $@ sh $<

# ---- fuzz --------------------------------------------------------------------------------------
# tests/fuzz/*.c with libFuzzer: needs clang. What it finds goes into build/fuzz; what breaks is
# build/fuzz/TARGET-crash-...: `build/LEVEL/fuzz_replay FILE` runs it alone. `make test` replays the
# corpus with any compiler.

FUZZ_CC ?= clang
FUZZ_SECONDS ?= 60
# (With "undefined" too, clang 14 compiles for ten minutes; fuzz_replay runs with it in .ci/run.)
FUZZ_FLAGS ?= -O1 -g1 -fsanitize=fuzzer,address -fno-sanitize-recover=all
fuzz_targets := $(basename $(notdir $(wildcard tests/fuzz/*.c)))
fuzz_logs := $(fuzz_targets:%=$(BUILD)/fuzz/%.log)

fuzz: $(fuzz_logs) ## libFuzzer on tests/fuzz/*.c, a minute each; FUZZ_SECONDS=600: longer
	@tail -qn1 $(fuzz_logs) | awk '{ passed += $$1; failed += $$3 } \
	  END { printf "%d passed, %d failed\n", passed, failed; exit failed > 0 }'

$(fuzz_targets:%=$(BUILD)/fuzz/%): $(BUILD)/fuzz/%: tests/fuzz/%.c $(BUILD)/flags
	@mkdir -p $(@D)
	$(FUZZ_CC) $(CPPFLAGS) $(STD) $(FUZZ_FLAGS) $(WARNINGS) $(WERROR) -I. -Itests -MMD -MP \
	  $(NATIVE) -DFUZZ_TARGET -MT $@ -MF $@.d $< -o $@ $(link)

$(fuzz_logs): $(BUILD)/fuzz/%.log: $(BUILD)/fuzz/% FORCE
	@mkdir -p $(BUILD)/fuzz/found-$*
	@sh tests/fuzz/run $@ $< -max_total_time=$(FUZZ_SECONDS) -max_len=1500 -timeout=20 \
	  -rss_limit_mb=1024 -artifact_prefix=$(BUILD)/fuzz/$*- $(BUILD)/fuzz/found-$* \
	  tests/fuzz/corpus/$*

# ---- examples, bench ---------------------------------------------------------------------------

examples := $(patsubst examples/%.c,$(BUILD)/examples/%,$(wildcard examples/*.c))

examples: $(examples) $(lm_programs) ## the programs of examples/, into build/examples and build/lm
	@ls $^

$(examples): $(BUILD)/examples/%: examples/%.c $(BUILD)/flags
	@mkdir -p $(@D)
	$(compile) $(NATIVE) -MT $@ -MF $@.d $< -o $@ $(link)

bench: $(BUILD)/bench/bench ## speed and memory against this machine's limits; JSON=1, ONLY=decode
	@$(RUN) $<

capacity: $(BUILD)/bench/bench ## a million tokens of Llama-3-8B's caches: 18 GiB, some minutes
	@LAYERS=32 ONLY=capacity $(RUN) $<

recall: $(BUILD)/bench/bench ## what so many bytes of state remember; draws build/bench/recall.svg
	@RECALL=1 ONLY=recall $(RUN) $<

peers: ## fetches the rivals that bench compares with, from npm and apt, into build/peers
	sh bench/peers.sh $(BUILD)/peers

# bench/ours.c and limits.c by each of these compilers, for each level with vectors (the widest
# first), under names of their own: bench/builds.c compares them.
bench_ccs := $(foreach c,gcc clang,$(if $(filter $(firstword $(subst -, ,$(target)))-%,\
  $(shell $(c) -dumpmachine 2>/dev/null)),$(c)))
bench_levels := $(filter avx512 neon,$(levels)) $(filter avx2,$(levels))
bench_builds := $(foreach c,$(bench_ccs),$(foreach l,$(bench_levels),$(c)_$(l)))

# All that the two files export:
bench_names := bench_ours_attention bench_ours_cache bench_ours_attend bench_ours_set_inexact \
  bench_limit_flops bench_limit_read bench_limit_update bench_limits_free

define build_rule
$(BUILD)/bench/%_$(1)_$(2).o: bench/%.c $(BUILD)/flags
	@mkdir -p $$(@D)
	$(1) $(CPPFLAGS) $(STD) $(CFLAGS) $(WARNINGS) $(WERROR) -I. -MMD -MP $(FLAGS_$(2)) \
	  -DLONGATTN_PREFIX=lattn_$(1)_$(2)_ $(foreach n,$(bench_names),-D$(n)=$(n)_$(1)_$(2)) \
	  -c $$< -o $$@
endef
$(foreach c,$(bench_ccs),$(foreach l,$(bench_levels),$(eval $(call build_rule,$(c),$(l)))))

$(BUILD)/bench/builds.o: CPPFLAGS += \
  "-DBENCH_BUILDS=$(foreach b,$(bench_builds),BUILD($(subst _,$(comma),$(b))))"

$(BUILD)/bench/bench: $(patsubst bench/%.c,$(BUILD)/bench/%.o,$(wildcard bench/*.c)) \
  $(foreach b,$(bench_builds),$(BUILD)/bench/ours_$(b).o $(BUILD)/bench/limits_$(b).o)
	$(CC) $(CFLAGS) $(OPENMP) $^ -o $@ $(link)

$(BUILD)/bench/%.o: bench/%.c $(BUILD)/flags
	@mkdir -p $(@D)
	$(compile) $(NATIVE) $(OPENMP) -c $< -o $@

# ---- install -----------------------------------------------------------------------------------

version := $(shell awk '/define LATTN_VERSION_(MAJOR|MINOR|PATCH) / { v = v "." $$3 } \
  END { print substr(v, 2) }' longattn.h)

define pkgconfig
prefix=$(PREFIX)
includedir=$(INCLUDEDIR)

Name: longattn
Description: Exact and long-context attention on a CPU, in one C11 header
Version: $(version)
Cflags: -I$${includedir}
endef
export pkgconfig

version:
	@echo $(version)

install: ## the header and longattn.pc, under DESTDIR and PREFIX
	install -d "$(DESTDIR)$(INCLUDEDIR)" "$(DESTDIR)$(LIBDIR)/pkgconfig"
	install -m 644 longattn.h "$(DESTDIR)$(INCLUDEDIR)/longattn.h"
	printf '%s\n' "$$pkgconfig" >"$(DESTDIR)$(LIBDIR)/pkgconfig/longattn.pc"

uninstall: ## takes both away again
	rm -f "$(DESTDIR)$(INCLUDEDIR)/longattn.h" "$(DESTDIR)$(LIBDIR)/pkgconfig/longattn.pc"

# ---- the rest ----------------------------------------------------------------------------------

clean: ## removes build/
	rm -rf $(BUILD)

format: ## clang-format on the examples, tests and benchmarks
	$(CLANG_FORMAT) -i $(wildcard examples/*.c examples/lm/*.[ch] tests/*.[ch] tests/embed/*.[ch] \
	  tests/fuzz/*.[ch] bench/*.[ch])

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile

# What was built with other flags is built again.
$(BUILD)/flags: FORCE
	@mkdir -p $(@D)
	@echo '$(compile) $(LDFLAGS) $(NATIVE) $(OPENMP) $(bench_builds) $(bench_names)' >$@.new
	@if cmp -s $@ $@.new; then rm $@.new; else mv $@.new $@; fi

FORCE:
.PHONY: run heads profile speculate resume storage errors soak test fuzz examples bench capacity \
  recall peers version install uninstall clean format help FORCE
.SECONDARY:
-include $(wildcard $(BUILD)/*/*.d)
