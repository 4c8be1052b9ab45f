#!/usr/bin/env python3
"""Finds circles between the files of lib/: of calls (a file names a function that another defines,
and back, over any number of files) and of includes. Works on the sources, without a build.
Exit status 1 if there is one."""
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent / "lib"
COMMENT = re.compile(r"/\*.*?\*/|//[^\n]*", re.S)
DEFINITION = re.compile(r"^(?!static\b)(?:[A-Za-z_][\w\s\*]*?[\s\*])(pkvi?_\w+)\s*\([^;{}]*\)\s*\n?\{", re.M)
INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"', re.M)


def calls(texts):
    home = {name: path for path, text in texts.items() if path.endswith(".c")
            for name in DEFINITION.findall(text)}
    return {path: {home[name] for name in re.findall(r"\bpkvi?_\w+", text)
                   if home.get(name, path) != path}
            for path, text in texts.items() if path.endswith(".c")}


def includes(texts):
    graph = {}
    for path, text in texts.items():
        folder = (ROOT / path).parent
        graph[path] = set()
        for name in INCLUDE.findall(text):
            for base in (folder, ROOT):
                if (base / name).exists():
                    graph[path].add(str((base / name).resolve().relative_to(ROOT)))
                    break
    return graph


def circles(graph):
    """Strongly connected components of more than one file (or a file that names itself)."""
    def reach(start):
        seen, todo = set(), [start]
        while todo:
            for other in graph[todo.pop()]:
                if other not in seen:
                    seen.add(other)
                    todo.append(other)
        return seen

    reached = {path: reach(path) for path in graph}
    found = []
    for path in sorted(graph):
        if path in reached[path]:
            circle = {path} | {other for other in reached[path] if path in reached[other]}
            if circle not in found:
                found.append(circle)
    return found


def main():
    texts = {str(path.relative_to(ROOT)): COMMENT.sub(" ", path.read_text())
             for path in sorted(ROOT.rglob("*.[ch]"))}
    problems = [f"includes go in a circle: {' '.join(sorted(c))}" for c in circles(includes(texts))]
    problems += [f"calls go in a circle: {' '.join(sorted(c))}" for c in circles(calls(texts))]
    for line in problems:
        print(line)
    print(f"circles: {len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
