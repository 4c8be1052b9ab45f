#!/bin/sh
# Builds a host program in every way that docs/abi.md names: against the *installed* library, shared and
# static, through pkg-config, with jemalloc, and through CMake where it is present; and with pagedkv as
# a Meson subproject. Looks at what comes along. The library is built where neither Check nor what the
# tools need is installed.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
top=$(cd "$here/../.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

quietly() { # quietly COMMAND...: output only on failure
    "$@" >"$work/log" 2>&1 || { tail -n 40 "$work/log"; echo "failed: $*"; exit 1; }
}
fail() { echo "$*"; exit 1; }

# What README's package line installs, and nothing else that pkg-config or CMake could find.
mkdir "$work/few"
for name in libxxhash nettle hogweed; do
    file=$(pkg-config --variable=pcfiledir $name)/$name.pc
    [ ! -f "$file" ] || cp "$file" "$work/few/"
done
bare() { PKG_CONFIG_LIBDIR=$work/few PKG_CONFIG_PATH='' CMAKE=/nonexistent "$@"; }

quietly bare meson setup "$work/build" "$top" --prefix="$work/prefix" --libdir=lib --buildtype=release
quietly ninja -C "$work/build" install
[ ! -e "$work/build/tests/unit" ] || [ -z "$(find "$work/build/tests" -type f -perm -u+x)" ] ||
    fail "tests were built without Check"
if bare meson setup "$work/wanted" "$top" -Dtests=enabled >"$work/log" 2>&1; then
    fail "-Dtests=enabled was content without Check"
fi
export PKG_CONFIG_PATH="$work/prefix/lib/pkgconfig"

lean() { # lean PROGRAM: nothing comes along that the library does not need
    readelf -d "$1" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p' | while read -r name; do
        case $name in
        libpagedkv.so.* | libc.so.* | libm.so.* | libxxhash.so.* | libnettle.so.* | ld-linux* | \
            libpthread.so.* | libgcc_s.so.*) ;;
        *) fail "$1 needs $name" ;;
        esac
    done
    ! nm "$1" | grep -E ' [TU] (mallocx|_ZN)' || fail "$1 has jemalloc or C++ in it"
}

try() { # try NAME FLAGS...: builds and runs the consumer
    name=$1
    shift
    cc -std=c11 -Wall -Wextra -Werror "$here/consumer.c" -o "$work/$name" "$@" -lm
    echo "$name: $(LD_LIBRARY_PATH="$work/prefix/lib" "$work/$name")"
}

# Word splitting of the flags is wanted.
# shellcheck disable=SC2046
{
    try shared $(pkg-config --cflags --libs pagedkv)
    lean "$work/shared"
    try shared-jemalloc $(pkg-config --cflags --libs pagedkv-jemalloc)
    try static $(pkg-config --cflags pagedkv) "$work/prefix/lib/libpagedkv.a" \
        $(pkg-config --static --libs-only-l pagedkv | sed 's/-lpagedkv//')
    lean "$work/static"
}
if command -v cmake >/dev/null; then
    quietly cmake -S "$here" -B "$work/cmake" -DCMAKE_PREFIX_PATH="$work/prefix"
    quietly cmake --build "$work/cmake"
    echo "cmake: $("$work/cmake/consumer")"
    echo "cmake, static: $("$work/cmake/consumer_static")"
    readelf -d "$work/cmake/consumer_static" | grep -q libpagedkv && fail "pagedkv::static is shared"
    lean "$work/cmake/consumer_static"
fi

# As a subproject, with everything installed that the tools and tests could want. The rows that take
# longest to compile change nothing here.
unset PKG_CONFIG_PATH
mkdir -p "$work/host/subprojects"
cp "$here/subproject/meson.build" "$here/consumer.c" "$work/host/"
ln -s "$top" "$work/host/subprojects/pagedkv"
for kind in both static shared; do
    quietly meson setup "$work/host-$kind" "$work/host" -Dpagedkv:default_library=$kind \
        -Dpagedkv:avx512=false
    quietly ninja -C "$work/host-$kind" host
    echo "subproject, $kind: $("$work/host-$kind/host")"
    lean "$work/host-$kind/host"
    ! meson introspect --targets "$work/host-$kind" | grep -qE '"name": "(pkv-sim|test_)' ||
        fail "a subproject builds tools or tests"
done
