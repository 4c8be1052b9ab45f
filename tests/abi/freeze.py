#!/usr/bin/env python3
"""Keeps the public headers of a release as programs were compiled against them, without comments:
freeze.py DIR writes include/pagedkv/*.h to DIR/pagedkv. Done once per minor version, at its release;
tests/abi/host.c is compiled against every copy and must run with the library of today."""
import pathlib
import re
import sys

SOURCE = pathlib.Path(__file__).resolve().parents[2] / "include" / "pagedkv"


def bare(text):
    text = re.sub(r"/\*.*?\*/", "", text, flags=re.S)
    return re.sub(r"\n{2,}", "\n", re.sub(r"[ \t]+$", "", text, flags=re.M)).lstrip()


def main():
    target = pathlib.Path(sys.argv[1]) / "pagedkv"
    target.mkdir(parents=True, exist_ok=True)
    for header in sorted(SOURCE.glob("*.h")):
        (target / header.name).write_text(bare(header.read_text()))


if __name__ == "__main__":
    main()
