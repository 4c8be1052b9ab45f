#!/bin/sh
# Installs pagedkv into a scratch prefix and builds a host program against the *installed* library:
# shared and static through pkg-config, with jemalloc, and through CMake where it is present.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
top=$(cd "$here/../.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

meson setup "$work/build" "$top" --prefix="$work/prefix" --libdir=lib --buildtype=release \
    -Dtests=false -Dtools=false >"$work/log" 2>&1 || { cat "$work/log"; exit 1; }
ninja -C "$work/build" install >"$work/log" 2>&1 || { tail -n 40 "$work/log"; exit 1; }
export PKG_CONFIG_PATH="$work/prefix/lib/pkgconfig"

try() { # try NAME FLAGS...: builds and runs the consumer
    name=$1
    shift
    # shellcheck disable=SC2086
    cc -std=c11 -Wall -Wextra -Werror "$here/consumer.c" -o "$work/$name" "$@" -lm
    echo "$name: $(LD_LIBRARY_PATH="$work/prefix/lib" "$work/$name")"
}

# Word splitting of the flags is wanted.
# shellcheck disable=SC2046
{
    try shared $(pkg-config --cflags --libs pagedkv)
    try shared-jemalloc $(pkg-config --cflags --libs pagedkv-jemalloc)
    try static $(pkg-config --cflags pagedkv) "$work/prefix/lib/libpagedkv.a" \
        $(pkg-config --static --libs-only-l pagedkv | sed 's/-lpagedkv//')
}
if command -v cmake >/dev/null; then
    cmake -S "$here" -B "$work/cmake" -DCMAKE_PREFIX_PATH="$work/prefix" >"$work/log" 2>&1 &&
        cmake --build "$work/cmake" >>"$work/log" 2>&1 || { cat "$work/log"; exit 1; }
    echo "cmake: $("$work/cmake/consumer")"
fi
