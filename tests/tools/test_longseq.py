#!/usr/bin/env python3
"""pkv-sim longseq as a program: the bound, figures that known patterns force, the growth without a
policy, outputs and bad input.

    test_longseq.py PKV-SIM
"""
import csv
import io
import json
import os
import subprocess
import sys
import tempfile
import unittest
import xml.dom.minidom

SIM = sys.argv.pop(1)
FIELDS = {"policy", "pattern", "budget_tokens", "page_tokens", "steps", "resident_tokens_max",
          "pages_evicted", "mass_retained", "mass_retained_oracle", "output_error", "regret_rate",
          "us_per_token_first_tenth", "us_per_token_last_tenth"}
SMALL = ["--sequences", 2, "--tokens", 2400, "--samples", 20, "--model",
         "layers=2,kv_heads=1,q_heads=4,head_dim=64"]
ALL = "window,sink,mass,h2o,tova,obs,keydiff,lru-mass,random,topk"


def run(*args, check=0):
    done = subprocess.run([SIM, "longseq", *map(str, args)], capture_output=True, text=True,
                          timeout=250)
    if done.returncode != check:
        raise AssertionError(f"{args}: exit status {done.returncode}, stderr: {done.stderr}")
    return done


def results(*args):
    document = json.loads(run(*SMALL, "--json", *args).stdout)
    return {(r["policy"], r["pattern"], r["budget_tokens"]): r for r in document["results"]}


class LongSeq(unittest.TestCase):
    def test_every_policy_keeps_the_bound(self):
        found = results("--budget", "256,500", "--policy", ALL, "--page-tokens", 32)
        self.assertEqual(len(found), 20)
        for (policy, _, budget), r in found.items():
            self.assertLessEqual(FIELDS, set(r))
            self.assertEqual(r["steps"], 2 + 2100)
            self.assertEqual(r["page_tokens"], 32)
            self.assertEqual(r["samples"], 20)
            pages = budget // 32
            if policy != "topk":
                self.assertLessEqual(r["resident_tokens_max"], (pages + 1) * 32)
                self.assertGreaterEqual(r["resident_tokens_max"], pages * 32)
                self.assertEqual(r["pages_evicted"], 2 * (2400 // 32 - pages))
                self.assertGreaterEqual(r["regret_rate"], 0)
            else:
                self.assertEqual(r["resident_tokens_max"], 2400)
            self.assertLessEqual(r["mass_retained"], r["mass_retained_oracle"] + 1e-6)
            self.assertGreater(r["us_per_token_last_tenth"], 0)

    def test_patterns_force_the_figures(self):
        found = results("--budget", 512, "--policy", "window,sink,mass,topk,random", "--pattern",
                        "sinks,local,needle,uniform")

        def kept(policy, pattern):
            return found[policy, pattern, 512]["mass_retained"]

        def error(policy, pattern):
            return found[policy, pattern, 512]["output_error"]

        self.assertLess(kept("window", "sinks"), kept("sink", "sinks") - 0.1)
        self.assertGreater(kept("sink", "sinks"), 0.95)
        self.assertLess(error("sink", "sinks"), 0.1)
        for policy in "window", "sink", "mass", "topk":
            self.assertGreater(kept(policy, "local"), 0.95)
        for policy in "sink", "window", "random":
            self.assertLess(kept(policy, "needle"), kept("mass", "needle") - 0.1)
        self.assertGreater(kept("mass", "needle"), 0.9)
        self.assertGreater(kept("topk", "needle"), 0.95)
        self.assertLess(error("topk", "needle"), error("sink", "needle"))
        for policy in "window", "sink", "mass", "topk", "random":
            # Between 528 of 300 tokens (all kept) and 528 of 2400: the mean of 528 / n is 0.44.
            self.assertAlmostEqual(kept(policy, "uniform"), 0.48, delta=0.08)
        self.assertGreater(found["window", "sinks", 512]["regret_rate"], 0.9)
        self.assertLess(found["mass", "needle", 512]["regret_rate"], 0.1)

    def test_no_policy_explodes(self):
        found = results("--policy", "none,sink", "--budget", 256, "--memory", "2MiB")
        none, sink = found["none", "mixed", 0], found["sink", "mixed", 256]
        self.assertTrue(none["exhausted"])
        self.assertLess(none["tokens_reached"], 2400)
        self.assertEqual(none["resident_tokens_max"], none["tokens_reached"])
        self.assertAlmostEqual(none["mass_retained"], 1, places=5)
        self.assertLess(none["output_error"], 0.01)  # the cache's own type
        self.assertFalse(sink["exhausted"])
        self.assertEqual(sink["tokens_reached"], 2400)
        self.assertLess(sink["memory_bytes_max"], none["memory_bytes_max"])
        memory = [p["memory_bytes"] for p in sink["timeline"][25:]]
        self.assertLess(max(memory), 1.3 * min(memory))  # digests for the regret meter

    def test_same_seed_same_figures(self):
        def figures(seed):
            return [{k: v for k, v in r.items() if not k.startswith("us_") and k != "timeline"}
                    for r in results("--policy", "mass,random", "--budget", 256, "--seed",
                                     seed).values()]
        self.assertEqual(figures(3), figures(3))
        self.assertNotEqual(figures(3), figures(4))

    def test_outputs(self):
        table = run(*SMALL, "--budget", 256, "--policy", "sink").stdout
        self.assertIn("mass kept", table)
        rows = list(csv.DictReader(io.StringIO(
            run(*SMALL, "--budget", 256, "--policy", "sink,none", "--json", "--csv", "/dev/stderr")
            .stderr)))
        self.assertEqual({r["policy"] for r in rows}, {"sink", "none"})
        self.assertEqual(float(rows[-1]["tokens"]), 2400)
        alone = list(csv.reader(run(*SMALL, "--budget", 256, "--policy", "sink", "--csv", "-").stdout.splitlines()))
        self.assertEqual({len(row) for row in alone}, {10})
        with tempfile.TemporaryDirectory() as directory:
            path = os.path.join(directory, "plot.svg")
            run(*SMALL, "--budget", 256, "--policy", "sink,none", "--plot", path)
            xml.dom.minidom.parse(path)

    def test_bad_input(self):
        for args in (["--policy", "best"], ["--policy", ""], ["--pattern", "zigzag"],
                     ["--budget", "0"], ["--budget", "x"], ["--tokens", "0"], ["--model", "nope"],
                     ["--model", "layers=1,kv_heads=1,head_dim=32"], ["--page-tokens", "24"],
                     ["--prompt", "30", "--tokens", "20"], ["--what"], ["extra"],
                     ["--policy", "callback"]):
            done = run(*args, check=2)
            self.assertIn("pkv-sim longseq", done.stderr)
        failed = run(*SMALL, "--policy", "sink", "--csv", "/nonexistent/x.csv", "--budget", 256,
                     check=1)
        self.assertIn("/nonexistent/x.csv", failed.stderr)


if __name__ == "__main__":
    unittest.main()
