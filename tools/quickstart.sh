#!/bin/sh
# First look at pagedkv on a fresh Debian machine: installs what is needed, builds into
# build-quickstart/, then runs the memory simulation and a short attention bench on built-in input.
set -eu
cd "$(dirname "$0")/.."
dir=build-quickstart

say() { printf '\n== %s\n' "$*"; }

say "install dependencies"
tools/setup-debian.sh
say "build ($dir)"
[ -f $dir/build.ninja ] || meson setup $dir -Dtools=enabled -Dtests=disabled --buildtype=release >/dev/null
ninja -C $dir | tail -n 1

run() { printf '\n$ %s\n' "$*"; "$@"; }
say "how much memory does paging save? (built-in workload)"
run $dir/tools/sim/pkv-sim waste
say "how fast is paged attention on this machine?"
run $dir/tools/bench/pkv-bench attention --quick
say "done: see README.md for what the figures mean, $dir/tools/sim/pkv-sim --help for more"
