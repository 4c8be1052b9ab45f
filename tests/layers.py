#!/usr/bin/env python3
"""Checks the layer order of lib/: a module includes only its own headers, its own module header,
and the module headers (lib/M/M.h) of lower layers.

Order (docs/architecture.md): base, os, mem, stats, index, pool, table, kernels, attn, evict,
prefix, cache."""
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent / "lib"
ORDER = ["base", "os", "mem", "stats", "index", "pool", "table", "kernels", "attn", "evict", "prefix", "cache"]
RANK = {name: i for i, name in enumerate(ORDER)}
# A lower module may name a higher one only here, with the reason.
ALLOWED = {}

INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"')


def module_of(path):
    return path.relative_to(ROOT).parts[0]


def resolve(source, name):
    for base in (source.parent, ROOT):
        candidate = (base / name).resolve()
        if candidate.exists() and ROOT in candidate.parents:
            return candidate
    return None


def problems():
    for source in sorted(ROOT.rglob("*.[ch]")):
        if source.parent == ROOT:
            continue
        own = module_of(source)
        if own not in RANK:
            yield f"{source}: module {own} has no place in the layer order"
            continue
        for number, line in enumerate(source.read_text().splitlines(), 1):
            match = INCLUDE.match(line)
            if not match:
                continue
            where = f"{source.relative_to(ROOT.parent)}:{number}"
            target = resolve(source, match.group(1))
            if target is None:
                yield f"{where}: {match.group(1)} is not a file of lib/"
                continue
            other = module_of(target)
            if other == own or (own, other) in ALLOWED:
                continue
            if RANK[other] > RANK[own]:
                yield f"{where}: {own} includes {other}, which is a higher layer"
            elif target.name != f"{other}.h":
                yield f"{where}: {target.name} is private to module {other}"


def main():
    found = list(problems())
    for text in found:
        print(text)
    print(f"layer order: {len(found)} problems")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
