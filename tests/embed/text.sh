# text.sh - rules of the house that a machine can check in the text of the header and of the rest.
. tests/embed/common

header=longattn.h
sources=$(ls $header examples/*.c examples/lm/*.[ch] tests/*.[ch] tests/embed/*.[ch] \
  tests/fuzz/*.[ch] bench/*.[ch] 2>/dev/null)

# Prints the header from the banner of one section to that of another, without either.
sections() { sed -n "/^\/\* ==== §$1 /,/^\/\* ==== §$2 /p" $header | sed '1d;$d'; }

# Instruction sets have their names in §2 and §3 only. In the documentation they are words.
instruction_sets='_mm[0-9]*_|__m(128|256|512)|__mmask'
instruction_sets="$instruction_sets|[^a-z_]v[a-z]+q?_(n_)?[fsu](8|16|32|64)|float32x4"
instruction_sets="$instruction_sets|__(AVX|SSE|FMA|F16C|ARM|aarch64|x86_64|i386|arm|wasm|riscv)"
instruction_sets="$instruction_sets|immintrin|arm_neon|LONGATTN_SIMD|LATTN_ISA"
{
  sections 1 2
  sed -n '/^\/\* ==== §4 /,$p' $header
} | grep -nE "$instruction_sets" | grep -v '#undef' >"$work/instruction_sets"
quiet "instruction sets outside of sections 2 and 3 of $header" cat "$work/instruction_sets"

# The contents in §0 are the banners, each in full or up to its colon.
grep -oE '^/\* ==== §[0-9]+ [^=]*' $header | sed 's/^[^§]*§//; s/ *$//; /^0 /d' >"$work/banners"
sed -n '/^ *CONTENTS/,/\*\//p' $header | sed '1d; s/\*\///; s/§/\n/g' | grep '^[0-9]' |
  sed 's/ *$//' | sort -n >"$work/contents"
awk 'NR == FNR { contents[NR] = $0; n = NR; next }
  { c = contents[FNR]; sub(/:.*/, "", $0); sub(/:.*/, "", c)
    if (c != $0) print "§" $0 " is in the contents as §" contents[FNR] }
  END { if (FNR != n) print FNR " banners, but " n " lines in the contents" }' \
  "$work/contents" "$work/banners" >"$work/different"
quiet "the contents of $header are its banners" cat "$work/different"

# Includes: two before the implementation; after it those of intrinsics, and string.h for compilers
# without __builtin_memcpy. (The indented ones are in the documentation.)
sed '/^ \{0,4\}# *if.*LONGATTN_IMPLEMENTATION/,$d' $header | grep '^# *include' >"$work/includes"
printf '#include <stddef.h>\n#include <stdint.h>\n' >"$work/two"
quiet 'the declarations include stddef.h and stdint.h only' diff "$work/two" "$work/includes"
sed '1,/^ \{0,4\}# *if.*LONGATTN_IMPLEMENTATION/d' $header | grep -E '^ {0,4}# *include' |
  grep -vE '<(immintrin|arm_neon|arm_acle|intrin|omp|string)\.h>' >"$work/libraries"
quiet 'the implementation includes no library' cat "$work/libraries"

# Every switch that the header asks for is in its table of switches.
grep -oE '^ *# *(if|ifdef|ifndef|elif) .*' $header | grep -oE 'LONGATTN_[A-Z0-9_]+' | sort -u |
  grep -vE '^LONGATTN_(H_INCLUDED|IMPLEMENTATION|IMPLEMENTED_|SIMD_[A-Z0-9]+)$' >"$work/switches"
while read -r switch; do
  quiet "$switch is in the table of switches" grep -qE "^ *\| $switch +\|" $header
done <"$work/switches"

# Widths, lengths, tabs, blanks at the ends of lines.
for file in $sources Makefile .ci/run tests/embed/*.sh README.md; do
  [ -f "$file" ] || continue
  sed 's/§/S/g' "$file" | awk -v f="$file" 'length > 100 { print f ":" NR ": " length " columns" }'
done | grep -v '^README' >"$work/wide"
quiet 'lines of more than 100 columns' cat "$work/wide"
grep -nE '[[:blank:]]$' $sources >"$work/blanks"
quiet 'blanks at the end of a line' cat "$work/blanks"
grep -n "$(printf '\t')" $sources >"$work/tabs"
quiet 'tabs in C' cat "$work/tabs"
awk 'FNR == 1 { start = 0 }
  /^[A-Za-z_]/ && !/[;=]/ && !/^(typedef|struct|enum|union|extern) / { start = FNR }
  /^}/ { n = FNR - start + 1
    if (start && n > 60) print FILENAME ":" start ": " n " lines"
    start = 0 }
' $sources >"$work/long"
quiet 'functions of more than 60 lines' cat "$work/long"

# No path of the machine that it was written on.
grep -nE '/(work|root|home)/' $sources Makefile README.md .ci/run 2>/dev/null >"$work/paths"
quiet 'paths of some machine' cat "$work/paths"

# The licence ends the header, so that a copied file is complete.
tail -n 25 $header >"$work/end"
quiet 'the licence is at the end of the header' grep -q 'WITHOUT WARRANTY OF ANY KIND' "$work/end"
finish
