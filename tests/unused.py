#!/usr/bin/env python3
"""Finds functions of lib/ that nothing but tests uses, and function pointers in structs that nobody calls or sets.

A non-static function counts as used if its name stands somewhere in lib/ or tools/ besides its own
definition and its declarations, or if it is public (PKV_API). A static inline function of a header
must be used too. Prints what is left over; exit status 1 if there is any."""
import collections
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
DEFINITION = re.compile(r"^(?!static\b(?!\s+inline))(?!typedef\b)(?:[A-Za-z_][\w\s\*]*?[\s\*])(pkvi?_\w+)\s*\([^;{}]*\)\s*\n?\{",
                        re.M)
DECLARATION = r"^(?!\s)(?:PKV_API\s+)?[A-Za-z_][\w\s\*]*?[\s\*]{name}\s*\([^;{{}}]*\)[^;{{}}]*;"
MEMBER = re.compile(r"^[ \t]+(?!typedef)[^\n(]*\(\*(\w+)\)\s*\(", re.M)
COMMENT = re.compile(r"/\*.*?\*/|//[^\n]*", re.S)


# Written and tested, but their caller is still to come.


def sources(*folders):
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.[ch]")):
            yield path, COMMENT.sub(" ", path.read_text())


def public_names():
    text = "\n".join(text for _, text in sources("include"))
    return set(re.findall(r"PKV_API[^;(]*?(pkv_\w+)\s*\(", text)), text


def main():
    public, headers = public_names()
    product = "\n".join(text for _, text in sources("lib", "tools"))
    words = collections.Counter(re.findall(r"\w+", product))
    left = []
    for path, text in sources("lib"):
        for name in dict.fromkeys(DEFINITION.findall(text)):
            if name in public or name in headers:
                continue
            uses = words[name]
            if uses > 8:  # more than definitions and declarations could be
                continue
            uses -= len(re.findall(rf"^(?!\s).*\b{name}\s*\([^;{{}}]*\)\s*\n?\{{", product, re.M))
            uses -= len(re.findall(DECLARATION.format(name=name), product, re.M))
            if uses <= 0:
                left.append(f"{path.relative_to(ROOT)}: {name} is used by tests only, if at all")
    for path, text in sources("lib"):
        if path.suffix != ".h":
            continue
        for name in dict.fromkeys(MEMBER.findall(text)):
            if not re.search(rf"(->|\.)\s*{name}\s*\(", product):
                left.append(f"{path.relative_to(ROOT)}: the function pointer {name} is never called")
            elif not re.search(rf"(->|\.)\s*{name}\s*=[^=]", product):
                left.append(f"{path.relative_to(ROOT)}: the function pointer {name} is never set")
    for line in left:
        print(line)
    print(f"unused: {len(left)} problems")
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())
