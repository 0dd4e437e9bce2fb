# examples.sh - programs that users copy are built by the line that they show, and print what they
# say. The quick tier leaves the implementation, which takes longest to compile by far, out of them,
# and links it as the tests do.
. tests/embed/common
flags=
object=
if [ "$TIER" = quick ]; then
  flags="-DLONGATTN_IMPLEMENTED_ $CFLAGS"
  object=$(realpath "$BUILD/$(best_level)/longattn.o")
fi

# says NAME FILE COMMAND...: the program prints the one line of FILE, on any number of lines.
says() {
  title=$1
  wanted=$2
  shift 2
  "$@" 2>&1 | tr '\n' ' ' | sed 's/ *$//' >"$work/printed"
  echo >>"$work/printed"
  quiet "$title" diff "$wanted" "$work/printed"
}

# The first program of the header (a C file in an indented comment), and what it "prints".
sed -n '/TEN LINES/,/^   [A-Za-z]/p' longattn.h | sed -n 's/^       //p' >"$work/ten.c"
sed -n 's/.*TEN LINES.*prints \([0-9. ]*\)\.$/\1/p' longattn.h >"$work/ten.txt"
quiet 'ten lines: compile' $CC -std=c11 -O1 $NATIVE $WARNINGS $flags -I. "$work/ten.c" $object \
  $LDFLAGS -o "$work/ten"
says 'ten lines: print' "$work/ten.txt" $RUN "$work/ten"

# The first program of the README: it says what it prints anywhere in its text.
if [ -f README.md ]; then
  awk '/^```c$/ { inside = 1; text = ""; next }
    /^```/ { if (inside && text ~ /int main/) { printf "%s", text; exit } inside = 0 }
    inside { text = text $0 "\n" }' README.md >"$work/readme.c"
  quiet 'README: compile' $CC -std=c11 -O1 $NATIVE $WARNINGS $flags -I. "$work/readme.c" \
    $object $LDFLAGS -o "$work/readme"
  $RUN "$work/readme" >"$work/readme.txt" 2>&1
  quiet 'README: what its program prints' grep -qF "$(cat "$work/readme.txt")" README.md
fi

# examples/NN-name.c: the first line is the command that builds and runs it in its folder; the
# comment ends with "Prints: ..." on any number of lines.
mkdir -p "$work/examples"
cp longattn.h "$work"
for source in examples/[0-9]*.c; do
  title=$(basename "$source" .c)
  cp "$source" "$work/examples"
  command=$(sed -n '1s/^\/\* cc \(.*\) && .*/\1/p' "$source" |
    sed "s/-march=native/$NATIVE/")
  sed -n '1,/\*\//p' "$source" | sed 's/^ \* //; s/ *\*\/$//' | tr '\n' ' ' |
    sed 's/.*Prints: //; s/ *$//' >"$work/wanted"
  echo >>"$work/wanted"
  compiler=$(command -v "${CC%% *}")${CC#"${CC%% *}"}
  (cd "$work/examples" && $compiler $command $WARNINGS $flags $object $LDFLAGS) >"$work/output" 2>&1
  if [ -s "$work/output" ] || [ ! -x "$work/examples/$title" ]; then
    fail "$title: cc $command" "$work/output"
  else
    says "$title" "$work/wanted" $RUN "$work/examples/$title"
  fi
done
quiet 'the first example has 30 lines at most' [ "$(wc -l <examples/01-attention.c)" -le 30 ]

# examples/lm/speculate.c and resume.c: the comment has the command that builds them in their
# folder. (The engine, which all share, is compiled once.) On an emulator they take minutes.
if [ -n "$RUN" ]; then
  finish
  exit
fi
lm=$work/examples/lm
mkdir -p "$lm"
cp examples/lm/*.[ch] "$lm"
quiet 'lm: the engine' $CC -std=c11 $flags -O3 $NATIVE $WARNINGS -I. -c examples/lm/llama.c \
  -o "$lm/llama.o"
for title in speculate resume; do
  command=$(sed -n '/cc -O3/,/\*\//p' "$lm/$title.c" | tr '\n' ' ' |
    sed 's/.*\(cc -O3 \)/\1/; s/ *\*\/.*//; s/llama\.c/llama.o/' |
    sed "s/^cc //; s/-march=native/$NATIVE/")
  (cd "$lm" && $compiler $command $WARNINGS $flags $object $LDFLAGS) >"$work/output" 2>&1
  if [ -s "$work/output" ] || [ ! -x "$lm/$title" ]; then
    fail "lm: cc $command" "$work/output"
  else
    pass
  fi
done

# Speculation: the text and the logits of plain decode, under three policies.
$RUN "$lm/speculate" examples/lm 1 1 >"$work/speculate.txt" 2>&1
quiet 'speculate: exit status' [ $? -eq 0 ]
quiet 'speculate: three times the same bits' [ "$(grep -c ' yes$' "$work/speculate.txt")" -eq 3 ]

# A conversation: the second process says what the first one said after it had saved.
$RUN "$lm/resume" "$work/conversation" >"$work/resume.txt" 2>&1
quiet 'resume: exit status of the first run' [ $? -eq 0 ]
$RUN "$lm/resume" --resume "$work/conversation" >"$work/resumed.txt" 2>&1
quiet 'resume: exit status of the second run' [ $? -eq 0 ]
grep -v '^\[' "$work/resume.txt" >"$work/never_stopped"
grep -v '^\[' "$work/resumed.txt" >"$work/restarted"
quiet 'resume: something was said' [ "$(wc -l <"$work/never_stopped")" -gt 6 ]
quiet 'resume: the text of one that never stopped' diff "$work/never_stopped" "$work/restarted"
quiet 'resume: the text of one that reads again' [ "$(grep -c 'the same bits: yes' \
  "$work/resumed.txt")" -eq 3 ]

# refuses NAME TEXT: the second run fails on build/.../conversation, and says why.
refuses() {
  $RUN "$lm/resume" --resume "$work/conversation" >"$work/resumed.txt" 2>&1
  quiet "resume: $1: exit status" [ $? -eq 1 ]
  quiet "resume: $1: what it says" grep -q "$2" "$work/resumed.txt"
}
echo 'another number' | dd of="$work/conversation" bs=1 seek=3000 conv=notrunc 2>"$work/output"
refuses 'a damaged file' 'or damaged'
head -c 5000 "$work/conversation" >"$work/half"
mv "$work/half" "$work/conversation"
refuses 'half a file' 'function failed'
finish
