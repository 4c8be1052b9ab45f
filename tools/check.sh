#!/bin/sh
# Installs what the tests need, builds pagedkv in every supported way and runs all tests.
#
#   tools/check.sh                 everything (about 20 minutes on two cores)
#   tools/check.sh PHASE...        only these phases: static gcc clang asan tsan aarch64 install python
#
# Each phase builds into its own build-check-PHASE/. The last line is "N passed, N failed"; the exit
# status is 0 only if nothing failed.
set -u
cd "$(dirname "$0")/.."

passed=0
failed=0
failures=

note() { # note NAME STATUS: counts one check
    if [ "$2" = 0 ]; then
        passed=$((passed + 1))
        echo "ok    $1"
    else
        failed=$((failed + 1))
        failures="$failures $1"
        echo "FAIL  $1"
    fi
}

expect() { # expect NAME COMMAND...: one check from a command's exit status, output only on failure
    name=$1
    shift
    log=$(mktemp)
    if "$@" >"$log" 2>&1; then status=0; else status=1; tail -n 60 "$log"; fi
    rm -f "$log"
    note "$name" $status
}

count() { # count LABEL LOG: adds the Ok and Fail figures of a `meson test` summary
    ok=$(sed -n 's/^Ok: *\([0-9]*\).*/\1/p' "$1" | tail -n 1)
    bad=$(sed -n 's/^\(Fail\|Timeout\|Unexpected Pass\): *\([0-9]*\).*/\2/p' "$1" |
        awk '{ n += $1 } END { print n + 0 }')
    [ -n "$ok" ] || { note "$1-summary" 1; return; }
    passed=$((passed + ok))
    failed=$((failed + bad))
    [ "$bad" = 0 ] || failures="$failures $2"
    echo "$2: $ok passed, $bad failed"
}

suite() { # suite PHASE SETUP_ARGS -- TEST_ARGS: configures, builds, runs one configuration
    phase=$1
    shift
    setup=
    while [ $# -gt 0 ] && [ "$1" != -- ]; do setup="$setup $1"; shift; done
    [ $# = 0 ] || shift
    dir=build-check-$phase
    echo
    echo "== $phase"
    if [ ! -f "$dir/build.ninja" ]; then
        # shellcheck disable=SC2086
        meson setup "$dir" $setup >"$dir.log" 2>&1 || { tail -n 30 "$dir.log"; note "$phase-setup" 1; return; }
    fi
    ninja -C "$dir" >"$dir.log" 2>&1 || { tail -n 60 "$dir.log"; note "$phase-build" 1; return; }
    if grep -q 'warning:' "$dir.log"; then grep 'warning:' "$dir.log" | head; note "$phase-warnings" 1
    else note "$phase-builds-without-warnings" 0; fi
    log=$dir/check-summary.txt
    meson test -C "$dir" --no-rebuild --print-errorlogs "$@" >"$log" 2>&1
    grep -E '^ *[0-9]+/[0-9]+ .*(FAIL|TIMEOUT|ERROR)' "$log"
    if grep -qE '^(Fail|Timeout): *[1-9]' "$log"; then tail -n 120 "$log"; fi
    count "$log" "$phase"
}

phase_static() {
    echo
    echo "== static"
    expect "layer-order" python3 tests/layers.py
    expect "headers-self-contained" tests/abi/headers.sh
}
# Assignments in front of `suite` hold for that call only. Emulation and sanitizers are slow, so
# Check's own time limits are stretched there like meson's.
phase_gcc() { CC=gcc CXX=g++ suite gcc --buildtype=release -Dwerror=true; }
phase_clang() {
    CC=clang CXX=clang++ suite clang --buildtype=release -Dwerror=true -- --suite kernel --suite unit
}
phase_asan() {
    CC=clang CXX=clang++ CK_TIMEOUT_MULTIPLIER=10 \
        ASAN_OPTIONS=detect_stack_use_after_return=1:allocator_may_return_null=1 \
        UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 \
        suite asan --buildtype=debugoptimized -Ddebug_checks=true -Dfuzzers=true \
        -Db_sanitize=address,undefined -Db_lundef=false -- --timeout-multiplier 4 --no-suite abi
    for target in trace attention prefix world; do # new inputs for a moment; longer runs: docs/testing.md
        scratch=$(mktemp -d)
        expect "fuzz-$target" build-check-asan/tests/fuzz/fuzz_$target -max_total_time=15 \
            -timeout=30 "$scratch" "tests/fuzz/corpus/$target"
        rm -rf "$scratch"
    done
}
phase_tsan() {
    CC=clang CXX=clang++ CK_TIMEOUT_MULTIPLIER=10 TSAN_OPTIONS=halt_on_error=1:second_deadlock_stack=1 \
        suite tsan --buildtype=debugoptimized -Ddebug_checks=true \
        -Db_sanitize=thread -Db_lundef=false -- --timeout-multiplier 6 --suite stress
}
phase_aarch64() {
    [ "$(uname -m)" = x86_64 ] || return 0
    # -O2: GCC 12's cross compiler dies with an internal error on one test at -O3.
    # qemu-user ignores MADV_DONTFORK, which one test checks: PKV_TEST_EMULATED skips it.
    CK_TIMEOUT_MULTIPLIER=20 PKV_TEST_EMULATED=1 \
        suite aarch64 --cross-file tools/cross/aarch64-debian.ini -Dtools=false -Doptimization=2 -- \
        --timeout-multiplier 6 --suite kernel --suite unit
}
phase_install() {
    echo
    echo "== install"
    expect "consumer-of-installed-library" tests/consumer/run.sh
}
phase_python() {
    echo
    echo "== python"
    log=$(mktemp)
    sh tools/python/ci.sh >"$log" 2>&1
    status=$?
    tail -n 25 "$log"
    ok=$(grep -Eo '[0-9]+ passed' "$log" | tail -n 1 | cut -d' ' -f1)
    bad=$(grep -Eo '[0-9]+ failed' "$log" | tail -n 1 | cut -d' ' -f1)
    passed=$((passed + ${ok:-0}))
    failed=$((failed + ${bad:-0}))
    if [ $status != 0 ] && [ "${bad:-0}" = 0 ]; then note "python" 1; fi
    [ "${bad:-0}" = 0 ] || failures="$failures python"
    rm -f "$log"
}

case ${1:-} in
-h | --help) sed -n '2,9s/^# \{0,1\}//p' "$0"; exit 0 ;;
esac
tools/setup-debian.sh --checks || exit 1
[ $# -gt 0 ] || set -- static gcc clang asan tsan aarch64 install python
for phase in "$@"; do
    case $phase in
    static | gcc | clang | asan | tsan | aarch64 | install | python)
        start=$(date +%s)
        "phase_$phase"
        echo "($phase took $(($(date +%s) - start)) s)"
        ;;
    *) echo "check.sh: unknown phase $phase" >&2; exit 2 ;;
    esac
done

echo
[ -z "$failures" ] || echo "failed:$failures"
echo "$passed passed, $failed failed"
[ $failed = 0 ] && [ $passed -gt 0 ]
