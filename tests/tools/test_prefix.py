#!/usr/bin/env python3
"""pkv-sim prefix as a program: its integers against a naive simulation on random traces, against
committed counts on a committed trace, outputs and bad input.

    test_prefix.py PKV-SIM
"""
import csv
import json
import os
import pathlib
import random
import subprocess
import sys
import tempfile
import unittest
import xml.dom.minidom

import prefix_model

SIM = sys.argv.pop(1)
DATA = pathlib.Path(__file__).resolve().parent / "data"
SEED = int(os.environ.get("PKV_SEED", random.randrange(1 << 31)))
FIELDS = ("hit_blocks", "total_blocks", "hit_tokens", "total_tokens")


def run(*args, check=0):
    done = subprocess.run([SIM, "prefix", *map(str, args)], capture_output=True, text=True, timeout=120)
    if done.returncode != check:
        raise AssertionError(f"{args}: exit status {done.returncode}, stderr: {done.stderr}")
    return done


def random_trace(rng, n, block_sizes=(512,)):
    """Conversations that grow, branch, and share system prompts."""
    fresh, paths, requests = iter(range(1000, 1 << 30)), [[0], [1, 2]], []
    for _ in range(n):
        path = rng.choice(paths[-30:] if rng.random() < 0.8 else paths)
        keep = len(path) if rng.random() < 0.7 else rng.randrange(1, len(path) + 1)
        path = path[:keep] + [next(fresh) for _ in range(rng.randrange(0, 6))]
        paths.append(path)
        size = rng.choice(block_sizes)
        last = rng.randrange(1, size + 1)
        ids = path + ([next(fresh)] if rng.random() < 0.5 else [])
        requests.append({"timestamp": 0, "input_length": (len(ids) - 1) * size + last,
                         "output_length": 1, "hash_ids": ids, "block_size": size})
    return requests


class Prefix(unittest.TestCase):
    def setUp(self):
        self.directory = tempfile.TemporaryDirectory()
        self.addCleanup(self.directory.cleanup)

    def write(self, requests, name="trace.jsonl"):
        path = os.path.join(self.directory.name, name)
        with open(path, "w", encoding="utf-8") as file:
            for request in requests:
                file.write(json.dumps(request) + "\n")
        return path

    def test_naive_simulation(self):
        print(f"PKV_SEED={SEED}")
        rng = random.Random(SEED)
        for round_ in range(6):
            requests = random_trace(rng, 250, rng.choice([(512,), (16, 512), (64,)]))
            if round_ % 2:  # ids that are hashes, not numbers from 0 on
                for request in requests:
                    request["hash_ids"] = [(i + 1) * 0x9E3779B97F4A7C15 % (1 << 63) for i in request["hash_ids"]]
            path = self.write(requests)
            capacities = sorted(rng.sample(range(1, 200), 5)) + [300]
            warmup = rng.choice([0, 0.5, 0.37])
            result = json.loads(run("--trace", path, "--policy", ",".join(prefix_model.POLICIES),
                                    "--pages", ",".join(map(str, capacities)), "--warmup", warmup,
                                    "--json", "--verify").stdout)
            self.assertEqual(len(result["results"]), len(prefix_model.POLICIES) * len(capacities))
            for r in result["results"]:
                expected = prefix_model.simulate(requests, r["policy"], r["pages"], warmup)
                self.assertEqual([r[f] for f in FIELDS], expected, (round_, r["policy"], r["pages"]))
                self.assertAlmostEqual(r["hit_rate"], expected[0] / expected[1])

    def test_committed_counts(self):
        expected = json.loads((DATA / "prefix_small.json").read_text())
        result = json.loads(run("--trace", DATA / "prefix_small.jsonl", "--policy", "all", "--pages",
                                "40,150,400,unlimited", "--json", "--verify").stdout)
        got = {f"{r['policy']} {r['pages']}": [r[f] for f in FIELDS] for r in result["results"]}
        self.assertEqual(got, expected)

    def test_optimum_is_a_bound(self):
        path = self.write(random_trace(random.Random(SEED + 1), 600))
        result = json.loads(run("--trace", path, "--policy", "all", "--pages", "60,200", "--json").stdout)
        hits = {(r["policy"], r["pages"]): r["hit_blocks"] for r in result["results"]}
        for (policy, pages), n in hits.items():
            if policy != "opt-bypass":
                self.assertLessEqual(n, hits["opt", pages], (policy, pages))
        self.assertEqual(len({r["total_blocks"] for r in result["results"]}), 1)

    def test_outputs(self):
        a = self.write(random_trace(random.Random(1), 50), "a.jsonl")
        b = self.write(random_trace(random.Random(2), 50), "b.jsonl")
        plot, table = (os.path.join(self.directory.name, n) for n in ("p.svg", "t.csv"))
        done = run("--trace", a, "--trace", b, "--policy", "lru,opt", "--pages", "10,unlimited",
                   "--jobs", 2, "--json", "--csv", table, "--plot", plot)
        traces = json.loads(done.stdout)["traces"]
        self.assertEqual([t["trace"] for t in traces], [a, b])
        with open(table, encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        flat = [r for t in traces for r in t["results"]]
        self.assertEqual([int(r["hit_blocks"]) for r in rows], [r["hit_blocks"] for r in flat])
        self.assertEqual([r["pages"] for r in rows], [str(r["pages"]) for r in flat])
        xml.dom.minidom.parse(plot)
        self.assertIn("lru", run("--trace", a, "--pages", 10).stdout)
        # Bytes instead of pages: a page is 512 tokens of 2 layers x 1 head x 64 x K,V x f16.
        model = "layers=2,kv_heads=1,head_dim=64"
        done = run("--trace", a, "--memory", f"{10 * 512 * 512}", "--model", model, "--policy", "lru",
                   "--json")
        self.assertEqual(json.loads(done.stdout)["results"][0]["pages"], 10)

    def test_bad_input(self):
        path = self.write(random_trace(random.Random(1), 5))
        for args in (["--policy", "best"], ["--policy", "lru,lru"], ["--pages", "0"], ["--pages", ""],
                     ["--pages", "10", "--memory", "1GiB", "--model", "llama-3-8b"],
                     ["--memory", "1GiB"], ["--warmup", "2"], ["--warmup", "x"], ["more"], ["--no"]):
            done = run("--trace", path, *args, check=2)
            self.assertIn("pkv-sim prefix", done.stderr)
            self.assertEqual(done.stdout, "")
        run("--trace", os.path.join(self.directory.name, "none"), check=1)
        lengths = os.path.join(self.directory.name, "lengths.csv")
        with open(lengths, "w", encoding="utf-8") as file:
            file.write("num_prefill_tokens,num_decode_tokens\n10,10\n")
        self.assertIn("hash_ids", run("--trace", lengths, check=1).stderr)
        run("--trace", path, "--memory", "1KiB", "--model", "llama-3-8b", check=1)
        self.assertIn("Usage", run("--help").stdout)


if __name__ == "__main__":
    unittest.main()
