# warnings.sh - no compiler, language or switch gets a warning out of the header.
# Most warnings need no code: those that do come in symbols.sh, for each level.
. tests/embed/common

implementation=$work/implementation.c
printf '#define LONGATTN_IMPLEMENTATION\n#include "longattn.h"\n' >"$implementation"
printf '#include "longattn.h"\n' >"$work/declarations.c"

# check COMPILER LANGUAGE FLAGS...: the language is c or c++.
check() {
  compiler=$1
  language=$2
  shift 2
  quiet "$compiler $language $*" $compiler -x "$language" $WARNINGS -Werror -I. "$@"
}

best=$(flags_of "$(best_level)")
for c in $(compilers); do
  for level in $LEVELS; do
    check "$c" c -std=gnu11 $(flags_of $level) -fsyntax-only "$implementation"
  done
  echo 'int x;' >"$work/plain.cpp"
  standards=c:-std=c11
  if $c -x c++ -fsyntax-only "$work/plain.cpp" 2>/dev/null; then
    standards="$standards c++:-std=c++17 c++:-std=gnu++17"
    for level in $LEVELS; do
      check "$c" c++ -std=c++17 $(flags_of $level) -fsyntax-only "$implementation"
    done
  fi
  [ "$TIER" = quick ] && continue
  if [ "$c" = "$CC" ]; then
    check "$c" c -std=gnu11 $best -O3 -c "$implementation" -o "$work/object.o"
    [ "$standards" = c:-std=c11 ] ||
      check "$c" c++ -std=c++17 $best -O2 -c "$implementation" -o "$work/object.o"
  fi
  for standard in $standards; do
    language=${standard%%:*}
    standard=${standard#*:}
    check "$c" "$language" "$standard" -fsyntax-only "$work/declarations.c"
    for switch in -DLONGATTN_PREFIX=my_ -DLONGATTN_STATIC=1 -DLONGATTN_STATIC=0 \
      -DLONGATTN_SHARED=1 -DLONGATTN_SHARED=0 -DLONGATTN_OPENMP=0 "$OPENMP"; do
      check "$c" "$language" "$standard" $best $switch -fsyntax-only "$implementation"
    done
    check "$c" "$language" "$standard" ${FLAGS_strict:--DLONGATTN_STRICT=1} -fsyntax-only \
      "$implementation"
  done
  if [ -z "$RUN" ] && accepts "$c" -m32 -include stdlib.h; then # 32 bits
    check "$c" c -std=c11 -m32 -msse2 -mfpmath=sse ${FLAGS_strict:-} -fsyntax-only "$implementation"
  fi
done
finish
