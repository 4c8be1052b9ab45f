#!/usr/bin/env python3
"""Finds places in lib/ and tools/ (C) that share more than MOST lines of the same shape.

The shape of a line is its text without values and without the names of variables and types. What is
called (a name before a parenthesis), which member an initialiser sets, and keywords stay: files of two
instruction sets, which differ in every intrinsic, are not alike. Comments, includes, lone punctuation and
blank lines are no lines. Exit status 1 if there is any."""
import collections
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
MOST = 12
COMMENT = re.compile(r"/\*.*?\*/|//[^\n]*", re.S)
TOKEN = re.compile(r'"(?:\\.|[^"\\])*"|\'(?:\\.|[^\'\\])*\'|\.\w+(?= =)|[A-Za-z_]\w*(?:\s*\()?|\d[\w.]*|\S')
KEYWORDS = set("if else for while do switch case default break continue return goto sizeof static const "
               "inline struct union enum void bool char int float double unsigned size_t".split())


def shape(line):
    words = []
    for word in TOKEN.findall(line):
        name = word.rstrip("( \t") or word
        if name[0] in "\"'" or name[0].isdigit():
            words.append("1")
        elif not (name[0].isalpha() or name[0] == "_"):
            words.append(word)
        elif word.endswith("(") or name in KEYWORDS:
            words.append(word)
        else:
            words.append("x")
    return " ".join(words)


def lines(path):
    """(number, shape) of the lines that count."""
    text = COMMENT.sub(lambda match: "\n" * match.group().count("\n"), path.read_text())
    for number, line in enumerate(text.split("\n"), 1):
        if not re.search(r"\w", line) or line.lstrip().startswith("#include"):
            continue
        yield number, shape(line)


def pairs(files):
    """((path, first, last), (path, first, last)), the longest of overlapping runs."""
    code = {path: list(lines(path)) for path in files}
    seen = collections.defaultdict(list)
    for path, counted in code.items():
        for i in range(len(counted) - MOST):
            seen[tuple(text for _, text in counted[i:i + MOST + 1])].append((path, i))
    starts = {(a, b) for places in seen.values() for k, a in enumerate(places) for b in places[k + 1:]
              if a[0] != b[0] or b[1] - a[1] > MOST}
    for (path_a, i), (path_b, k) in sorted(starts):
        if ((path_a, i - 1), (path_b, k - 1)) in starts:
            continue  # a part of the run before
        n = MOST + 1
        while ((path_a, i + n - MOST), (path_b, k + n - MOST)) in starts:
            n += 1
        yield [(path, code[path][at][0], code[path][at + n - 1][0], n)
               for path, at in ((path_a, i), (path_b, k))]


def main():
    files = [path for folder in ("lib", "tools") for path in sorted((ROOT / folder).rglob("*.[ch]"))
             if not {"subprojects", "build"} & set(path.parts)]
    found = list(pairs(files))
    for a, b in found:
        print(" and ".join(f"{path.relative_to(ROOT)}:{first}-{last}" for path, first, last, _ in (a, b)) +
              f" have {a[3]} lines of one shape")
    print(f"alike: {len(found)} pairs of places in {len(files)} files")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
