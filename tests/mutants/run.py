#!/usr/bin/env python3
"""Mutation test: does `unit` + `property` notice small faults in lib?

    tests/mutants/run.py [--only NAME]... [--list] [--keep] [--jobs N]

Applies each mutant of mutants.py to a copy of the tree, rebuilds what it touches and runs the tests
until one fails: those about that part of the library, then the others, the quick ones first. Prints
how each mutant ended and the kill rate; the exit status is 0 if at least 95 % were killed, 1 if
fewer, 2 if a mutant no longer applies or the tests fail without any. Not part of the check command:
about 15 minutes on two idle cores.
"""
import argparse
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

from mutants import MUTANTS

ROOT = pathlib.Path(__file__).resolve().parents[2]
TREES = ["include", "lib", "tests", "tools", "meson.build", "meson_options.txt", "LICENSE", "README.md"]

# (program, seconds it may take), the quick ones first.
TESTS = [
    ("unit/test_evict_edges", 30), ("unit/test_pool", 30), ("unit/test_magazine", 30),
    ("unit/test_attach", 30), ("unit/test_bad_input", 30), ("unit/test_batch", 30),
    ("unit/test_safe_state", 30), ("unit/test_publish", 30), ("unit/test_stats", 30),
    ("unit/test_pressure", 30), ("unit/test_mem", 30), ("unit/test_base", 30), ("unit/test_os", 30),
    ("unit/test_late_tokens", 30), ("unit/test_prefix_tree", 30), ("property/test_evict_sharing", 60),
    ("unit/test_evict", 30), ("unit/test_prefix", 30), ("unit/test_attention_errors", 30),
    ("unit/test_nodes", 30), ("property/test_model", 60), ("property/test_pool_model", 60),
    ("property/test_world", 120), ("unit/test_table", 60), ("unit/test_limit", 300),
    ("property/test_admission", 120), ("unit/test_attention", 120), ("unit/test_quantised", 300),
    ("property/test_evict_mix", 300),
    ("property/test_evict_attention", 300), ("property/test_prefix_model", 300),
    ("property/test_attention_random", 600),
]
# What is about a part of the library comes before the rest. The longest of these beginnings of a path counts.
NEAR = {
    "lib/attn": ["unit/test_attention_errors", "unit/test_nodes", "unit/test_attention", "unit/test_quantised"],
    "lib/attn/mass.c": ["unit/test_evict_edges", "property/test_evict_attention"],
    "lib/kernels": ["unit/test_attention", "unit/test_quantised", "property/test_attention_random"],
    "lib/kernels/body_digest.h": ["unit/test_evict", "property/test_evict_attention"],
    "lib/evict": ["unit/test_evict_edges", "unit/test_evict", "property/test_evict_sharing", "unit/test_publish",
                  "property/test_world"],
    "lib/prefix": ["unit/test_prefix", "unit/test_prefix_tree", "unit/test_publish", "property/test_world"],
    "lib/index": ["unit/test_publish", "unit/test_prefix", "unit/test_prefix_tree", "property/test_world"],
    "lib/pool": ["unit/test_pool", "unit/test_magazine", "property/test_pool_model"],
    "lib/table": ["unit/test_batch", "property/test_model", "unit/test_table", "property/test_world"],
    "lib/cache": ["unit/test_batch", "property/test_model", "property/test_world"],
    "lib/cache/banker.c": ["unit/test_safe_state", "property/test_admission"],
    "lib/cache/demand.c": ["unit/test_safe_state", "property/test_admission"],
    "lib/cache/open_pages.c": ["unit/test_quantised", "property/test_world"],
}


def run(command, cwd, timeout=1800, env=None):
    """Exit status and output; a timeout counts as a failure."""
    try:
        done = subprocess.run(command, cwd=cwd, timeout=timeout, env=env, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True, errors="replace", check=False)
        return done.returncode, done.stdout
    except subprocess.TimeoutExpired:
        return -1, "timeout"


def check_applies():
    stale = []
    for name, path, old, _ in MUTANTS:
        n = (ROOT / path).read_text().count(old) if (ROOT / path).exists() else 0
        if n != 1:
            stale.append(f"{name}: its text occurs {n} times in {path}")
    names = [m[0] for m in MUTANTS]
    stale += [f"{name}: listed twice" for name in set(names) if names.count(name) > 1]
    if stale:
        print("mutants that no longer apply:", *stale, sep="\n  ")
        sys.exit(2)


def prepare(work):
    for tree in TREES:
        source = ROOT / tree
        if source.is_dir():
            shutil.copytree(source, work / tree, symlinks=True,
                            ignore=shutil.ignore_patterns("__pycache__"))
        elif source.exists():
            shutil.copy(source, work / tree)
    setup = ["meson", "setup", "build", "--buildtype=release"]
    status, out = run(setup + ["-Dtools=false"], work)
    if status != 0:  # a feature instead of a boolean
        status, out = run(setup + ["-Dtools=disabled"], work)
    if status != 0:
        sys.exit(f"meson setup failed:\n{out[-3000:]}")


def available(work, tests):
    """Those tests that this tree has, as ninja targets."""
    _, out = run(["ninja", "-C", "build", "-t", "targets", "all"], work)
    built = {line.split(":")[0] for line in out.splitlines()}
    return [(f"tests/{name}", limit) for name, limit in tests if f"tests/{name}" in built]


def first_failure(work, tests, options):
    """Name of the first test that fails, or None. A test is linked when its turn comes. Seeds are fixed,
    so that a result can be repeated."""
    for name, limit in tests:
        status, out = run(["ninja", "-C", "build", f"-j{options.jobs}", name], work)
        if status != 0:
            print(out[-1500:])
            return "the compiler"
        env = dict(os.environ, PKV_SEED="1", CK_VERBOSITY="minimal",
                   CK_TIMEOUT_MULTIPLIER=str(max(1, round(options.slower))))
        status, _ = run([work / "build" / name], work / "build", limit * options.slower, env)
        if status != 0:
            return pathlib.Path(name).name + (" (timeout)" if status == -1 else "")
    return None


def in_order(tests, path):
    """The tests, those that are near to a file of the library first."""
    part = max((p for p in NEAR if path.startswith(p)), key=len, default=None)
    near = [f"tests/{name}" for name in NEAR.get(part, [])]
    return sorted(tests, key=lambda test: near.index(test[0]) if test[0] in near else len(near))


def try_mutant(work, tests, mutant, options):
    name, path, old, new = mutant
    source = work / path
    text = source.read_text()
    source.write_text(text.replace(old, new))
    start = time.monotonic()
    killer = first_failure(work, in_order(tests, path), options)
    source.write_text(text)
    verdict = f"killed by {killer}" if killer else "alive"
    print(f"{name:44} {path:30} {verdict} ({time.monotonic() - start:.0f} s)", flush=True)
    return killer


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", action="append", help="a mutant's name; may be given several times")
    parser.add_argument("--list", action="store_true", help="print the mutants and end")
    parser.add_argument("--keep", action="store_true", help="keep the copy of the tree")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="parallel compilations")
    parser.add_argument("--trust", action="store_true", help="do not run the tests without a mutant")
    parser.add_argument("--slower", type=float, default=1, help="factor for the tests' time limits")
    options = parser.parse_args()
    check_applies()
    chosen = [m for m in MUTANTS if not options.only or m[0] in options.only]
    if options.list:
        print(*(f"{m[0]:44} {m[1]}" for m in chosen), sep="\n")
        return 0
    work = pathlib.Path(tempfile.mkdtemp(prefix="pagedkv-mutants-"))
    try:
        prepare(work)
        tests = available(work, TESTS)
        broken = None if options.trust else first_failure(work, tests, options)
        if broken:
            print(f"{broken} fails without a mutant")
            return 2
        ends = {m[0]: try_mutant(work, tests, m, options) for m in chosen}
    finally:
        if options.keep:
            print(f"tree kept in {work}")
        else:
            shutil.rmtree(work, ignore_errors=True)
    survivors = [name for name, killer in ends.items() if not killer]
    rate = 100 * (1 - len(survivors) / len(ends))
    print(f"{len(ends) - len(survivors)} of {len(ends)} mutants killed ({rate:.1f} %)")
    print("survivors:", ", ".join(survivors) or "none")
    return 0 if rate >= 95 else 1


if __name__ == "__main__":
    sys.exit(main())
