"""Writes a text file as a C string: embed.py INPUT OUTPUT NAME."""

import sys

source, target, name = sys.argv[1:]
with open(source, "rb") as file:
    data = file.read()
rows = [", ".join(str(b - 256 if b > 127 else b) for b in data[i : i + 24]) for i in range(0, len(data), 24)]
with open(target, "w", encoding="ascii") as file:
    file.write(f"static const signed char {name}[] = {{\n    ")
    file.write(",\n    ".join(rows))
    file.write(", 0};\n")
