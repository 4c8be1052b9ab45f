#!/usr/bin/env python3
"""What the pages on threads and errors say of the headers is complete: docs/threading.md gives every
public function exactly one class under the right header, docs/errors.md every code its value. Files
and functions that any page names exist, and so do options: in the tool of the command, else in any."""
import pathlib
import re
import sys

include, docs = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
classes = {"free", "cache", "writer", "reader", "batch", "plan", "team", "magazine", "index",
           "scheduler", "quiet"}

declared = {}
for header in sorted(include.glob("*.h")):
    text = re.sub(r"/\*.*?\*/", "", header.read_text(), flags=re.S)
    text = re.sub(r"^#.*$", "", text, flags=re.M)
    for name in re.findall(r"\bPKV_API\b[^;({]*?\b(pkv_\w+)\s*\(", text):
        declared[name] = header.name

errors, listed, current = [], {}, None
for line in (docs / "threading.md").read_text().splitlines():
    row = re.match(r"\|\s*(`\w+\.h`)?\s*\|\s*(\w+)\s*\|(.*)\|$", line)
    if not row or row[2] not in classes:
        continue
    current = row[1].strip("`") if row[1] else current
    for name in re.findall(r"`(pkv_\w+)`", row[3]):
        if name in listed:
            errors.append(f"{name}: listed twice")
        listed[name] = current

for name, header in declared.items():
    if name not in listed:
        errors.append(f"{name}: not listed ({header})")
    elif listed[name] != header:
        errors.append(f"{name}: listed under {listed[name]}, declared in {header}")
errors += [f"{name}: listed but not declared" for name in listed if name not in declared]
if not declared:
    errors.append("no public function found")

codes = dict(re.findall(r"\b(PKV_\w+) = (-?\d+)", (include / "status.h").read_text()))
told = dict(re.findall(r"^\| `(PKV_\w+)` \| ([−\d]+) \|", (docs / "errors.md").read_text(), flags=re.M))
told = {name: value.replace("−", "-") for name, value in told.items()}
errors += [f"{name}: {told.get(name)} in errors.md, {codes.get(name)} in status.h"
           for name in sorted(codes.keys() | told.keys()) if codes.get(name) != told.get(name)]
# Files as seen from the top or, in the pages on Python, from tools/python; names of the library as a word
# anywhere in its sources or the tools'.
top = docs.parent
words = set()
for folder in ("lib", "include", "tools", "tests"):
    for source in (top / folder).rglob("*"):
        if source.suffix in (".c", ".h", ".py", ".cc", ".map", ".build", ".txt", ".sh"):
            words |= set(re.findall(r"\bpkvi?_\w+", source.read_text(errors="replace")))
for page in [*sorted(docs.glob("*.md")), top / "README.md"]:
    text = page.read_text()
    for name in sorted(set(re.findall(r"`((?:lib|tests|tools|include|docs)/[\w./-]+)`", text))):
        if not (top / name).exists() and not (top / "tools/python" / name).exists():
            errors.append(f"{page.name}: there is no {name}")
    for name in sorted(set(re.findall(r"\bpkvi?_\w*[a-z0-9]\b(?![*…])", text)) - words):
        errors.append(f"{page.name}: there is no {name}")

# An option is a word behind -- in the sources of its tool, or a string there (tools/common/cli.h).
OPTION = r"(?<![\w-])--([a-z0-9][a-z0-9-]*)"
options = {}
for folder in ("sim", "bench", "run", "common"):
    text = "".join(source.read_text() for source in (top / "tools" / folder).rglob("*.[ch]"))
    options[folder] = set(re.findall(OPTION, text)) | set(re.findall(r'"([a-z0-9][a-z0-9-]*)"', text))
scripts = [source.read_text() for folder in ("tools", "tests") for source in (top / folder).rglob("*")
           if source.suffix in (".py", ".sh")]
known = set().union(*options.values(), *(re.findall(OPTION, text) for text in scripts)) | {"strict"}  # mypy's
for page in [*sorted(docs.glob("*.md")), top / "README.md", top / "tools/python/README.md"]:
    text = page.read_text().replace("\\\n", " ")
    for tool, rest in re.findall(r"(?<![/\w-])pkv-(sim|bench|run) ([^`\n|;&]*)", text):
        errors += [f"{page.name}: pkv-{tool} has no --{name}" for name in re.findall(OPTION, rest)
                   if name not in options[tool] | options["common"]]
    errors += [f"{page.name}: nothing has an option --{name}"
               for name in sorted(set(re.findall(OPTION, text)) - known)]
print("\n".join(errors) or f"{len(declared)} functions, {len(codes)} codes")
sys.exit(bool(errors))
