# link.sh - the ways in which programs take the header in: each is built, run, and computes the
# golden hash. See unit.c and main.c.
. tests/embed/common

best=$(flags_of "$(best_level)")
here='-I. -Itests/embed -O0' # compiling takes longest by far

# build NAME FLAGS... SOURCES...: compiles a program with the compiler $c; it prints nothing, nor
# does the program, whose hash is then the golden one.
build() {
  program=$work/$1
  title="$c: $1"
  shift
  rm -f "$program"
  $c $WARNINGS -Werror $here "$@" $LDFLAGS -o "$program" >"$work/messages" 2>&1
  grep -v '^lto-wrapper:' "$work/messages" >"$work/output"
  if [ -x "$program" ] && [ ! -s "$work/output" ]; then
    quiet "$title" $RUN "$program"
  else
    echo "$c $*" >>"$work/output"
    fail "$title" "$work/output"
  fi
}

# text NAME LINE...: makes a unit that includes the header as those lines do, and then computes.
text() {
  unit=$work/$1.c
  shift
  printf '%s\n' "$@" '#include "golden.h"' 'uint64_t golden_first(void);' \
    'uint64_t golden_first(void) { return golden_hash(); }' >"$unit"
}

define='#define LONGATTN_IMPLEMENTATION'
undefine='#undef LONGATTN_IMPLEMENTATION'
include='#include "longattn.h"'
main=tests/embed/main.c
first='-DGOLDEN=golden_first tests/embed/unit.c'

# orders NAMES NAMES: the first in strict C11, the others with what systems add to it.
orders() {
  text once "$define" "$include"
  text twice "$define" "$include" "$include"
  text late "$include" "$define" "$include"
  text early "$define" "$include" "$undefine" "$include"
  text thrice "$include" "$define" "$include" "$undefine" "$include"
  text poisoned '#include "poison.h"' "$define" "$include"
  text renamed-poisoned '#include "poison.h"' "$define" '#include "third party/attention-v1.h"'
  text static '#define LONGATTN_STATIC 1' "$define" "$include"
  text renamed "$define" '#include "third party/attention-v1.h"'
  text systems '#define _GNU_SOURCE' '#include <link.h>' '#include <math.h>' \
    '#include <complex.h>' "$define" "$include"
  text static-renamed-poisoned '#define LONGATTN_STATIC 1' '#include "poison.h"' "$define" \
    '#include "third party/attention-v1.h"'
  text thrice-systems-late "$include" "$define" "$include" "$undefine" "$include" \
    '#include <link.h>' '#include <math.h>' '#include <complex.h>' '#include <stdio.h>'
  text systems-late "$define" "$include" '#include <link.h>' '#include <math.h>' \
    '#include <complex.h>' '#include <stdio.h>' '#include <unistd.h>'
  mkdir -p "$work/third party"
  cp longattn.h "$work/third party/attention-v1.h"
  for order in $1; do
    build $order -std=c11 -I"$work" $best "$work/$order.c" $main
  done
  for order in $2; do
    build $order -std=gnu11 $best "$work/$order.c" $main
  done
}

# C++: the unit in C++, and a C++ caller of a C unit.
cplusplus() {
  echo 'int x;' >"$work/plain.cpp"
  $c -x c++ -fsyntax-only "$work/plain.cpp" 2>/dev/null || return
  sed 's/^uint64_t golden/extern "C" &/' "$work/once.c" >"$work/unit.cpp"
  $c -std=c++17 $WARNINGS $here $best -c "$work/unit.cpp" -o "$work/cpp.o" 2>"$work/output"
  build c++ -std=c11 $main "$work/cpp.o" -lstdc++
  $c -std=c11 $here $best -c -x c - -o "$work/c.o" <<'END' 2>>"$work/output"
#define LONGATTN_IMPLEMENTATION
#include "longattn.h"
END
  text caller "$include"
  sed 's/^uint64_t golden/extern "C" &/' "$work/caller.c" >"$work/caller.cpp"
  $c -std=c++17 $here -c "$work/caller.cpp" -o "$work/caller.o" 2>>"$work/output"
  build c++-caller -std=c11 $main "$work/caller.o" "$work/c.o" -lstdc++
}

# Several levels in one program: the lowest under a prefix of its own, the best as it is, and in the
# full tier under a prefix too.
levels() {
  lowest=${LEVELS%% *}
  highest=$(best_level)
  set -- "first $lowest -DLONGATTN_PREFIX=lowest_" "second $highest"
  [ "$TIER" = quick ] || set -- "$@" "third $highest -DLONGATTN_PREFIX=best_"
  units=
  object=
  for unit; do
    set -- $unit
    which=$1
    level=$2
    shift 2
    [ "$TIER:$which" = quick:second ] && set -- "$@" -DLATTN_ELSEWHERE
    $c -std=c11 $WARNINGS $here $(flags_of "$level") "$@" -DGOLDEN=golden_"$which" \
      -c tests/embed/unit.c -o "$work/$which.o" 2>>"$work/output"
    [ "$TIER:$which" = quick:second ] && object=$BUILD/$level/longattn.o # the tests' own
    units="$units $object $work/$which.o -D$(echo "$which" | tr a-z A-Z)"
  done
  build levels-in-one-program -std=c11 $main $units
}

# A shared library, and what it exports.
shared() {
  [ -n "$LDFLAGS" ] && return # static programs
  library=$work/libshared.so
  $c -std=c11 $best -shared -fPIC -fvisibility=hidden -DLONGATTN_IMPLEMENTATION \
    -DLONGATTN_SHARED=1 -x c longattn.h -o "$library" 2>"$work/output"
  build shared-library -std=c11 -DLATTN_ELSEWHERE $first $main -L"$work" -lshared \
    -Wl,-rpath,"$work"
  nm -D --defined-only "$library" 2>&1 | awk '{ print $3 }' | grep -v '^lattn_' >"$work/exported"
  quiet "$c: the shared library exports lattn_* only" cat "$work/exported"
}

# Other compiler flags that users have. With -ffast-math it works or says why not.
flags() {
  set -- "-O3 -std=gnu11 -ffp-contract=fast" "-O1 ${OPENMP:--fno-openmp}"
  if [ "$c" = "$CC" ]; then
    set -- "$@" "-O2 -flto" "-Os -fshort-enums -funsigned-char" "-O1 -fwrapv -fno-strict-aliasing"
  fi
  for flags in "$@"; do
    accepts $c $flags $LDFLAGS || continue
    build "flags$(echo "$flags" | tr -d ' ')" -std=c11 $best $flags $first $main
  done
  for flags in -ffast-math -Ofast; do
    if $c $here $best -O2 $flags -c -DGOLDEN=golden_first tests/embed/unit.c -o "$work/fast.o" \
      2>"$work/refused"; then
      build "fast$flags" $best -O2 $flags $first $main
    else
      quiet "$c: $flags is refused in our words" grep -q 'longattn.h:.*-ffast-math' \
        "$work/refused"
    fi
  done
}

# Private macros are gone after the include; so are our pragmas.
leaks() {
  printf '#include <stddef.h>\n#include <stdint.h>\n' >"$work/without.c"
  for intrinsics in immintrin arm_neon arm_acle; do
    echo "#include <$intrinsics.h>" | $c $best -E -x c - >/dev/null 2>&1 &&
      echo "#include <$intrinsics.h>" >>"$work/without.c"
  done
  printf '#define LONGATTN_IMPLEMENTATION\n#include "longattn.h"\n' | cat "$work/without.c" - \
    >"$work/with.c"
  for side in with without; do
    $c $here $best -dM -E "$work/$side.c" | awk '{ sub(/\(.*/, "", $2); print $2 }' | sort -u \
      >"$work/$side"
  done
  comm -13 "$work/without" "$work/with" |
    grep -vE '^(LATTN_[A-Z0-9_]*[A-Z0-9]|LONGATTN_[A-Z0-9_]*)$' >"$work/leaked"
  quiet "$c: macros that the header leaves behind" cat "$work/leaked"
  cat >"$work/host.c" <<'END'
float host(float a, float b, float c);
float host(float a, float b, float c) { return a * b + c; }
unsigned char host_warning(int x);
unsigned char host_warning(int x) { return x; }
END
  for side in with without; do
    cat "$work/$side.c" "$work/host.c" >"$work/host-$side.c"
    $c $here -O2 $best -std=gnu11 -Wconversion -DLONGATTN_STATIC=1 -S \
      "$work/host-$side.c" -o "$work/host-$side.s" 2>"$work/host-$side.warnings"
    quiet "$c: host code gets its warnings $side the header" \
      grep -q 'host.*onversion' "$work/host-$side.warnings"
    sed -n '/^_*host:/,/ret/p' "$work/host-$side.s" | grep -oiE '^[[:blank:]]+[a-z][a-z0-9]+' \
      >"$work/host-$side.code"
  done
  quiet "$c: the header changes the code of its host" diff "$work/host-without.code" \
    "$work/host-with.code"
}

for c in $(compilers); do
  if [ "$TIER" = quick ]; then
    orders static-renamed-poisoned thrice-systems-late
  elif [ "$c" = "$CC" ]; then
    orders 'once twice late early thrice poisoned static renamed' 'systems systems-late'
  else
    orders 'late poisoned static' systems
  fi
  levels
  leaks
  [ "$TIER" = quick ] && continue
  cplusplus
  shared
  flags
done
finish
