# peers.sh - fetches the libraries of the benchmark's rivals into a folder: sh bench/peers.sh FOLDER
# SPDX-License-Identifier: MIT. Copyright 2026 the longattn authors.
#
# From npm the packaged builds of ggml and ONNX Runtime for x86-64 Linux, fixed versions; OpenBLAS
# from Debian's or Ubuntu's archive. Nothing is installed, and no script of a package runs. What
# cannot be fetched is named, and reported as missing by the benchmark.
set -u
ggml=@node-llama-cpp/linux-x64@3.22.1
onnxruntime=onnxruntime-node@1.30.0
openblas='libopenblas0-pthread libgfortran5 libquadmath0'

mkdir -p "$1" && folder=$(cd "$1" && pwd) || exit 1
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
cd "$work" || exit 1

have() { command -v "$1" >/dev/null; }

# The files of an npm package, into package/.
npm_package() {
  have npm || { echo "no npm to fetch $1 with" >&2; return 1; }
  rm -rf package
  npm pack --silent "$1" >/dev/null 2>npm.log && tar -xzf ./*.tgz && rm ./*.tgz && return
  cat npm.log >&2
  return 1
}

if npm_package $ggml; then cp package/bins/linux-x64/libggml-*.so "$folder"; else failed=ggml; fi
if npm_package $onnxruntime; then
  cp package/bin/napi-v6/linux/x64/libonnxruntime.so.1 "$folder"
else
  failed="${failed:-} onnxruntime"
fi
if have apt-get && have dpkg-deb && apt-get -qq download $openblas 2>apt.log; then
  for package in ./*.deb; do dpkg-deb -x "$package" debian; done
  # .so.0 of OpenBLAS is the library, of the others a link to it.
  find debian -name 'libopenblas.so.0' -o -name 'libgfortran.so.5' -o -name 'libquadmath.so.0' |
    while read -r library; do cp -L "$library" "$folder"; done
else
  [ -f apt.log ] && cat apt.log >&2
  failed="${failed:-} openblas"
fi
ls "$folder"
[ -z "${failed:-}" ] || { echo "not fetched:" $failed >&2; exit 1; }
