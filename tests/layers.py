#!/usr/bin/env python3
"""Checks the layer order of lib/: a module includes only its own headers, its own module header,
and the module headers (lib/M/M.h) of lower layers. And of tools/: a tool includes its own headers,
those of tools/common and the public ones; tools/common and the parts of a tool (tools/T/part)
include none of the tool above them.

Order (docs/architecture.md): base, os, mem, stats, index, pool, table, state, kernels, attn, evict,
prefix, cache."""
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent / "lib"
TOOLS = ROOT.parent / "tools"
ORDER = ["base", "os", "mem", "stats", "index", "pool", "table", "state", "kernels", "attn", "evict", "prefix", "cache"]
RANK = {name: i for i, name in enumerate(ORDER)}

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
            if other == own:
                continue
            if RANK[other] > RANK[own]:
                yield f"{where}: {own} includes {other}, which is a higher layer"
            elif target.name != f"{other}.h":
                yield f"{where}: {target.name} is private to module {other}"


def visible(source):
    """Folders whose headers a file of tools/ may name: its own, the parts of its tool below it, and
    tools/common."""
    folder = source.parent
    return [folder, *sorted(f for f in folder.rglob("*") if f.is_dir()), TOOLS / "common"]


def tool_problems():
    files = [p for p in sorted(TOOLS.rglob("*")) if p.suffix in (".c", ".h", ".cc", ".cpp")
             and "tests" not in p.parts]
    for source in files:
        for number, line in enumerate(source.read_text().splitlines(), 1):
            match = INCLUDE.match(line)
            if not match or any((folder / match.group(1)).exists() for folder in visible(source)):
                continue
            recipe = source.parent / "meson.build"  # a header that the build makes
            if recipe.exists() and f"output: '{match.group(1)}'" in recipe.read_text():
                continue
            where = f"{source.relative_to(ROOT.parent)}:{number}"
            yield f"{where}: {match.group(1)} is not of this tool, a part of it, or tools/common"


def main():
    found = list(problems()) + list(tool_problems())
    for text in found:
        print(text)
    print(f"layer order: {len(found)} problems")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
