#!/usr/bin/env python3
"""pkv-sim serve as a program: its clock and scheduler against an independent simulation, prefix hits
against counts made by hand, pressure, preemption, requests that never fit, outputs and bad input.

    test_serve.py PKV-SIM
"""
import csv
import json
import os
import random
import subprocess
import sys
import tempfile
import unittest
import xml.dom.minidom

import admission_model

SIM = sys.argv.pop(1)
SEED = int(os.environ.get("PKV_SEED", random.randrange(1 << 31)))

# A machine whose figures are easy to compute with: no shares, no overhead.
LAYERS, KV, Q, DIM, PARAMS = 4, 2, 4, 64, 1e8
MODEL = f"layers={LAYERS},kv_heads={KV},q_heads={Q},head_dim={DIM},params={PARAMS:.0f}"
FLOPS, BANDWIDTH = 1e12, 1e10
HARDWARE = f"flops={FLOPS:.0f},bandwidth={BANDWIDTH:.0f},flops_share=1,bandwidth_share=1,overhead=0"
TOKEN_BYTES = LAYERS * KV * DIM * 2 * 2


def run(*args, check=None):
    done = subprocess.run([SIM, "serve", *map(str, args)], capture_output=True, text=True, timeout=120)
    if check is not None and done.returncode != check:
        raise AssertionError(f"{args}: exit status {done.returncode}, stderr: {done.stderr}")
    return done


def step_seconds(entries):
    """entries: (cached tokens, new tokens) of each sequence in the step."""
    tokens = sum(n for _, n in entries)
    keys = sum(sum(before + k + 1 for k in range(n)) for before, n in entries)
    flops = 2 * PARAMS * tokens + 4 * LAYERS * Q * DIM * keys
    traffic = 2 * PARAMS + TOKEN_BYTES * sum(before + 2 * n for before, n in entries)
    return max(flops / FLOPS, traffic / BANDWIDTH)


def simulate(requests, slots, reserve, chunk, max_seqs):
    """The rules of docs/tools.md for contiguous reservation, written down a second time."""
    now, steps, latency, running, first = 0.0, 0, {}, [], {}
    queue = sorted(range(len(requests)), key=lambda k: (requests[k][0], k))
    lost = []
    while queue or running:
        while queue and requests[queue[0]][0] <= now and len(running) < max_seqs:
            k = queue[0]
            _, i, o = requests[k]
            want = reserve(max(i, 1) + max(o - 1, 0))
            if sum(r["held"] for r in running) + want > slots:
                if running:
                    break
                lost.append(queue.pop(0))
                continue
            queue.pop(0)
            running.append({"k": k, "held": want, "length": 0, "target": max(i, 1), "made": 0, "out": o})
        if not running:
            if queue:
                now = max(now, requests[queue[0]][0])
            continue
        budget, entries = chunk, []
        for r in running:
            r["step"] = 1 if r["length"] >= r["target"] else min(r["target"] - r["length"], budget)
            if r["length"] < r["target"]:
                budget -= r["step"]
            if r["step"]:
                entries.append((r["length"], r["step"]))
        now += step_seconds(entries)
        steps += 1
        for r in list(running):
            r["length"] += r["step"]
            if not r["step"] or r["length"] < r["target"]:
                continue
            if r["made"] < r["out"]:
                r["made"] += 1
                first.setdefault(r["k"], now)
            if r["made"] >= r["out"]:
                latency[r["k"]] = now - requests[r["k"]][0]
                running.remove(r)
    ttft = [first[k] - requests[k][0] for k in first]
    mean = lambda x: sum(x) / len(x)
    return {"steps": steps, "end": now, "ttft": mean(ttft), "latency": mean(list(latency.values())),
            "never_fit": len(lost), "completed": len(latency)}


class Base(unittest.TestCase):
    def setUp(self):
        self.directory = tempfile.TemporaryDirectory()
        self.addCleanup(self.directory.cleanup)

    def path(self, name):
        return os.path.join(self.directory.name, name)

    def trace(self, requests, blocks=None, block=512, name="t.jsonl"):
        """requests: (arrival in seconds, in, out)"""
        with open(self.path(name), "w") as f:
            for k, (at, i, o) in enumerate(requests):
                f.write(json.dumps({"timestamp": at * 1000, "input_length": i, "output_length": o,
                                    "block_size": block, "hash_ids": blocks[k] if blocks else []}) + "\n")
        return self.path(name)

    def serve(self, path, *args):
        done = run("--trace", path, "--model", MODEL, "--hardware", HARDWARE, "--json", "--verify", 1, *args,
                   check=0)
        out = json.loads(done.stdout)
        runs = {r["memory"].split("-")[0]: r for r in out["runs"]}
        for r in out["runs"]:
            self.assertEqual(r["completed"] + r["never_fit"], out["requests"], f"seed {SEED}")
        return runs


class Clock(Base):
    def test_one_request(self):
        runs = self.serve(self.trace([(0, 100, 3)]), "--compare", "oracle")
        prompt = step_seconds([(0, 100)])
        end = prompt + step_seconds([(100, 1)]) + step_seconds([(101, 1)])
        for r in runs.values():
            self.assertEqual(r["steps"], 3)
            self.assertAlmostEqual(r["ttft_seconds"]["mean"], prompt, delta=1e-12)
            self.assertAlmostEqual(r["latency_seconds"]["mean"], end, delta=1e-12)
            self.assertAlmostEqual(r["tpot_seconds"]["mean"], (end - prompt) / 2, delta=1e-12)
            self.assertAlmostEqual(r["output_tokens_per_second"], 3 / end, delta=1e-6)

    def test_nobody_waits_while_the_machine_is_idle(self):
        table = self.path("t.csv")
        self.serve(self.trace([(5 * k, 50, 2) for k in range(4) for _ in range(3)]), "--compare", "none", "--csv",
                   table)
        with open(table, newline="") as f:
            self.assertEqual({float(row["waiting"]) for row in csv.DictReader(f)}, {0.0})

    def random_requests(self, rng, n):
        return [(rng.randrange(0, 4000) / 1000, rng.choice((0, 1, rng.randrange(1, 900))),
                 rng.choice((0, 1, rng.randrange(1, 120)))) for _ in range(n)]

    def compare(self, r, want):
        for key, value in (("steps", want["steps"]), ("completed", want["completed"]),
                           ("never_fit", want["never_fit"])):
            self.assertEqual(r[key], value, f"{key} seed {SEED}")
        for got, value in ((r["ttft_seconds"]["mean"], want["ttft"]),
                           (r["latency_seconds"]["mean"], want["latency"])):
            self.assertAlmostEqual(got, value, delta=1e-9 * max(1, value), msg=f"seed {SEED}")

    def test_contiguous_and_ample_paged_against_a_second_implementation(self):
        rng = random.Random(SEED)
        for chunk, max_seqs, slots in ((2048, 256, 4000), (64, 8, 2000), (100, 3, 700)):
            requests = self.random_requests(rng, 120)
            first = min(r[0] for r in requests)
            requests = [(at - first, i, o) for at, i, o in requests]
            power = lambda n: 1 << (n - 1).bit_length()
            runs = self.serve(self.trace(requests), "--chunk", chunk, "--max-seqs", max_seqs, "--memory",
                              slots * TOKEN_BYTES + 2**23, "--max-tokens", 600)
            slots = (slots * TOKEN_BYTES + 2**23) // TOKEN_BYTES
            self.compare(runs["oracle"], simulate(requests, slots, lambda n: n, chunk, max_seqs))
            self.compare(runs["pow2"], simulate(requests, slots, power, chunk, max_seqs))
            self.compare(runs["max"], simulate(requests, slots, lambda n: max(n, 600), chunk, max_seqs))
            ample = self.serve(self.trace(requests), "--chunk", chunk, "--max-seqs", max_seqs, "--memory", "8GiB",
                               "--compare", "none")
            self.compare(ample["paged"], simulate(requests, 1 << 60, lambda n: n, chunk, max_seqs))
            self.assertEqual(ample["paged"]["preemptions"], 0)


class Prefix(Base):
    def test_hits_are_what_the_block_ids_say(self):
        # Far apart in time: 64-token blocks, pages of 16. The second shares two blocks, the third
        # everything, the fourth nothing.
        path = self.trace([(0, 200, 4), (50, 200, 4), (100, 200, 4), (150, 200, 4)],
                          [[1, 2, 3, 4], [1, 2, 5, 6], [1, 2, 3, 4], [7, 8, 9, 10]], block=64)
        r = self.serve(path, "--compare", "none")["paged"]
        self.assertEqual(r["asked_tokens"], 800)
        # Of 203 tokens 12 pages were finished; the rest of the third prompt is in none.
        self.assertEqual(r["hit_tokens"], 128 + 192)
        self.assertEqual(r["computed_prompt_tokens"], 800 - 128 - 192)
        none = self.serve(path, "--compare", "none", "--no-prefix")["paged"]
        self.assertEqual(none["hit_tokens"], 0)
        self.assertEqual(none["computed_prompt_tokens"], 800)

    def test_hybrids_find_states(self):
        # 64 prompts of 2,200 tokens, one after another, that share 1,600 or 1,500 of them. States lie 16, 32, 64
        # pages before a prompt's last page end, then where the second had pages and no state.
        for shared, found in ((1600, 1600), (1500, 1488)):
            n, unique = shared // 100, (2200 - shared) // 100
            blocks = [list(range(n)) + [1000 * (k + 1) + j for j in range(unique)] for k in range(64)]
            path = self.trace([(50 * k, 2200, 1) for k in range(64)], blocks, block=100)
            r = self.serve(path, "--state-bytes", "1MiB", "--memory", "1GiB", "--verify", 7)
            self.assertEqual(list(r), ["paged"])
            self.assertEqual(r["paged"]["hit_tokens"], 1168 + 62 * found)
            self.assertEqual(r["paged"]["completed"], 64)
            none = self.serve(path, "--state-bytes", "1MiB", "--no-prefix", "--verify", 7)["paged"]
            self.assertEqual(none["hit_tokens"], 0)

    def test_hybrids_under_pressure(self):
        rng = random.Random(SEED)
        blocks = [list(range(rng.randrange(1, 9))) + [100 * (k + 1) + j for j in range(4)] for k in range(60)]
        requests = [(rng.randrange(0, 100) / 100, 64 * len(b), rng.randrange(1, 60)) for b in blocks]
        path = self.trace(requests, blocks, block=64)
        for admission in ("safe", "watermark"):
            self.serve(path, "--state-bytes", "512KiB", "--memory", "24MiB", "--admission", admission)

    def test_a_page_is_shared_in_part(self):
        # The second prompt is the beginning of the first and ends inside a page: all but its last
        # token, which the model must run on, is found.
        path = self.trace([(0, 160, 1), (50, 90, 1)], [[1, 2], [1, 2]], block=80)
        r = self.serve(path, "--compare", "none")["paged"]
        self.assertEqual(r["hit_tokens"], 89)

    def test_requests_that_arrive_together_share(self):
        # The first computes the 512 tokens that all eight begin with; the others wait for them.
        path = self.trace([(0, 600, 4)] * 8, [[1, 2, 3, 4, 10 + k] for k in range(8)], block=128)
        r = self.serve(path, "--compare", "none")["paged"]
        self.assertEqual(r["hit_tokens"], 7 * 512)
        self.assertEqual(r["computed_prompt_tokens"], 512 + 8 * 88)
        self.assertEqual(r["followers"], 7)

    def test_who_shares_little_does_not_wait(self):
        # 128 of 600 are less than a quarter of the work; 144 of 560 are more.
        for prompt, shared, waits in ((600, 128, 0), (560, 144, 1)):
            path = self.trace([(0, prompt, 4)] * 2, [[1, 10 + k] for k in range(2)], block=shared)
            r = self.serve(path, "--compare", "none")["paged"]
            self.assertEqual(r["followers"], waits, (prompt, shared))
            self.assertEqual(r["hit_tokens"], shared * waits, (prompt, shared))

    def test_requests_behind_a_follower_pass(self):
        # One place is taken by the leader, the second goes to the stranger, not to the follower.
        path = self.trace([(0, 4000, 2), (0, 4000, 2), (0, 4000, 2)], [[1], [1], [2]], block=4096)
        r = self.serve(path, "--compare", "none", "--max-seqs", 2, "--chunk", 512)["paged"]
        self.assertEqual((r["followers"], r["hit_tokens"], r["running_peak"]), (1, 3999, 2))

    def test_a_prompt_is_matched_again_before_each_chunk(self):
        # 400 of 2000 tokens are too few to wait for, but the first has them before the second's turn comes,
        # or (chunks of 500: 450 + 50) while it computes them, too.
        for chunk, first, computed in ((512, 600, 600 + 1600), (500, 450, 450 + 50 + 1600)):
            for admission in ("watermark", "safe"):
                path = self.trace([(0, first, 1), (0, 2000, 1)], [[1, 2], [1, 3, 4, 5, 6]], block=400)
                r = self.serve(path, "--compare", "none", "--chunk", chunk, "--admission", admission)["paged"]
                self.assertEqual((r["followers"], r["hit_tokens"], r["computed_prompt_tokens"]),
                                 (0, first + 2000 - computed, computed))

    def test_many_who_share_are_computed_once(self):
        rng = random.Random(SEED)
        for admission in ("watermark", "safe"):
            blocks = [[rng.randrange(3)] for _ in range(60)]
            for b in blocks:  # an id has one parent
                while len(b) < 6:
                    b.append(b[-1] * 3 + rng.randrange(3) + 100)
            path = self.trace([(rng.random() / 10, 6 * 64 + 20, 8) for _ in blocks],
                              [b + [10**6 + k] for k, b in enumerate(blocks)], block=64)
            r = self.serve(path, "--compare", "none", "--chunk", rng.choice((64, 300, 2048)), "--admission",
                           admission)["paged"]
            distinct = {tuple(b[:k]) for b in blocks for k in range(1, 7)}
            # What is computed twice is less than a quarter of somebody's work.
            self.assertLessEqual(r["computed_prompt_tokens"], 64 * len(distinct) + 60 * (20 + 101), f"seed {SEED}")
            self.assertEqual(r["computed_prompt_tokens"] + r["hit_tokens"], r["asked_tokens"], f"seed {SEED}")

    def test_every_policy_finishes(self):
        names = ("fifo", "lru", "lru-leaf", "lfu", "sieve", "s3fifo", "arc", "2q", "slru",
                 "priority", "adaptive")
        for name in names:
            out = json.loads(run("--synthetic", "chat,requests=60", "--memory", "1GiB", "--policy", name, "--json",
                                 "--compare", "none", check=0).stdout)
            self.assertEqual(out["runs"][0]["completed"] + out["runs"][0]["never_fit"], 60, name)


class SharedPrompt(Base):
    """150 requests that share a system prompt of 4096 tokens: what they share is counted once."""

    def throughput(self, memory, rule):
        workload = admission_model.Workload()
        requests = workload.trace()
        path = self.trace([r[:3] for r in requests], [r[3] for r in requests])
        done = run("--trace", path, "--model", "llama-3-8b", "--memory", memory, "--admission", rule,
                   "--compare", "none", "--json", check=0)
        result = json.loads(done.stdout)["runs"][0]
        self.assertEqual(result["completed"], workload.n)
        if rule == "safe":
            self.assertEqual(result["preemptions"], 0)
        exact = workload.run(memory, {"watermark": "watermark", "safe": "final"}[rule])
        return result["output_tokens_per_second"], exact

    def test_watermark_is_as_good_as_the_exact_rule(self):
        for mib in 800, 1024, 1536:
            got, exact = self.throughput(mib << 20, "watermark")
            self.assertGreaterEqual(got, 0.97 * exact, f"{mib} MiB: {got:.1f}, exact {exact:.1f}")
            self.assertLess(got, 1.05 * exact, f"{mib} MiB: {got:.1f}, exact {exact:.1f}")

    def test_safe_is_as_good_as_final_lengths(self):
        for mib in 800, 1024, 1536:
            got, exact = self.throughput(mib << 20, "safe")
            self.assertGreaterEqual(got, 0.97 * exact, f"{mib} MiB: {got:.1f}, exact {exact:.1f}")


class Pressure(Base):
    # 1024 tokens of memory each, roughly; the library's regions are 2 MiB
    def test_preemption_recomputes_and_loses_nothing(self):
        path = self.trace([(0, 1500, 900), (0, 1500, 900), (0, 1500, 900)])
        r = self.serve(path, "--memory", "10MiB", "--watermark", 0, "--compare", "none")["paged"]
        self.assertGreater(r["preemptions"], 0)
        self.assertGreater(r["recomputed_tokens"], 0)
        self.assertEqual(r["completed"], 3)
        self.assertEqual(r["output_tokens"], 2700)
        # The last sampled token of a preempted sequence was never fed back: it is no recomputation.
        more = r["computed_prompt_tokens"] - 4500 - r["recomputed_tokens"]
        self.assertGreaterEqual(more, 0)
        self.assertLessEqual(more, r["preemptions"])
        self.assertLessEqual(r["used_bytes_peak"], 10 << 20)

    def test_safe_admission_never_preempts(self):
        path = self.trace([(k / 10, 1500, 900) for k in range(12)])
        r = self.serve(path, "--memory", "12MiB", "--admission", "safe", "--compare", "none")["paged"]
        self.assertEqual(r["preemptions"], 0)
        self.assertEqual(r["recomputed_tokens"], 0)
        self.assertEqual(r["completed"], 12)

    def test_limit_changes(self):
        requests = [(k / 20, 800, 300) for k in range(40)]
        path = self.trace(requests)
        r = self.serve(path, "--memory", "64MiB", "--pressure", "1s:-80%,6s:+80%", "--compare", "max",
                       "--csv", self.path("t.csv"))
        for run_ in r.values():
            self.assertEqual(run_["limit_changes"], 2)
            self.assertEqual(run_["completed"], 40)
        with open(self.path("t.csv"), newline="") as f:
            rows = list(csv.DictReader(f))
        self.assertEqual({float(row["limit_bytes"]) for row in rows}, {67108864.0, 13421773.0})
        for row in rows:
            self.assertLessEqual(float(row["used_bytes"]), 64 << 20)
        self.assertEqual(sum(int(row["completed"]) for row in rows), 40)
        self.assertEqual(sum(int(row["output_tokens"]) for row in rows), 40 * 300)
        for a, b in zip(rows, rows[1:]):
            self.assertEqual(a["end_s"], b["start_s"])

    def test_a_limit_that_what_is_used_fits_preempts_nobody(self):
        # 64 requests grow side by side and 39 of them end: their pages lie between those of the 25 others.
        long = [k % 5 in (0, 3) and k < 62 for k in range(64)]
        for model, token_bytes in (("smollm2-135m", 30 * 3 * 64 * 4), ("llama-3-8b", 32 * 8 * 128 * 4),
                                   ("gemma-3-4b", 34 * 4 * 256 * 4), ("qwen2.5-7b", 28 * 4 * 128 * 4)):
            path = self.trace([(0, 600, 80 if k else 10) for k in long])
            table = self.path("t.csv")
            args = ("--trace", path, "--compare", "none", "--model", model, "--watermark", 0, "--verify", 1,
                    "--memory", "16GiB", "--json")
            calm = json.loads(run(*args, "--csv", table, check=0).stdout)["runs"][0]
            self.assertEqual(calm["preemptions"], 0)
            with open(table, newline="") as f:
                at = next(float(row["start_s"]) for row in csv.DictReader(f) if 0 < float(row["running"]) <= sum(long))
            most = sum(long) * 43 * 16 * token_bytes  # 679 tokens each
            limit = int(1.02 * (most + calm["metadata_bytes_peak"]))
            shrunk = json.loads(run(*args, "--pressure", f"{at + 1e-9}s:{limit}", check=0).stdout)["runs"][0]
            self.assertEqual((shrunk["limit_changes"], shrunk["preemptions"], shrunk["completed"]), (1, 0, 64), model)

    def test_the_oldest_stays(self):
        # 266 MiB of 2 MiB pages at 300 MiB; younger ones give way.
        path = self.trace([(0, 1900, 220)] + [(0.01 * k, 1900, 220) for k in range(1, 6)])
        r = json.loads(run("--trace", path, "--compare", "none", "--model", "llama-3-8b", "--memory", "2GiB", "--json",
                           "--chunk", 64, "--pressure", "2s:300MiB", check=0).stdout)["runs"][0]
        self.assertEqual((r["completed"], r["never_fit"]), (6, 0))
        self.assertEqual(r["preemptions"], 5)

    def test_requests_that_never_fit_are_named(self):
        path = self.trace([(0, 100, 5), (0, 900000, 5), (1, 100, 5)])
        r = self.serve(path, "--memory", "16MiB", "--compare", "oracle")
        for run_ in r.values():
            self.assertEqual(run_["completed"], 2)
            self.assertEqual(run_["never_fit"], 1)
            self.assertEqual(run_["never_fit_lines"], [2])
        text = run("--trace", path, "--model", MODEL, "--memory", "16MiB", check=0).stdout
        self.assertIn("1 requests can never fit the memory; the first on line 2", text)

    def test_what_cannot_end_does_not_begin(self):
        # Between what the memory is and what of it can be pages: either a request ends, or nothing of it
        # is computed. The same with others before it.
        tokens = (16 << 20) // TOKEN_BYTES
        for model in (MODEL, MODEL + ",window=256,full_every=2"):
            for before in ([], [(0, 100, 20)]):
                for length in range(tokens - 1100, tokens + 50, 37):
                    for admission in ("watermark", "safe"):
                        path = self.trace(before + [(0, length - 499, 500)])
                        r = self.serve(path, "--memory", "16MiB", "--compare", "none", "--model", model,
                                       "--admission", admission)["paged"]
                        self.assertEqual(r["preemptions"], 0, length)
                        self.assertEqual(r["computed_prompt_tokens"],
                                         100 * len(before) + (0 if r["never_fit"] else length - 499), length)

    def test_a_request_waits_for_the_limit_to_grow(self):
        path = self.trace([(0, 100, 5), (0, 9000, 5)])
        r = self.serve(path, "--memory", "16MiB", "--pressure", "100s:64MiB", "--compare", "oracle")
        for run_ in r.values():
            self.assertEqual(run_["completed"], 2)
            self.assertGreater(run_["simulated_seconds"], 100)

    def test_random_scenarios_finish(self):
        rng = random.Random(SEED)
        for _ in range(12):
            args = ["--synthetic", f"{rng.choice(('chat', 'lengths'))},requests={rng.randrange(1, 60)},"
                    f"seed={rng.randrange(1000)},rate={rng.choice((0.1, 100))},max_tokens=5000",
                    "--memory", rng.choice(("64MiB", "300MiB", "2GiB")),
                    "--model", rng.choice(("llama-3-8b", "gemma-3-4b", "mistral-7b", "smollm2-135m")),
                    "--page-tokens", rng.choice((8, 16, 128)), "--chunk", rng.choice((7, 2048)),
                    "--admission", rng.choice(("watermark", "safe")), "--verify", 1, "--json"]
            if rng.random() < 0.6:
                args += ["--pressure", rng.choice(("5s:-50%,20s:+50%", "1s:-99%,90s:+99%", "2s:100MiB"))]
            out = json.loads(run(*args, check=0).stdout)
            for r in out["runs"]:
                self.assertEqual(r["completed"] + r["never_fit"], out["requests"], f"seed {SEED}: {args}")


class Outputs(Base):
    def test_table_plot_and_help(self):
        plot = self.path("p.svg")
        text = run("--synthetic", "chat,requests=40", "--pressure", "5s:-50%", "--plot", plot, check=0).stdout
        for word in ("paged", "max-", "pow2", "oracle", "first token (s)", "hit rate"):
            self.assertIn(word, text)
        with open(plot) as f:
            self.assertGreater(len(f.read()), 2000)
        self.assertEqual(xml.dom.minidom.parse(plot).documentElement.tagName, "svg")
        self.assertIn("Usage: pkv-sim serve", run("--help", check=0).stdout)

    def test_csv_on_stdout_is_alone_there(self):
        rows = list(csv.reader(run("--synthetic", "chat,requests=20", "--csv", "-", check=0).stdout.splitlines()))
        self.assertEqual({len(row) for row in rows}, {12})

    def test_deterministic(self):
        args = ("--synthetic", "chat,requests=80", "--memory", "1GiB", "--json", "--compare", "none")
        self.assertEqual(run(*args, check=0).stdout, run(*args, check=0).stdout)

    def test_bad_input(self):
        cases = (
            (2, "--memory: '1XB' has an unknown unit", ["--memory", "1XB"]),
            (2, "--pressure: '60s' is not TIME:CHANGE", ["--pressure", "60s"]),
            (2, "--pressure: '50%' needs a sign", ["--pressure", "60s:50%"]),
            (2, "--hardware: 'b200' is not", ["--hardware", "b200"]),
            (2, "--hardware: bandwidth=… is missing", ["--hardware", "flops=1e12"]),
            (2, "--admission: 'eager' is not", ["--admission", "eager"]),
            (2, "--compare: 'best' is not", ["--compare", "best"]),
            (2, "--policy: unknown policy 'x'", ["--policy", "x"]),
            (2, "--policy: opt needs to know the future", ["--policy", "opt"]),
            (2, "--page-tokens: 24 is not", ["--page-tokens", "24"]),
            (2, "--max-seqs: 0 is not in", ["--max-seqs", "0"]),
            (2, "--speed: nan", ["--speed", "nan"]),
            (1, "No such file", ["--trace", "/nonexistent"]),
            (1, "paged: ", ["--memory", "1KiB"]),
        )
        for status, message, args in cases:
            done = run(*args)
            self.assertEqual(done.returncode, status, f"{args}: {done.stderr}")
            if "nan" not in message:
                self.assertIn(message, done.stderr)
            self.assertTrue(done.stderr.startswith("pkv-sim serve: "), done.stderr)
            self.assertEqual(done.stdout, "")


if __name__ == "__main__":
    unittest.main()
