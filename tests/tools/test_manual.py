#!/usr/bin/env python3
"""docs/pkv-sim.1 says of the options what --help says: the sections about them are made from it.

    test_manual.py PKV-SIM MANUAL [--write]

With --write the sections are made anew, else a difference is a failure."""
import pathlib
import re
import subprocess
import sys

COMMANDS = ("waste", "prefix", "longseq", "serve")
SHARED = "Requests"  # has a section of its own


def groups(text):
    """[(title, [(option, value, help)])] of a --help text."""
    found = [("", [])]
    for line in text.split("\n"):
        if re.match(r"\S.*:$", line):
            found.append((line[:-1], []))
        elif m := re.match(r"  --([a-z-]+) ?(\S*)(?: +(.*))?$", line):
            name, value, words = m.groups()
            found[-1][1].append([name, value, words or ""])
        elif line.startswith(" " * 10) and found[-1][1]:
            found[-1][1][-1][2] += " " + line.strip()
    return [(title, options) for title, options in found if options]


def troff(text):
    text = text.strip().replace("\\", "\\e").replace("-", "\\-")
    return re.sub(r"^([.'])", r"\\&\1", text)


def entry(name, value, words):
    dashed = "\\-\\-" + name.replace("-", "\\-")
    head = f'.BI {dashed} " {value}"' if value else f".B {dashed}"
    return f".TP\n{head}\n{troff(words)}\n"


def section(options):
    return "".join(entry(*o) for o in options if o[0] != "help")


def sections(sim):
    """{heading: text}"""
    made = {}
    for command in COMMANDS:
        text = subprocess.run([sim, command, "--help"], capture_output=True, text=True, check=True).stdout
        own = []
        for title, options in groups(text):
            if title == SHARED:
                made.setdefault("REQUESTS", section([o for o in options if o[0] != "speed"]))
                own += [o for o in options if o[0] == "speed"]
            else:
                own += options
        made[f"OPTIONS OF {command.upper()}"] = section(own)
    return made


def main():
    sim, path = sys.argv[1], pathlib.Path(sys.argv[2])
    manual, failed = path.read_text(), 0
    for heading, text in sections(sim).items():
        m = re.search(rf"(?<=^\.SH {heading}\n).*?(?=^\.(?:PP|SH))", manual, re.M | re.S)
        if m is None:
            print(f"{path}: no section {heading}")
            failed = 1
        elif m.group() != text and "--write" in sys.argv[3:]:
            manual = manual[:m.start()] + text + manual[m.end():]
        elif m.group() != text:
            print(f"{path}: section {heading} is not what --help says; make it anew with\n"
                  f"    {pathlib.Path(__file__).name} {sim} {path} --write")
            failed = 1
    if "--write" in sys.argv[3:]:
        path.write_text(manual)
    return failed


if __name__ == "__main__":
    sys.exit(main())
