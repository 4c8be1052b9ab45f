#!/usr/bin/env python3
"""The shared library exports exactly the functions that the public headers declare with PKV_API,
and needs no library that a bare process would not have (jemalloc above all)."""
import pathlib
import re
import subprocess
import sys


def declared(include_dir):
    names = set()
    for header in pathlib.Path(include_dir).glob("*.h"):
        text = re.sub(r"/\*.*?\*/", "", header.read_text(), flags=re.S)
        names |= set(re.findall(r"PKV_API[^;]*?\b(pkv_\w+)\s*\(", text))
    return names


def exported(library):
    lines = subprocess.run(["nm", "-D", "--defined-only", library], check=True,
                           capture_output=True, text=True).stdout.splitlines()
    return {line.split()[-1].split("@")[0] for line in lines if line.split()[-2] in "TDBRW"}


def needed(library):
    text = subprocess.run(["readelf", "-d", library], check=True, capture_output=True,
                          text=True).stdout
    return re.findall(r"\(NEEDED\).*\[(.*)\]", text)


def main():
    include_dir, library = sys.argv[1:]
    want, have = declared(include_dir), exported(library)
    problems = [f"declared but not exported: {name}" for name in sorted(want - have)]
    problems += [f"exported but not declared: {name}" for name in sorted(have - want)]
    problems += [f"needs {name}" for name in needed(library)
                 if not re.match(r"lib(c|m|pthread|xxhash|nettle|gcc_s)\.so|ld-linux", name)]
    for text in problems:
        print(text)
    print(f"{len(have)} exported symbols, {len(problems)} problems")
    return 1 if problems or not have else 0


if __name__ == "__main__":
    sys.exit(main())
