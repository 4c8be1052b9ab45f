#!/usr/bin/env python3
"""pkv-run generate: the same greedy tokens however the requests are batched, cut, matched, drafted, and
squeezed into memory. That holds for models whose products do not depend on the rows beside (Q4_1).

    test_generate.py PKV-RUN [TOKENS]

Needs a model: the file that PKV_RUN_MODEL names. Without one it is skipped (exit status 77).
"""
import os
import re
import subprocess
import sys

MODEL = os.environ.get("PKV_RUN_MODEL", "")
START = "The following is a list of facts that every child should learn in school, and each is explained in turn. " * 2
PROMPTS = [START + text for text in ("Water", "Fire is", "The Earth moves around", "Iron", "The number ten")]
PROMPTS += ["def fibonacci(n):", "1 2 3 4 1 2 3 4 1 2", "Once upon a time"]


def generate(program, tokens, prompts, *options):
    command = [program, "generate", "--model", MODEL, "--ids", "--stats", "--ignore-end", "--threads", "1",
               "--new", str(tokens), *options]
    for prompt in prompts:
        command += ["--prompt", prompt]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, f"{options}: {done.stderr}"
    rows = [list(map(int, line.split())) for line in done.stdout.splitlines()]
    assert [len(row) for row in rows] == [tokens] * len(prompts), f"{options}: {done.stdout[:300]}"
    return rows, done.stderr


def figure(stats, pattern):
    return int(re.search(pattern, stats).group(1))


def main():
    program, tokens = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 16
    if not os.path.isfile(MODEL):
        print("PKV_RUN_MODEL names no file: skipped")
        return 77
    alone = [generate(program, tokens, [prompt], "--no-prefix")[0][0] for prompt in PROMPTS]
    cases = {
        "together": [],
        "no prefix": ["--no-prefix"],
        "small steps": ["--rows", "12"],
        "small chunks": ["--chunk", "5", "--max-running", "3"],
        "drafts": ["--draft", "6"],
        "little memory": ["--memory", "6MiB"],
        "all at once": ["--memory", "6MiB", "--draft", "4", "--rows", "24", "--chunk", "7"],
    }
    for name, options in cases.items():
        rows, stats = generate(program, tokens, PROMPTS, *options)
        for prompt, row, want in zip(PROMPTS, rows, alone):
            assert row == want, f"{name}: {prompt[-30:]!r}: {row} instead of {want}"
        cached = figure(stats, r"(\d+) of \d+ prompt tokens from the index")
        if name == "together":
            assert cached >= 4 * 32, f"followers attached only {cached} tokens: {stats}"
        if name == "drafts":
            assert figure(stats, r"(\d+) of \d+ drafted accepted") > 0, stats
        if name == "no prefix":
            assert cached == 0, stats
        print(f"{name}: the same tokens; {stats.strip()}", flush=True)
    command = [program, "generate", "--model", MODEL, "--memory", "4MiB", "--threads", "1", "--new", "4000", "--prompt", "x"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 1 and "memory limit" in done.stderr, done.stderr
    return 0


if __name__ == "__main__":
    sys.exit(main())
