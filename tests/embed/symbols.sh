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

# object TITLE PREFIX FLAGS...: compiles, and reads the symbols: name, type, ...
object() {
  title=$1
  prefix=$2
  shift 2
  if ! $c -std=c11 $WARNINGS -Werror "$@" -fno-pic -DLONGATTN_IMPLEMENTATION -x c -c longattn.h \
    -o "$work/object.o" 2>"$work/output"; then
    fail "$title: does not compile" "$work/output"
    return
  fi
  $($c -print-prog-name=nm) -P "$work/object.o" >"$work/symbols" 2>&1
  awk '$2 ~ /^[VvWwuDdBbCGgSs]$/' "$work/symbols" >"$work/bad"
  quiet "$title: weak symbols or writable data" cat "$work/bad"
  awk '$2 == "U" { print $1 }' "$work/symbols" | grep -vxE "$allowed" >"$work/bad"
  quiet "$title: needs a function" cat "$work/bad"
  awk '$2 ~ /^[A-Z]$/ && $2 != "U" { print $1 }' "$work/symbols" | sort >"$work/external"
  sed "s/^lattn_/$prefix/" "$work/declared" | sort >"$work/wanted"
  quiet "$title: the external functions are those declared" diff "$work/wanted" "$work/external"
}

# The same object, as the only library of a program.
freestanding() {
  if $c -std=c11 -O1 -ffreestanding -nostdlib -static -fno-stack-protector -fno-pie -I. \
    -Itests/embed tests/embed/freestanding.c "$work/object.o" -o "$work/freestanding" -lgcc \
    2>"$work/output"; then
    quiet "$1: freestanding" $RUN "$work/freestanding"
  else
    fail "$1: freestanding" "$work/output"
  fi
}

for c in $(compilers); do
  for level in $LEVELS; do
    flags=$(flags_of $level)
    object "$c $level -O2" lattn_ $flags -O2 -ffreestanding -fno-stack-protector -fstack-usage
    # The promise is 24 KiB of scratch on the stack; a frame holds that and little more.
    awk -F '\t' '$2 > 24 * 1024 { print $1 ": " $2 " bytes of stack" }' "$work"/*.su >"$work/big"
    quiet "$c $level: frames beyond 24 KiB" cat "$work/big"
    freestanding "$c $level"
    [ "$TIER" = quick ] || object "$c $level -O0" my_ $flags -O0 -DLONGATTN_PREFIX=my_
  done
done
finish
