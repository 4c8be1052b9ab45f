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

# What the tests of some suites need, as ninja targets: targets DIRECTORY SUITE...
targets() {
    python3 - "$@" <<'EOF'
import json, os, subprocess, sys
directory, *suites = sys.argv[1:]
def ask(what):
    return json.loads(subprocess.check_output(["meson", "introspect", directory, what]))
files = {target["id"]: target["filename"] for target in ask("--targets")}
needed = set()
for test in ask("--tests"):
    if any(suite.split(":")[-1] in suites for suite in test["suite"]):
        for target in test["depends"]:
            needed.update(files.get(target, []))
print(*sorted(os.path.relpath(file, directory) for file in needed))
EOF
}

compile() { # compile PHASE "SUITES" SETUP_ARGS...: configures and builds what these suites need ('' = all)
    dir=build-check-$1
    suites=$2
    shift 2
    [ -f "$dir/build.ninja" ] || meson setup "$dir" "$@" || return 1
    # shellcheck disable=SC2046,SC2086
    ninja -C "$dir" $([ -z "$suites" ] || targets "$dir" $suites)
}

suite() { # suite PHASE TEST_ARGS...: judges the phase's build and runs its tests
    phase=$1
    shift
    dir=build-check-$phase
    if [ "$built" != 0 ]; then tail -n 60 "$dir.log"; note "$phase-build" 1; return; fi
    if grep -q 'warning:' "$dir.log"; then grep 'warning:' "$dir.log" | head; note "$phase-warnings" 1
    else note "$phase-builds-without-warnings" 0; fi
    log=$dir/check-summary.txt
    meson test -C "$dir" --no-rebuild --print-errorlogs "$@" >"$log" 2>&1
    grep -E '^ *[0-9]+/[0-9]+ .*(FAIL|TIMEOUT|ERROR)' "$log"
    if grep -qE '^(Fail|Timeout): *[1-9]' "$log"; then tail -n 120 "$log"; fi
    count "$log" "$phase"
}

# Nothing is left out for want of a library.
all="-Dtools=enabled -Dtests=enabled"
# Reports need lines; whole debug information makes instrumented kernel rows half as slow again to compile.
lines=-gline-tables-only

# A phase is build_PHASE, which runs beside the tests of the phases before it, and test_PHASE.
# Emulation and sanitizers are slow, so Check's own time limits are stretched there like meson's.
build_static() { :; }
test_static() {
    expect "layer-order" python3 tests/layers.py
    expect "nothing-unused" python3 tests/unused.py
    expect "no-circles" python3 tests/circles.py
    expect "nothing-twice" python3 tests/alike.py
    expect "headers-self-contained" tests/abi/headers.sh
}

build_gcc() { CC=gcc CXX=g++ compile gcc '' --buildtype=release -Dwerror=true $all; }
test_gcc() { suite gcc; }

build_clang() {
    CC=clang CXX=clang++ compile clang 'kernel unit' --buildtype=release -Dwerror=true $all
}
test_clang() { suite clang --suite kernel --suite unit; }

build_asan() {
    CC=clang CXX=clang++ compile asan '' --buildtype=debugoptimized $all -Ddebug_checks=true \
        -Dfuzzers=true -Davx512=false -Db_sanitize=address,undefined -Db_lundef=false \
        -Dc_args=$lines
}
fuzz() { # new inputs for a moment; longer runs: docs/testing.md
    scratch=$(mktemp -d)
    build-check-asan/tests/fuzz/fuzz_"$1" -max_total_time=15 -timeout=30 "$scratch" \
        "tests/fuzz/corpus/$1"
    status=$?
    rm -rf "$scratch"
    return $status
}
test_asan() {
    export CK_TIMEOUT_MULTIPLIER=10
    export ASAN_OPTIONS=detect_stack_use_after_return=1:allocator_may_return_null=1
    export UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1
    suite asan --timeout-multiplier 4 --no-suite abi
    [ "$built" = 0 ] || return
    for target in attention world; do # two at a time
        other=trace
        [ $target = attention ] || other=prefix
        fuzz $other >build-check-asan/fuzz-$other.log 2>&1 &
        expect "fuzz-$target" fuzz $target
        if wait $!; then note "fuzz-$other" 0
        else tail -n 60 build-check-asan/fuzz-$other.log; note "fuzz-$other" 1; fi
    done
}

build_tsan() {
    CC=clang CXX=clang++ compile tsan stress --buildtype=debugoptimized $all -Ddebug_checks=true \
        -Davx512=false -Db_sanitize=thread -Db_lundef=false -Dc_args=$lines
}
test_tsan() {
    export CK_TIMEOUT_MULTIPLIER=10 TSAN_OPTIONS=halt_on_error=1:second_deadlock_stack=1
    suite tsan --timeout-multiplier 6 --suite stress
}

# -O2: GCC 12's cross compiler dies with an internal error on one test at -O3.
build_aarch64() {
    [ "$(uname -m)" = x86_64 ] || return 0
    compile aarch64 'kernel unit' --cross-file tools/ci/aarch64-debian.ini -Dtools=disabled -Dtests=enabled \
        -Doptimization=2
}
test_aarch64() {
    [ "$(uname -m)" = x86_64 ] || return 0
    # qemu-user ignores MADV_DONTFORK, which one test checks: PKV_TEST_EMULATED skips it.
    export CK_TIMEOUT_MULTIPLIER=20 PKV_TEST_EMULATED=1
    suite aarch64 --timeout-multiplier 6 --suite kernel --suite unit
}

build_install() { :; }
test_install() { expect "consumer-of-installed-library" tests/consumer/run.sh; }

build_python() { :; }
test_python() {
    log=$(mktemp)
    # the library that the first phase has built, if it was asked for
    library=$PWD/build-check-gcc/lib/libpagedkv.so
    [ ! -f "$library" ] || export PAGEDKV_LIBRARY="$library"
    sh tools/ci/python.sh >"$log" 2>&1
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
[ $# -gt 0 ] || set -- static gcc asan aarch64 clang tsan install python
for phase in "$@"; do
    case $phase in
    static | gcc | clang | asan | tsan | aarch64 | install | python) ;;
    *) echo "check.sh: unknown phase $phase" >&2; exit 2 ;;
    esac
done

# All builds, one after another and only with the time that tests leave; each says so when it is done.
done=$(mktemp -u)
mkfifo "$done" || exit 1
(
    for phase in "$@"; do
        ("build_$phase") >"build-check-$phase.log" 2>&1
        echo $?
    done
) >"$done" &
renice -n 5 -p $! >/dev/null
exec 3<"$done"
rm -f "$done"

for phase in "$@"; do
    echo
    echo "== $phase"
    read -r built <&3 || built=1
    start=$(date +%s)
    # In this shell, for the sake of the counters; what a phase exports is taken back.
    "test_$phase"
    unset CK_TIMEOUT_MULTIPLIER PKV_TEST_EMULATED ASAN_OPTIONS UBSAN_OPTIONS TSAN_OPTIONS
    echo "($phase took $(($(date +%s) - start)) s after its build)"
done

echo
[ -z "$failures" ] || echo "failed:$failures"
echo "$passed passed, $failed failed"
[ $failed = 0 ] && [ $passed -gt 0 ]
