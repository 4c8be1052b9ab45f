"""The command line as programs and people use it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pagedkv_runtime.units import parse_bytes

ROOT = Path(__file__).resolve().parents[1]


def cli(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess:
    env = dict(os.environ, PYTHONPATH=str(ROOT))
    return subprocess.run(
        [sys.executable, "-m", "pagedkv_runtime", *arguments],
        env=env,
        capture_output=True,
        text=True,
        input=stdin,
        timeout=300,
    )


def test_generate_json(smollm2, tmp_path):
    model, tokenizer = smollm2
    prompt = "The capital of France is"
    file = tmp_path / "prompt.txt"
    file.write_text(prompt)
    run = cli(
        "generate",
        "--model",
        "smollm2",
        "--prompt-file",
        str(file),
        "--max-tokens",
        "8",
        "--cache-dtype",
        "f16",
        "--page-tokens",
        "32",
        "--chunk",
        "3",
        "--evict",
        "sink:64",
        "--memory",
        "256MiB",
        "--json",
    )
    assert run.returncode == 0, run.stderr
    result = json.loads(run.stdout)
    assert set(result) == {"prompt_ids", "ids", "text", "stats"}
    assert result["prompt_ids"] == tokenizer.encode(prompt)
    assert len(result["ids"]) == 8 and result["text"].startswith(" Paris.")
    assert tokenizer.decode(result["ids"]) == result["text"]
    assert result["stats"]["cache"]["memory_limit"] == 256 << 20
    assert result["stats"]["prompt_tokens"] == 5


def test_generate_streams_text(smollm2):
    run = cli(
        "generate",
        "--model",
        "smollm2",
        "--prompt",
        "The capital of France is",
        "--max-tokens",
        "2",
    )
    assert run.returncode == 0 and run.stdout == " Paris.\n" and run.stderr == ""


def test_chat(smollm2):
    run = cli(
        "chat",
        "--model",
        "smollm2",
        "--max-tokens",
        "12",
        "--json",
        stdin="Name three colours.\nAnd one more?\n",
    )
    assert run.returncode == 0, run.stderr
    turns = json.loads(run.stdout)["turns"]
    assert len(turns) == 2 and turns[0]["text"].startswith("1. Red")
    # the second turn attaches the pages of the first
    assert turns[1]["stats"]["cached_tokens"] >= len(turns[0]["prompt_ids"]) // 16 * 16


def test_serve_bench(smollm2, tmp_path):
    run = cli(
        "serve-bench",
        "--model",
        "smollm2",
        "--requests",
        "4",
        "--system-tokens",
        "64",
        "--prompt-tokens",
        "8",
        "--max-tokens",
        "4",
        "--max-batch",
        "2",
        "--json",
    )
    assert run.returncode == 0, run.stderr
    result = json.loads(run.stdout)
    assert result["requests"] == 4 and result["failed"] == 0
    assert result["output_tokens"] == 16 and result["prefix_tokens_hit"] >= 64
    trace = tmp_path / "trace.jsonl"
    trace.write_text(
        "".join(
            json.dumps(
                {"timestamp": 100 * i, "input_length": 900, "output_length": 40, "hash_ids": [0, i]}
            )
            + "\n"
            for i in range(3)
        )
    )
    run = cli(
        "serve-bench",
        "--model",
        "smollm2",
        "--trace",
        str(trace),
        "--scale",
        "0.1",
        "--requests",
        "3",
        "--json",
    )
    assert run.returncode == 0, run.stderr
    result = json.loads(run.stdout)
    assert result["prompt_tokens"] == 3 * 90 and result["output_tokens"] == 12
    assert result["prefix_tokens_hit"] >= 48


@pytest.mark.parametrize(
    "arguments",
    [
        ["generate"],
        ["generate", "--model", "smollm2"],
        ["nonsense"],
        ["generate", "--model", "smollm2", "--prompt", "x", "--evict", "sink"],
        ["generate", "--model", "smollm2", "--prompt", "x", "--memory", "many"],
        ["generate", "--model", "smollm2", "--prompt", "x", "--page-tokens", "17"],
        ["generate", "--model", "smollm2", "--prompt", "x", "--prompt-file", "y"],
        ["generate", "--model", "smollm2", "--prompt", "x", "--evict", "nonsense:64"],
        ["generate", "--model", "smollm2", "--prompt", "x", "--evict", "sink:²"],
        ["generate", "--model", "smollm2", "--prompt", "x", "--seed", "-1"],
        ["generate", "--model", "smollm2", "--prompt", "x", "--draft", "-1"],
        ["generate", "--model", "smollm2", "--prompt", "x", "--temperature", "warm"],
        ["generate", "--model", "smollm2", "--prompt", "x", "--top-p", "nan"],
        ["generate", "--model", "smollm2", "--prompt", "x", "--beams", "2", "--samples", "2"],
        ["serve-bench", "--model", "smollm2", "--limit-at", "now"],
        ["serve-bench", "--model", "smollm2", "--limit-at", "-1:1GiB"],
        ["serve-bench", "--model", "smollm2", "--system-tokens", "-5"],
        ["serve-bench", "--model", "smollm2", "--speed", "0"],
        ["serve-bench", "--model", "smollm2", "--scale", "-1"],
    ],
)
def test_usage_errors(arguments):
    run = cli(*arguments)
    assert run.returncode == 2 and "usage:" in run.stderr and run.stdout == ""


def test_an_empty_prompt_is_a_usage_error(smollm2):
    run = cli("generate", "--model", "smollm2", "--prompt", "")
    assert run.returncode == 2 and "no tokens" in run.stderr and "usage:" in run.stderr


def test_policies_of_the_option_are_the_librarys():
    import pagedkv
    from pagedkv_runtime.__main__ import POLICIES

    assert set(POLICIES) == set(pagedkv.POLICIES)


_WITHOUT_EXTRAS = """
import sys
class Missing:
    def find_spec(self, name, *_):
        if name.partition(".")[0] in ("gguf", "tokenizers", "jinja2"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Missing())
from pagedkv_runtime import __main__
sys.exit(__main__.ENTRY(sys.argv[1:]))
"""


@pytest.mark.parametrize("entry", ["main", "generate"])
@pytest.mark.parametrize("arguments, status", [(["--help"], 0), ([], 2), (["--nonsense"], 2)])
def test_help_and_usage_without_the_extra_packages(entry, arguments, status):
    run = subprocess.run(
        [sys.executable, "-c", _WITHOUT_EXTRAS.replace("ENTRY", entry), *arguments],
        env=dict(os.environ, PYTHONPATH=str(ROOT)),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.returncode == status, run.stderr
    name = {"main": "pagedkv-runtime", "generate": "pagedkv-generate"}[entry]
    assert f"usage: {name} " in run.stdout + run.stderr and "Traceback" not in run.stderr
    assert "pagedkv-generate generate" not in run.stdout + run.stderr


def test_a_run_without_the_extra_packages_says_what_to_install():
    run = subprocess.run(
        [sys.executable, "-c", _WITHOUT_EXTRAS.replace("ENTRY", "generate"), "--model", "smollm2"]
        + ["--prompt", "x"],
        env=dict(os.environ, PYTHONPATH=str(ROOT)),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.returncode == 1 and "pip install 'pagedkv[runtime]'" in run.stderr
    assert "Traceback" not in run.stderr


@pytest.mark.parametrize(
    "arguments, text",
    [
        (["generate", "--model", "/nowhere.gguf", "--prompt", "x"], "nowhere.gguf"),
        (["generate", "--model", "smollm2", "--prompt-file", "/nowhere.txt"], "nowhere.txt"),
    ],
)
def test_failures_say_why(arguments, text):
    run = cli(*arguments)
    assert run.returncode == 1 and text in run.stderr and "Traceback" not in run.stderr


def test_too_little_memory_fails_cleanly(smollm2):
    run = cli(
        "generate",
        "--model",
        "smollm2",
        "--prompt",
        "hello world " * 600,
        "--memory",
        "8MiB",
        "--max-tokens",
        "2",
        "--json",
    )
    assert run.returncode == 1 and "pages" in run.stderr and "Traceback" not in run.stderr


def test_sizes():
    assert parse_bytes("1.5GiB") == 3 << 29 and parse_bytes("2GB") == 2 * 10**9
    assert parse_bytes("4096") == 4096
