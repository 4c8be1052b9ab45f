#!/usr/bin/env python3
"""pkv-sim waste as a program: figures against an independent computation (token by token, no closed
forms), outputs, and what it says about bad input.

    test_waste.py PKV-SIM
"""
import csv
import gzip
import io
import json
import lzma
import os
import random
import subprocess
import sys
import tempfile
import unittest
import xml.dom.minidom

SIM = sys.argv.pop(1)
SEED = int(os.environ.get("PKV_SEED", random.randrange(1 << 31)))
PAGES = (8, 16, 32, 64, 128)


def run(*args, check=None, stdin=None):
    done = subprocess.run([SIM, *map(str, args)], capture_output=True, text=True, input=stdin, timeout=120)
    if check is not None and done.returncode != check:
        raise AssertionError(f"{args}: exit status {done.returncode}, stderr: {done.stderr}")
    return done


def waste(path, *args):
    out = json.loads(run("waste", "--trace", path, "--json", *args, check=0).stdout)
    return out, {s["scheme"]: s for s in out["schemes"]}


def held_paged(page):
    return lambda total, n: -(-n // page) * page


def fractions(requests, held, fits=lambda total: True):
    """Literal reading of the definitions: held(total, n) = tokens held when n are in use."""
    served = used = reserved = used_steps = reserved_steps = 0
    for i, o in requests:
        total = i + o
        if not fits(total):
            continue
        served += 1
        used += total
        reserved += held(total, total)
        for n in range(i + 1, total + 1) if o else [i]:
            used_steps += n
            reserved_steps += held(total, n)
    return (served, 1 - used / reserved if reserved else None,
            1 - used_steps / reserved_steps if reserved_steps else None)


def power_of_two(n):
    p = 1
    while p < n:
        p *= 2
    return p


def expected(requests):
    out = {f"paged-{p}": fractions(requests, held_paged(p)) for p in PAGES}
    for n in (2048, 8192, 32768, 131072):
        out[f"max-{n}"] = fractions(requests, lambda total, used, n=n: n, lambda total, n=n: total <= n)
    out["pow2"] = fractions(requests, lambda total, used: power_of_two(total))
    out["oracle"] = fractions(requests, lambda total, used: total)
    return out


def random_requests(rng, n):
    edges = (0, 1, 7, 8, 9, 15, 16, 17, 127, 128, 129, 2047, 2048, 2049)
    pick = lambda: rng.choice(edges) if rng.random() < 0.4 else int(rng.lognormvariate(5, 1.3))
    out = [(pick(), pick()) for _ in range(n)] + [(40000, 3), (5, 0), (0, 5)]
    return [(i, o) for i, o in out if i + o > 0]


class Files(unittest.TestCase):
    def setUp(self):
        self.directory = tempfile.TemporaryDirectory()
        self.addCleanup(self.directory.cleanup)

    def path(self, name):
        return os.path.join(self.directory.name, name)

    def write(self, name, data):
        mode = "wb" if isinstance(data, bytes) else "w"
        with open(self.path(name), mode, **({} if mode == "wb" else {"newline": ""})) as f:
            f.write(data)
        return self.path(name)


def mooncake(requests, block=512):
    return "".join(json.dumps({"timestamp": 3 * k, "input_length": i, "output_length": o,
                               "hash_ids": list(range(-(-i // block)))}) + "\n"
                   for k, (i, o) in enumerate(requests))


def azure(requests):
    return "TIMESTAMP,ContextTokens,GeneratedTokens\n" + "".join(
        f"2023-11-16 18:15:{k % 60:02d}.5,{i},{o}\n" for k, (i, o) in enumerate(requests))


def lengths(requests):
    return "num_prefill_tokens,num_decode_tokens,num_total_tokens\n" + "".join(
        f"{i},{o},{i + o}\n" for i, o in requests)


class Figures(Files):
    def compare(self, got, want):
        self.assertEqual(list(got), list(want))
        for name, (served, end, decode) in want.items():
            s = got[name]
            self.assertEqual(s["served"], served, name)
            for key, value in (("waste_at_completion", end), ("waste_decode_averaged", decode)):
                if value is None:
                    self.assertIsNone(s[key], name)
                else:
                    self.assertAlmostEqual(s[key], value, delta=1e-12, msg=f"{name} {key} seed {SEED}")

    def test_random_traces_in_every_format(self):
        rng = random.Random(SEED)
        requests = random_requests(rng, 300)
        want = expected(requests)
        for name, text in (("a.jsonl", mooncake(requests)), ("b.csv", azure(requests)),
                           ("c.csv", lengths(requests))):
            out, got = waste(self.write(name, text))
            self.assertEqual(out["requests"], len(requests))
            self.assertEqual(out["trace"], self.path(name))
            self.compare(got, want)

    def test_compressed(self):
        requests = [(100, 20), (3000, 1)]
        text = azure(requests).encode()
        want = expected(requests)
        for name, data in (("t.gz", gzip.compress(text)), ("t.xz", lzma.compress(text)),
                           ("t", lzma.compress(text))):
            self.compare(waste(self.write(name, data))[1], want)
        done = run("waste", "--trace", "-", "--json", stdin=text.decode(), check=0)
        self.compare({s["scheme"]: s for s in json.loads(done.stdout)["schemes"]}, want)

    def test_by_hand(self):
        _, got = waste(self.write("t.csv", lengths([(20, 2), (5, 0)])))
        # 22 tokens in two pages of 16, 5 in one; steps: 21 and 22 of 32, then 5 of 16
        self.assertAlmostEqual(got["paged-16"]["waste_at_completion"], 1 - 27 / 48)
        self.assertAlmostEqual(got["paged-16"]["waste_decode_averaged"], 1 - 48 / 80)
        self.assertAlmostEqual(got["pow2"]["waste_at_completion"], 1 - 27 / 40)
        self.assertEqual(got["oracle"]["waste_at_completion"], 0)

    def test_nothing_served(self):
        _, got = waste(self.write("t.csv", lengths([(3000, 1)])))
        self.assertEqual(got["max-2048"]["served"], 0)
        self.assertIsNone(got["max-2048"]["waste_at_completion"])
        self.assertEqual(got["max-8192"]["served"], 1)

    def test_no_token_at_all(self):
        _, got = waste(self.write("t.csv", lengths([(0, 0), (16, 16)])))
        self.assertEqual(got["paged-16"]["served"], 2)
        self.assertEqual(got["paged-16"]["waste_at_completion"], 0)

    def test_jobs_do_not_matter(self):
        path = self.write("t.csv", lengths(random_requests(random.Random(SEED), 50)))
        self.assertEqual(waste(path, "--jobs", 1), waste(path, "--jobs", 4))

    def test_metadata(self):
        _, got = waste(self.write("t.csv", lengths([(500, 100)] * 400)), "--model", "llama-3-8b")
        self.assertGreater(got["paged-16"]["metadata_bytes_per_token"], 0)
        self.assertLess(got["paged-16"]["metadata_bytes_per_token"], 0.001 * 131072)
        self.assertEqual(got["oracle"]["metadata_bytes_per_token"], 0)

    def test_page_sizes(self):
        _, got = waste(self.write("t.csv", lengths([(5, 5)])), "--page-tokens", "64,8")
        self.assertEqual([n for n in got if n.startswith("paged")], ["paged-64", "paged-8"])


class Hybrid(Files):
    """Windowed layers: only the last `window` tokens are needed, and pages that left it are free."""

    def brute(self, requests, page, layers_full, layers_window, window, flat):
        need = held = need_steps = held_steps = 0
        for i, o in requests:
            for n in range(i + 1, i + o + 1) if o else [i]:
                pages = -(-n // page)
                gone = 0 if flat else max(0, n - window) // page
                needs = layers_full * n + layers_window * min(n, window)
                holds = (layers_full * pages + layers_window * (pages - gone)) * page
                need_steps += needs
                held_steps += holds
            need += needs
            held += holds
        return 1 - need / held, 1 - need_steps / held_steps

    def check(self, model, full, windowed, window):
        rng = random.Random(SEED)
        requests = [(rng.randrange(1, 3 * window), rng.randrange(0, 2 * window)) for _ in range(40)]
        _, got = waste(self.write("t.csv", lengths(requests)), "--model", model)
        for page in PAGES:
            for name, flat in ((f"paged-{page}", False), (f"paged-{page}-no-groups", True)):
                end, decode = self.brute(requests, page, full, windowed, window, flat)
                self.assertAlmostEqual(got[name]["waste_at_completion"], end, delta=1e-12,
                                       msg=f"{name} seed {SEED}")
                self.assertAlmostEqual(got[name]["waste_decode_averaged"], decode, delta=1e-12,
                                       msg=f"{name} seed {SEED}")
        self.assertLess(got["paged-16"]["waste_at_completion"],
                        got["paged-16-no-groups"]["waste_at_completion"])

    def test_gemma(self):
        self.check("gemma-3-270m", 3, 15, 512)

    def test_window_that_is_no_multiple_of_a_page(self):
        self.check("layers=4,kv_heads=1,head_dim=64,window=300,full_every=2", 2, 2, 300)

    def test_every_layer_windowed(self):
        self.check("layers=4,kv_heads=1,head_dim=64,window=77", 0, 4, 77)


class Outputs(Files):
    def test_table_is_the_default_and_needs_no_trace(self):
        out = run("waste", "--synthetic", "lengths,requests=50", check=0).stdout
        self.assertIn("paged-16", out)
        self.assertIn("oracle", out)
        self.assertIn("50 requests", out)

    def test_csv_and_plot(self):
        table, plot = self.path("o.csv"), self.path("o.svg")
        run("waste", "--synthetic", "chat,requests=50", "--csv", table, "--plot", plot, check=0)
        with open(table, newline="") as f:
            rows = list(csv.DictReader(f))
        self.assertEqual(len(rows), 11)
        self.assertEqual(rows[1]["scheme"], "paged-16")
        self.assertEqual(rows[1]["served"], "50")
        self.assertEqual(xml.dom.minidom.parse(plot).documentElement.tagName, "svg")

    def test_all_but_one_is_not_all(self):
        with tempfile.TemporaryDirectory() as directory:
            path = os.path.join(directory, "t.csv")
            with open(path, "w") as f:
                f.write("num_prefill_tokens,num_decode_tokens\n" + "10,10\n" * 2999 + "9000,10\n")
            out = run("waste", "--trace", path, "--page-tokens", 16, check=0).stdout
            row = next(line for line in out.splitlines() if line.startswith("max-8192"))
            self.assertIn("2999", row)
            self.assertIn("99.9 %", row)
            self.assertNotIn("100.0 %", row)

    def test_csv_on_stdout_is_alone_there(self):
        args = ("waste", "--synthetic", "lengths,requests=20", "--csv", "-")
        rows = list(csv.reader(run(*args, check=0).stdout.splitlines()))
        self.assertEqual({len(row) for row in rows}, {9})
        done = run(*args, "--json")
        self.assertEqual((done.returncode, done.stdout), (2, ""))
        self.assertIn("--json and --csv - both write to standard output", done.stderr)

    def test_same_seed_same_result(self):
        run_once = lambda seed: run("waste", "--synthetic", f"lengths,requests=200,seed={seed}", "--json",
                                    check=0).stdout
        self.assertEqual(run_once(1), run_once(1))
        self.assertNotEqual(run_once(1), run_once(2))

    def test_touch(self):
        done = run("waste", "--synthetic", "lengths,requests=60,max_tokens=2000", "--touch", "--model",
                   "smollm2-135m", "--memory", "128MiB", "--page-tokens", "16", "--json", check=0)
        s = json.loads(done.stdout)["schemes"][0]
        self.assertGreaterEqual(s["touched_bytes"], s["reserved_bytes_at_completion"])
        plain = run("waste", "--synthetic", "lengths,requests=60,max_tokens=2000", "--model", "smollm2-135m",
                    "--page-tokens", "16", "--json", check=0)
        p = json.loads(plain.stdout)["schemes"][0]
        self.assertEqual(s["waste_decode_averaged"], p["waste_decode_averaged"])

    def test_help(self):
        for args in (["--help"], ["waste", "--help"]):
            done = run(*args, check=0)
            self.assertIn("Usage: pkv-sim", done.stdout)
            self.assertEqual(done.stderr, "")
        self.assertIn("llama-3-8b", run("--models", check=0).stdout)
        self.assertRegex(run("--version", check=0).stdout, r"^pkv-sim \d+\.\d+\.\d+\n$")


class BadInput(Files):
    def fails(self, status, message, *args, stdin=None):
        done = run(*args, stdin=stdin)
        self.assertEqual(done.returncode, status, f"{args}: {done.stderr}")
        self.assertEqual(done.stdout, "")
        self.assertIn(message, done.stderr)
        self.assertTrue(done.stderr.startswith("pkv-sim"), done.stderr)

    def test_usage(self):
        for message, args in (
                ("a command is missing", []),
                ("unknown command 'wastes'", ["wastes"]),
                ("unknown or ambiguous option '--frobnicate'", ["waste", "--frobnicate"]),
                ("option '--trace' needs a value", ["waste", "--trace"]),
                ("option '--json=1' takes no value", ["waste", "--json=1"]),
                ("unexpected argument 'x'", ["waste", "x"]),
                ("--page-tokens: 12 is not", ["waste", "--page-tokens", "12"]),
                ("--page-tokens: 256 is not in", ["waste", "--page-tokens", "256"]),
                ("--page-tokens: 16 is given twice", ["waste", "--page-tokens", "16,16"]),
                ("--page-tokens: empty item", ["waste", "--page-tokens", "16,"]),
                ("--model: unknown model 'x'", ["waste", "--model", "x"]),
                ("--trace-format: 'csv'", ["waste", "--trace", "x", "--trace-format", "csv"]),
                ("--trace-format needs --trace", ["waste", "--trace-format", "azure"]),
                ("exclude each other", ["waste", "--trace", "x", "--synthetic", "chat"]),
                ("--memory needs --touch", ["waste", "--memory", "1GiB"]),
                ("--synthetic: 'poisson'", ["waste", "--synthetic", "poisson"]),
                ("--jobs: 0 is not in", ["waste", "--jobs", "0"])):
            self.fails(2, message, *args)

    def test_traces(self):
        good = mooncake([(10, 1)])
        cut = lzma.compress(azure([(k, 1) for k in range(3000)]).encode())[:-400]
        cases = {
            "empty": (b"", "empty: the trace is empty"),
            "header": (azure([]).encode(), "header: the trace has a header but no requests"),
            "junk": (random.Random(1).randbytes(3000), "junk:1: "),
            "missing": (good + '{"timestamp":1,"output_length":1,"hash_ids":[]}\n',
                        'missing:2: field "input_length" is missing'),
            "negative": (azure([(1, 1), (-5, 1)]), 'negative:3: field "ContextTokens": \'-5\''),
            "huge": (lengths([(10**30, 1)]), 'huge:2: field "num_prefill_tokens": '),
            "huge2": (good + good.replace("10", "1" + "0" * 12), 'huge2:2: field "input_length": '),
            "nan": (good.replace("10", "NaN"), "nan:1: column "),
            "real": (good.replace(" 10", " 10.5"), 'real:1: field "input_length": 10.5'),
            "text": (good.replace(" 10", ' "10"'), 'text:1: field "input_length" is not a number'),
            "truncated.xz": (cut, "damaged or truncated"),
            "truncated.gz": (gzip.compress(good.encode() * 500)[:-60], "truncated.gz"),
            "short": ("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46,5\n",
                      'short:2: field "GeneratedTokens" is missing'),
            "time": ("TIMESTAMP,ContextTokens,GeneratedTokens\nnoon,5,1\n", 'time:2: field "TIMESTAMP"'),
        }
        for name, (data, message) in cases.items():
            self.fails(1, message, "waste", "--trace", self.write(name, data))
        self.fails(1, "No such file", "waste", "--trace", self.path("none"))
        self.fails(1, 'no column "TIMESTAMP"', "waste", "--trace", self.write("l", lengths([(1, 1)])),
                   "--trace-format", "azure")

    def test_outputs_that_cannot_be_written(self):
        small = ["waste", "--synthetic", "lengths,requests=5"]
        for option in ("--csv", "--plot"):
            self.fails(1, "/nonexistent/x", *small, option, "/nonexistent/x")
        if os.path.exists("/dev/full"):
            with open("/dev/full", "w") as full:
                done = subprocess.run([SIM, *small], stdout=full, stderr=subprocess.PIPE, text=True)
            self.assertEqual(done.returncode, 1)
            self.assertIn("cannot write to standard output", done.stderr)

    def test_request_larger_than_host_memory(self):
        self.fails(1, ":3: paged-16: a request of 9000 + 1 tokens: ", "waste", "--touch", "--memory", "64MiB",
                   "--model", "llama-3-8b", "--page-tokens", "16", "--trace",
                   self.write("t", lengths([(100, 1), (9000, 1)])))


if __name__ == "__main__":
    unittest.main()
