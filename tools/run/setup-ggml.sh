#!/bin/sh
# Builds ggml and libllama, which pkv-run is linked with, and installs headers and libraries.
#
#   tools/run/setup-ggml.sh PREFIX [JOBS]       then: meson setup build -Dggml_prefix=PREFIX
#
# The sources come with the pip package llama-cpp-python (its sdist carries llama.cpp); of them only the
# libraries are built, as llama.cpp builds them by default, with the instructions of this machine.
# Nothing of it is part of this tree. Needs cmake, a C++ compiler and python3 with pip.
set -eu
version=0.3.36
prefix=${1:?usage: tools/run/setup-ggml.sh PREFIX [JOBS]}
jobs=${2:-$(nproc)}
mkdir -p "$prefix"
prefix=$(cd "$prefix" && pwd)
[ -e "$prefix/lib/libllama.so" ] && { echo "$prefix: libllama is already there"; exit 0; }

work=$prefix/build
mkdir -p "$work"
sdist=$work/llama_cpp_python-$version.tar.gz
if [ ! -f "$sdist" ]; then
    python3 -m venv "$work/venv"
    "$work/venv/bin/pip" download --quiet --disable-pip-version-check --no-deps \
        --no-binary llama-cpp-python --dest "$work" "llama-cpp-python==$version"
fi
tar -xzf "$sdist" -C "$work"
cmake -S "$work/llama_cpp_python-$version/vendor/llama.cpp" -B "$work/cmake" \
    -DCMAKE_BUILD_TYPE=Release -DCMAKE_INSTALL_PREFIX="$prefix" -DCMAKE_INSTALL_LIBDIR=lib \
    -DCMAKE_INSTALL_RPATH='$ORIGIN' -DBUILD_SHARED_LIBS=ON -DGGML_NATIVE=ON -DLLAMA_CURL=OFF \
    -DLLAMA_BUILD_COMMON=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_TOOLS=OFF \
    -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_SERVER=OFF -DLLAMA_BUILD_APP=OFF >"$work/cmake.log"
cmake --build "$work/cmake" --parallel "$jobs" >"$work/build.log" 2>&1 ||
    { tail -n 40 "$work/build.log"; exit 1; }
cmake --install "$work/cmake" >"$work/install.log"
echo "$prefix: ggml and libllama are ready"
