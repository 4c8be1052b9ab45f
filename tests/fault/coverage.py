#!/usr/bin/env python3
"""Every public function must occur in the fault scenario. coverage.py SOURCE INCLUDE_DIR"""
import pathlib
import re
import sys

source = pathlib.Path(sys.argv[1]).read_text()
names = set()
for header in sorted(pathlib.Path(sys.argv[2]).glob("*.h")):
    text = header.read_text()
    for declaration in re.findall(r"^PKV_API\b[^;]*;", text, flags=re.M):
        names.update(re.findall(r"\b(pkv_\w+)\s*\(", declaration)[:1])
missing = sorted(name for name in names if not re.search(rf"\b{name}\b", source))
if len(names) < 50:
    sys.exit(f"coverage.py: only {len(names)} public functions found")
if missing:
    sys.exit("coverage.py: not in the fault scenario: " + ", ".join(missing))
print(f"coverage.py: {len(names)} public functions")
