# examples.sh - programs that users copy are built by the line that they show, and print what they
# say.
. tests/embed/common

# says NAME FILE COMMAND...: the program prints the first line of FILE.
says() {
  title=$1
  wanted=$2
  shift 2
  "$@" 2>&1 | head -n 1 >"$work/printed"
  quiet "$title" diff "$wanted" "$work/printed"
}

# The first program of the header (a C file in an indented comment), and what it "prints".
sed -n '/TEN LINES/,/^   [A-Za-z]/p' longattn.h | sed -n 's/^       //p' >"$work/ten.c"
sed -n 's/.*TEN LINES.*prints \([0-9. ]*\)\.$/\1/p' longattn.h >"$work/ten.txt"
quiet 'ten lines: compile' $CC -std=c11 -O1 $NATIVE $WARNINGS -I. "$work/ten.c" $LDFLAGS \
  -o "$work/ten"
says 'ten lines: print' "$work/ten.txt" $RUN "$work/ten"

# The first program of the README: it says what it prints anywhere in its text.
if [ -f README.md ]; then
  awk '/^```c$/ { inside = 1; text = ""; next }
    /^```/ { if (inside && text ~ /int main/) { printf "%s", text; exit } inside = 0 }
    inside { text = text $0 "\n" }' README.md >"$work/readme.c"
  quiet 'README: compile' $CC -std=c11 -O1 $NATIVE $WARNINGS -I. "$work/readme.c" $LDFLAGS \
    -o "$work/readme"
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
  command=$(sed -n '1s/^\/\* cc \(.*\) && .*/\1/p' "$source" | sed "s/-march=native/$NATIVE/")
  sed -n '1,/\*\//p' "$source" | sed 's/^ \* //; s/ *\*\/$//' | tr '\n' ' ' |
    sed 's/.*Prints: //; s/ *$//' >"$work/wanted"
  echo >>"$work/wanted"
  compiler=$(command -v "${CC%% *}")${CC#"${CC%% *}"}
  (cd "$work/examples" && $compiler $command $WARNINGS $LDFLAGS) >"$work/output" 2>&1
  if [ -s "$work/output" ] || [ ! -x "$work/examples/$title" ]; then
    fail "$title: cc $command" "$work/output"
  else
    says "$title" "$work/wanted" $RUN "$work/examples/$title"
  fi
done
quiet 'the first example has 30 lines at most' [ "$(wc -l <examples/01-attention.c)" -le 30 ]
finish
