# symbols.sh - what an object with the implementation contains, and a program without a C library.
. tests/embed/common

tr '\n' ' ' <longattn.h | grep -oE 'LATTN_API [a-z][^;(]*\(' | grep -oE 'lattn_[a-z0-9_]+\($' |
  tr -d '(' | sort -u >"$work/declared"
# What compilers call by themselves; the runtime of targets that lack an instruction.
allowed='mem(cpy|set|move|cmp)'
case $($CC -dumpmachine) in
  x86_64* | aarch64*) ;;
  *) allowed="$allowed|__\w*(div|mod|mul|lsl|lsr|asr|cmp|l2f|f2l|l2d|d2l|float|fix)\w*" ;;
esac

# names CLASSES: of the symbols of these classes (nm's) in $work/longattn.o. Constants that
# hold addresses lie in .data, where the code may be at any address, but are written by no code.
names() {
  $($c -print-prog-name=nm) -f sysv "$work/longattn.o" 2>&1 |
    awk -F '|' -v classes="$1" '{ gsub(/ /, "") }
      NF == 7 && $3 ~ "^[" classes "]$" && $7 !~ /^\.data\.rel\.ro/ { print $1 }'
}

# The functions that it needs.
needs() { names U | grep -vxE "$allowed"; }

# compile TITLE FLAGS...: into $work/longattn.o.
compile() {
  title=$1
  shift
  $c -std=c11 $WARNINGS -Werror "$@" -fno-pic -DLONGATTN_IMPLEMENTATION -x c -c longattn.h \
    -o "$work/longattn.o" 2>"$work/output" && return
  fail "$title: does not compile" "$work/output"
  return 1
}

# check TITLE PREFIX: reads the object's symbols.
check() {
  names VvWwuDdBbCGgSs >"$work/bad"
  quiet "$1: weak symbols or writable data" cat "$work/bad"
  needs >"$work/bad"
  quiet "$1: needs a function" cat "$work/bad"
  names A-TV-Z | sort >"$work/external"
  sed "s/^lattn_/$2/" "$work/declared" | sort >"$work/wanted"
  quiet "$1: the external functions are those declared" diff "$work/wanted" "$work/external"
}

# optimised LEVEL: an object like that of the tests; in the quick tier, that one itself, where
# neither CFLAGS nor the compiler by itself add calls to it.
optimised() {
  [ "$TIER" = quick ] && cp "$BUILD/$1/longattn.o" "$BUILD/$1/longattn.su" "$work" 2>/dev/null &&
    [ -z "$(needs)" ] && return
  compile "$c $1 -O2" $(flags_of $1) -O2 -ffreestanding -fno-stack-protector -fstack-usage
}

# The same object, as the only library of a program.
freestanding() {
  if $c -std=c11 -O1 -ffreestanding -nostdlib -static -fno-stack-protector -fno-pie -I. \
    -Itests/embed tests/embed/freestanding.c "$work/longattn.o" -o "$work/freestanding" -lgcc \
    2>"$work/output"; then
    quiet "$1: freestanding" $RUN "$work/freestanding"
  else
    fail "$1: freestanding" "$work/output"
  fi
}

for c in $(compilers); do
  for level in $LEVELS; do
    if optimised $level; then
      check "$c $level -O2" lattn_
      # The promise is 24 KiB of scratch on the stack; a frame holds that and little more.
      awk -F '\t' '$2 > 24 * 1024 { print $1 ": " $2 " bytes of stack" }' "$work/longattn.su" \
        >"$work/big"
      quiet "$c $level: frames beyond 24 KiB" cat "$work/big"
      freestanding "$c $level"
    fi
    [ "$TIER" = quick ] && continue
    compile "$c $level -O0" $(flags_of $level) -O0 -DLONGATTN_PREFIX=my_ &&
      check "$c $level -O0" my_
  done
done
finish
