#!/usr/bin/env python3
"""Every public function must be called in a test. coverage.py INCLUDE_DIR SOURCE..."""
import pathlib
import re
import sys

source = "".join(pathlib.Path(name).read_text() for name in sys.argv[2:])
source = re.sub(r"/\*.*?\*/", "", source, flags=re.S)
names = set()
for header in sorted(pathlib.Path(sys.argv[1]).glob("*.h")):
    text = header.read_text()
    for declaration in re.findall(r"^PKV_API\b[^;]*;", text, flags=re.M):
        names.update(re.findall(r"\b(pkv_\w+)\s*\(", declaration)[:1])
missing = sorted(name for name in names if not re.search(rf"\b{name}\b", source))
if len(names) < 50:
    sys.exit(f"coverage.py: only {len(names)} public functions found")
if missing:
    sys.exit(f"coverage.py: not called in {sys.argv[2]}, …: " + ", ".join(missing))
print(f"coverage.py: {len(names)} public functions")
