#!/usr/bin/env python3
"""Names: the shared library exports exactly the functions that the public headers declare with PKV_API,
and needs no library that a bare process would not have (jemalloc above all); the static library defines
nothing that could meet a name of the host's (pkv_ and pkvi_ only); the public headers define no macro,
type or enumerator without the prefix.

symbols.py INCLUDE_DIR SHARED_LIBRARY STATIC_LIBRARY"""
import pathlib
import re
import subprocess
import sys


def output(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def code_of(header):
    return re.sub(r"/\*.*?\*/", " ", header.read_text(), flags=re.S)


def declared(headers):
    names = set()
    for header in headers:
        names |= set(re.findall(r"PKV_API[^;]*?\b(pkv_\w+)\s*\(", code_of(header)))
    return names


def exported(library):
    lines = output("nm", "-D", "--defined-only", library).splitlines()
    return {line.split()[-1].split("@")[0] for line in lines if line.split()[-2] in "TDBRW"}


def defined(archive):
    """Global names that an archive gives to whoever links it."""
    lines = (line.split() for line in output("nm", "-g", "--defined-only", archive).splitlines())
    return {parts[2] for parts in lines if len(parts) == 3}


def needed(library):
    return re.findall(r"\(NEEDED\).*\[(.*)\]", output("readelf", "-d", library))


def unprefixed(header):
    """Macros, struct tags, typedefs, inline functions and enumerators of a header without prefix."""
    code = code_of(header)
    names = re.findall(r"^\s*#\s*define\s+(\w+)", code, flags=re.M)
    names += re.findall(r"\b(?:struct|union|enum)\s+(\w+)", code)
    names += re.findall(r"^typedef\b[^;{]*?\(\*(\w+)\)", code, flags=re.M)
    names += re.findall(r"^typedef\b[^;{(]*?(\w+);", code, flags=re.M)
    names += re.findall(r"^}\s*(\w+);", code, flags=re.M)
    names += re.findall(r"^static inline [^(;]*?(\w+)\(", code, flags=re.M)
    for body in re.findall(r"\benum\s*\w*\s*{(.*?)}", code, flags=re.S):
        names += re.findall(r"(\w+)\s*(?:=[^,]*)?(?:,|$)", body.strip())
    return sorted({name for name in names if not re.match(r"(pkv|PKV|PAGEDKV)_", name)}), len(names)


def main():
    include_dir, library, archive = sys.argv[1:]
    headers = sorted(pathlib.Path(include_dir).glob("*.h"))
    want, have, inside = declared(headers), exported(library), defined(archive)
    problems = [f"declared but not exported: {name}" for name in sorted(want - have)]
    problems += [f"exported but not declared: {name}" for name in sorted(have - want)]
    problems += [f"declared but not in the archive: {name}" for name in sorted(want - inside)]
    problems += [f"global in the archive without a prefix: {name}" for name in sorted(inside)
                 if not re.match(r"pkvi?_", name)]
    problems += [f"needs {name}" for name in needed(library)
                 if not re.match(r"lib(c|m|pthread|xxhash|nettle|gcc_s)\.so|ld-linux", name)]
    seen = 0
    for header in headers:
        names, n = unprefixed(header)
        seen += n
        problems += [f"{header.name}: {name} has no prefix" for name in names]
    for text in problems:
        print(text)
    print(f"{len(have)} exported symbols, {len(inside)} in the archive, {seen} names in headers, "
          f"{len(problems)} problems")
    return 1 if problems or not have or len(inside) < len(have) or seen < 100 else 0


if __name__ == "__main__":
    sys.exit(main())
