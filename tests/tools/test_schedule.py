#!/usr/bin/env python3
"""The schedule of pkv-sim serve, windowed models above all, against an independent simulation (serve_model.py);
that every token is accounted for; who may be preempted, and who must not wait.

    test_schedule.py PKV-SIM [WORLDS]
"""
import json
import math
import os
import random
import subprocess
import sys
import tempfile
import unittest

import serve_model

WORLDS = int(sys.argv.pop(2)) if len(sys.argv) > 2 else 60
SIM = sys.argv.pop(1)
SEED = int(os.environ.get("PKV_SEED", random.randrange(1 << 31)))

# Pages of a layer are 512 KiB: the library's own memory is less than the rest of the limit, so that the
# number of pages does not depend on it.
KV, Q, DIM, PARAMS = 16, 32, 512, 1e8
LAYER_PAGE = serve_model.PAGE * KV * DIM * 2 * 2
FLOPS, BANDWIDTH = 1e13, 1e11
HARDWARE = f"flops={FLOPS:.0f},bandwidth={BANDWIDTH:.0f},flops_share=1,bandwidth_share=1,overhead=0"
MIB = 1 << 20


def serve(*args, status=0):
    done = subprocess.run([SIM, "serve", *map(str, args)], capture_output=True, text=True, timeout=120)
    if done.returncode != status:
        raise AssertionError(f"{args}: exit status {done.returncode}, stderr: {done.stderr}")
    return done


def runs(*args):
    return json.loads(serve(*args, "--json").stdout)["runs"]


class Trace(unittest.TestCase):
    def setUp(self):
        self.directory = tempfile.TemporaryDirectory()
        self.addCleanup(self.directory.cleanup)

    def path(self, name):
        return os.path.join(self.directory.name, name)

    def trace(self, requests, name="t.jsonl"):
        """requests: (arrival in seconds, in, out)"""
        with open(self.path(name), "w") as f:
            for at, i, o in requests:
                f.write(json.dumps({"timestamp": at * 1000, "input_length": i, "output_length": o,
                                    "hash_ids": []}) + "\n")
        return self.path(name)


def world(rng):
    """A model, requests and settings in which memory is short."""
    every = rng.choice((1, 2, 3))
    layers = 6
    window = rng.choice((0, 40, 100, 256)) if every > 1 else rng.choice((0, 64, 300))
    if window == 0:
        groups, spec = [(layers, 0)], ""
    elif every == 1:
        groups, spec = [(layers, window)], f",window={window}"
    else:
        groups = [(layers // every, 0), (layers - layers // every, window)]
        spec = f",window={window},full_every={every}"
    model = serve_model.Model(groups, KV, Q, DIM, PARAMS, FLOPS, BANDWIDTH)
    spec = f"layers={layers},kv_heads={KV},q_heads={Q},head_dim={DIM},params={PARAMS:.0f}" + spec
    unit = LAYER_PAGE * math.gcd(*(n for n, _ in groups))
    some_limit = lambda: rng.randrange(75, 350) * MIB // unit * unit + unit - 1024
    limit = some_limit()
    changes = []
    if rng.random() < 0.3:
        changes = sorted((rng.randrange(1, 2000) / 1000, some_limit())
                         for _ in range(rng.randrange(1, 4)))
    # Whether somebody who needs nearly everything fits hangs on the library's own memory.
    limits = [limit] + [to for _, to in changes]
    check = serve_model.Schedule(model, [], limit, 1, 1)
    requests = []
    longest = rng.choice((100, 600, 1500))
    for _ in range(rng.randrange(2, 40)):
        while True:
            r = (rng.randrange(0, 300) / 1000, rng.choice((0, rng.randrange(1, longest), rng.randrange(1, 100))),
                 rng.choice((0, 1, rng.randrange(1, 600), rng.randrange(1, 600))))
            check.requests = [r]
            size = check.final_bytes(0)
            if all(size <= to - to // 32 - 12 * MIB or size > to + check.page_bytes[-1] * 2 for to in limits):
                break
        requests.append(r)
    first = min(r[0] for r in requests)
    requests = [(at - first, i, o) for at, i, o in requests]
    return model, spec, requests, limit, rng.choice((7, 64, 300, 2048)), rng.choice((2, 5, 64)), changes


class Independent(Trace):
    def test_random_worlds(self):
        rng = random.Random(SEED)
        seen = {"windowed": 0, "preemptions": 0, "recomputed_tokens": 0, "never_fit": 0, "limit_changes": 0}
        for number in range(WORLDS):
            model, spec, requests, limit, chunk, max_seqs, changes = world(rng)
            want = serve_model.Schedule(model, requests, limit, chunk, max_seqs, changes=changes).run()
            args = ["--trace", self.trace(requests), "--model", spec, "--hardware", HARDWARE, "--memory", limit,
                    "--chunk", chunk, "--max-seqs", max_seqs, "--watermark", 0, "--compare", "none", "--verify", 50, "--no-prefix"]
            if changes:
                args += ["--pressure", ",".join(f"{at}s:{to}" for at, to in changes)]
            got = runs(*args)[0]
            told = f"seed {SEED}, world {number}: {args}"
            for key in ("completed", "never_fit", "steps", "preemptions", "computed_tokens",
                        "computed_prompt_tokens", "recomputed_tokens", "used_bytes_peak"):
                self.assertEqual(got[key], want[key], f"{key}, {told}")
            for key, mean in (("ttft_seconds", "ttft"), ("latency_seconds", "latency")):
                if want[mean] is not None:
                    self.assertAlmostEqual(got[key]["mean"], want[mean], delta=1e-9 * max(1, want[mean]), msg=told)
            for key in seen:
                seen[key] += any(w for _, w in model.groups) if key == "windowed" else want[key] > 0
        print(f"\nseed {SEED}: {WORLDS} worlds equal, of these with {seen}")
        if WORLDS >= 60:
            for key, n in seen.items():
                self.assertGreater(n, 0, f"{key}, seed {SEED}")


class Conservation(Trace):
    """Without pressure what is computed is every final length, and what was computed again."""

    def test_random_windowed_models(self):
        rng = random.Random(SEED + 1)
        preempted = 0
        for number in range(WORLDS):
            kind = rng.choice(("lengths", "chat"))
            spec = (f"{kind},requests={rng.randrange(5, 80)},seed={rng.randrange(1 << 30)},"
                    f"rate={rng.choice((1, 20, 100))},max_tokens={rng.choice((2000, 5000))}")
            args = ["--synthetic", spec, "--compare", "none", "--model",
                    rng.choice(("gemma-3-4b", "mistral-7b", f"llama-3-8b,window={rng.choice((64, 500, 2000))},"
                                f"full_every={rng.randrange(2, 6)}")),
                    "--memory", f"{rng.randrange(256, 1500)}MiB", "--chunk", rng.choice((100, 512, 2048)),
                    "--page-tokens", rng.choice((8, 16, 64)), "--verify", 0,
                    "--admission", rng.choice(("watermark", "watermark", "safe"))]
            r = runs(*args)[0]
            told = f"seed {SEED}, world {number}: {args}"
            if not r["never_fit"]:
                finals = r["prompt_tokens"] + r["output_tokens"] - r["completed"]
                short = finals - (r["computed_tokens"] - r["recomputed_tokens"] + r["skipped_tokens"])
                # A prompt of 0 counts as 1, an answer of 0 or 1 feeds nothing back: synthetic ones have both.
                self.assertEqual(short, 0, told)
            self.assertLessEqual(r["recomputed_tokens"], r["computed_tokens"], told)
            if "safe" in args:
                self.assertEqual((r["preemptions"], r["recomputed_tokens"]), (0, 0), told)
            preempted += r["preemptions"] > 0
        print(f"\nseed {SEED}: {WORLDS} runs conserve tokens, {preempted} of them with preemptions")


class Windows(Trace):
    def test_two_long_prompts_are_not_torn_from_each_other(self):
        r = runs("--trace", self.trace([(0, 8000, 100)] * 2), "--model", "gemma-3-4b", "--memory", "600MiB",
                 "--compare", "none")[0]
        self.assertEqual((r["preemptions"], r["recomputed_tokens"], r["computed_prompt_tokens"]), (0, 0, 16000))

    def test_short_memory_does_not_thrash(self):
        r = runs("--synthetic", "lengths,requests=200,seed=98,rate=20", "--model", "gemma-3-4b", "--memory", "1GiB",
                 "--compare", "none")[0]
        self.assertLess(r["preemptions"], 100)
        self.assertLess(r["recomputed_tokens"], r["computed_tokens"] / 4)


class Safe(Trace):
    def test_nothing_is_preempted_without_pressure(self):
        for spec, model, memory in (("chat,requests=200,seed=90,rate=5", "qwen2.5-7b", "512MiB"),
                                    ("chat,requests=300,rate=20", "llama-3-8b", "2GiB"),
                                    ("chat,requests=300,rate=20", "gemma-3-4b", "1GiB")):
            r = runs("--synthetic", spec, "--model", model, "--memory", memory, "--admission", "safe", "--compare",
                     "none")[0]
            self.assertEqual((r["preemptions"], r["recomputed_tokens"]), (0, 0), spec)


class Impossible(Trace):
    def test_one_that_cannot_run_lets_the_others_pass(self):
        # Alone, and behind one that runs for long; a later change of the limit is no reason to wait.
        others = [(0.1 * k, 100, 5) for k in range(50)]
        for before in ([], [(0, 200, 2000)]):
            calm = runs("--trace", self.trace(before + others), "--memory", "2GiB", "--compare", "oracle")
            path = self.trace(before + [(0, 10**6, 5)] + others)
            for change in ([], ["--pressure", "1000s:-10%"]):
                for quiet, r in zip(calm, runs("--trace", path, "--memory", "2GiB", "--compare", "oracle", *change)):
                    self.assertEqual((r["completed"], r["never_fit"]), (len(before + others), 1))
                    self.assertAlmostEqual(r["ttft_seconds"]["mean"], quiet["ttft_seconds"]["mean"], delta=1e-9)

    def test_it_runs_when_the_limit_has_grown(self):
        path = self.trace([(0, 20000, 5)] + [(0.1 * k, 100, 5) for k in range(5)])
        r = runs("--trace", path, "--memory", "1GiB", "--pressure", "30s:8GiB", "--compare", "none")[0]
        self.assertEqual((r["completed"], r["never_fit"]), (6, 0))
        self.assertLess(r["ttft_seconds"]["p50"], 1)
        self.assertGreater(r["ttft_seconds"]["max"], 30)


if __name__ == "__main__":
    unittest.main()
