#!/bin/sh
# Installs what pagedkv needs on Debian 12 or later (or a derivative) from the distribution's packages.
#
#   tools/setup-debian.sh            what building and running needs
#   tools/setup-debian.sh --checks   also what the full test run needs: clang with its sanitizer and
#                                    fuzzer runtimes, the AArch64 cross compiler with its libraries,
#                                    qemu-user, and the Python tests' environment
set -eu

build='gcc g++ meson ninja-build pkg-config libjemalloc-dev libxxhash-dev nettle-dev
       libarchive-dev libjansson-dev libyajl-dev libcairo2-dev xz-utils'
checks='check cmake clang clang-format llvm python3 python3-venv python3-pip git
        qemu-user gcc-aarch64-linux-gnu libc6-dev-arm64-cross man-db'
# Debian's libjemalloc-dev cannot be installed for two architectures at once; the cross-built tests run
# on the libc allocator.
cross='libxxhash-dev:arm64 nettle-dev:arm64 check:arm64'

with_checks=0
for arg in "$@"; do
    case $arg in
    --checks) with_checks=1 ;;
    -h | --help) sed -n '2,8s/^# \{0,1\}//p' "$0"; exit 0 ;;
    *) echo "setup-debian.sh: unknown option $arg" >&2; exit 2 ;;
    esac
done

command -v apt-get >/dev/null || {
    echo "setup-debian.sh: this script needs apt-get; elsewhere install the equivalents of:" >&2
    echo "  $build" >&2
    exit 1
}
if [ "$(id -u)" = 0 ]; then as_root=; else as_root=sudo; fi
export DEBIAN_FRONTEND=noninteractive

missing() { # prints the packages of the list that are not installed
    for package in "$@"; do
        dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' ||
            echo "$package"
    done
}

wanted=$(missing $build)
if [ $with_checks = 1 ]; then
    wanted="$wanted $(missing $checks)"
    if [ "$(dpkg --print-architecture)" = amd64 ]; then
        $as_root dpkg --add-architecture arm64
        wanted="$wanted $(missing $cross)"
    fi
fi
wanted=$(echo $wanted)
if [ -n "$wanted" ]; then
    $as_root apt-get update -q
    $as_root apt-get install -y -q --no-install-recommends $wanted
fi
if [ $with_checks = 1 ] && ! echo 'int main(void){return 0;}' |
    clang -fsanitize=address,fuzzer-no-link -x c - -o /dev/null 2>/dev/null; then
    version=$(clang -dumpversion | cut -d. -f1) # the sanitizer runtime of the default clang
    $as_root apt-get update -q
    $as_root apt-get install -y -q --no-install-recommends "libclang-rt-$version-dev"
fi
echo "setup-debian.sh: everything is installed"
