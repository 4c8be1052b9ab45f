"""Speed on the real model: what a cache is worth, where a step's time goes, prefix hits, flatness.

    python -m eval.speed lengths  [--lengths 64 … 4096]   no cache / concatenating / pagedkv
    python -m eval.speed split    [--batch 16 --context 1024]
    python -m eval.speed prefix   [--system-tokens 2048]
    python -m eval.speed bounded  [--decode 20000 --budget 1024]
    python -m eval.speed overhead
    python -m eval.speed all --output DIR

Every comparison is of things measured alternately in one process. ``--json`` prints one object.
"""

from __future__ import annotations

import argparse
import csv
import ctypes
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from time import perf_counter, process_time

import numpy as np

import pagedkv
from pagedkv_runtime import load_model
from pagedkv_runtime.engine import Engine, Request
from pagedkv_runtime.model import Model, StepTimer
from pagedkv_runtime.paged import PagedStore
from pagedkv_runtime.reference import ConcatCache, NoCache
from pagedkv_runtime.sampling import SamplingParams
from pagedkv_runtime.serve_bench import filler

from .quality import Row


def _feed(
    model: Model, store: PagedStore, seq: pagedkv.Sequence, ids: list[int], chunk: int = 256
) -> None:
    for start in range(0, len(ids), chunk):
        with store.step([(seq, ids[start : start + chunk])]) as step:
            model.hidden(step.tokens, step.positions, step.attention)
            step.commit()


def _threads(args: argparse.Namespace) -> int | None:
    """One thread where processor time is measured: waiting for another would not count."""
    return 1 if args.clock == "cpu" else None


def lengths(model: Model, args: argparse.Namespace) -> Row:
    """Seconds per decoded token at each context length, three ways, taken in turn."""
    clock = process_time if args.clock == "cpu" else perf_counter
    rows = []
    for n in args.lengths:
        ids = filler(1, n + 64, model.config.vocab_size)
        concat = ConcatCache(model.config)
        for start in range(0, n, 512):
            stop = min(n, start + 512)
            model.hidden(ids[start:stop], np.arange(start, stop), concat)
        with PagedStore(
            model.config, dtype=args.cache_dtype, memory=4 << 30, threads=_threads(args)
        ) as store:
            seq = store.cache.sequence()
            _feed(model, store, seq, ids[:n])

            def paged(i: int) -> None:
                with store.step([(seq, [ids[n + i]])]) as step:
                    model.forward(step.tokens, step.positions, step.attention, step.last_rows)
                    step.commit()

            times: dict[str, list[float]] = {"none": [], "concat": [], "pagedkv": []}
            for i in range(args.repeats):
                for name, call in (
                    ("pagedkv", lambda: paged(i)),
                    ("concat", lambda: model.forward([ids[n + i]], [n + i], concat)),
                ):
                    began = clock()
                    call()
                    times[name].append(clock() - began)
                if i < max(1, min(3, 4096 // n)):
                    began = clock()
                    model.forward(
                        ids[: n + i + 1],
                        np.arange(n + i + 1),
                        NoCache(model.config, double=False),
                        [n + i],
                    )
                    times["none"].append(clock() - began)
        rows.append(
            {
                "context": n,
                **{f"{k}_tokens_per_second": 1 / float(np.median(v)) for k, v in times.items()},
            }
        )
        print("  ".join(f"{k}={v:.4g}" for k, v in rows[-1].items()), file=sys.stderr, flush=True)
    return {"lengths": rows}


def read_limit(
    n_bytes: int = 1 << 28,
    repeats: int = 5,
    threads: int | None = None,
    clock: Callable[[], float] = perf_counter,
) -> float:
    """Bytes per second that libc's memchr reads on all threads, the best of some runs."""
    from pagedkv_runtime.workers import Workers, default_threads

    libc = ctypes.CDLL(None)
    libc.memchr.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t)
    libc.memchr.restype = ctypes.c_void_p
    n = threads or default_threads()
    data = np.ones(n_bytes, np.uint8)  # written, so that every page is a page of its own
    part = n_bytes // n
    workers = Workers(n)
    best = float("inf")
    for _ in range(repeats):
        start = clock()
        workers.run(lambda ith: libc.memchr(data.ctypes.data + ith * part, 7, part))
        best = min(best, clock() - start)
    workers.close()
    return n * part / best


def split(model: Model, args: argparse.Namespace) -> Row:
    """Where the time of a decode step goes at a batch size and context length."""
    config = model.config
    clock = process_time if args.clock == "cpu" else perf_counter
    element = {"f32": 4, "f16": 2, "bf16": 2}[args.cache_dtype]
    memory = 2 * args.batch * (args.context + 256) * config.kv_bytes_per_token(element) + (64 << 20)
    # distinct tokens per sequence: nothing is shared, every byte is read
    with PagedStore(
        config, dtype=args.cache_dtype, memory=memory, prefix=0, threads=_threads(args)
    ) as store:
        seqs = [store.cache.sequence() for _ in range(args.batch)]
        for i, seq in enumerate(seqs):
            _feed(model, store, seq, filler(i, args.context, config.vocab_size))
        store.timer = model.timer = timer = StepTimer(clock)
        totals, samples = [], []
        limits = []
        for i in range(args.repeats + 2):
            timer.clear()
            start = clock()
            with store.step([(seq, [1000 + i]) for seq in seqs]) as step:
                model.forward(step.tokens, step.positions, step.attention, step.last_rows)
                step.commit()
            total = clock() - start
            if i >= 2:
                totals.append(total)
                samples.append(dict(timer.seconds))
                if i % 5 == 2:
                    limits.append(read_limit(repeats=3, threads=_threads(args), clock=clock))
        kernel = store.cache.kernel
    order = np.argsort(totals)[: max(1, len(totals) // 2)]  # the calmer half of the steps
    total = float(np.mean([totals[i] for i in order]))
    parts = {
        name: float(np.mean([samples[i].get(name, 0.0) for i in order]))
        for name in ("matmul", "write", "attend", "bookkeeping")
    }
    parts["python"] = total - sum(parts.values())
    n_bytes = args.batch * (args.context + args.repeats / 2) * config.kv_bytes_per_token(element)
    limit = max(limits)
    rate = n_bytes / (parts["write"] + parts["attend"])
    best = n_bytes / min(s["write"] + s["attend"] for s in samples)
    return {
        "split": {
            "batch": args.batch,
            "context": args.context,
            "dtype": args.cache_dtype,
            "kernel": kernel,
            "clock": args.clock,
            "step_ms": total * 1e3,
            **{f"{k}_ms": v * 1e3 for k, v in parts.items()},
            **{f"{k}_share": v / total for k, v in parts.items()},
            "kv_megabytes": n_bytes / 1e6,
            "write_attend_gb_per_s": rate / 1e9,
            "write_attend_best_gb_per_s": best / 1e9,
            "read_limit_gb_per_s": limit / 1e9,
            "fraction_of_read_limit": rate / limit,
            "best_fraction_of_read_limit": best / limit,
        }
    }


def prefix(model: Model, args: argparse.Namespace) -> Row:
    """Time to first token of a request behind a long system prompt, with and without a hit."""
    vocab = model.config.vocab_size
    system = filler(77, args.system_tokens, vocab)
    cold: list[float] = []
    warm: list[float] = []
    with PagedStore(model.config, dtype=args.cache_dtype, memory=4 << 30) as store:
        for i in range(max(2, args.repeats // 8)):
            for use, into in ((False, cold), (True, warm)):
                engine = Engine(model, store, prefix=use, namespace=b"bench")
                if i == 0 and use:  # publish once
                    engine.submit(Request(system + filler(1, 8, vocab), SamplingParams(1)))
                    engine.run()
                request = Request(system + filler(1000 + i, 8, vocab), SamplingParams(1))
                engine.submit(request)
                engine.run()
                assert request.first_token_at is not None
                into.append(request.first_token_at - request.submitted_at)
                if use and request.cached_tokens < args.system_tokens - 16:
                    raise AssertionError(f"only {request.cached_tokens} tokens were attached")
    return {
        "prefix": {
            "system_tokens": args.system_tokens,
            "ttft_cold_ms": float(np.median(cold)) * 1e3,
            "ttft_hit_ms": float(np.median(warm)) * 1e3,
            "speedup": float(np.median(cold) / np.median(warm)),
        }
    }


def bounded(model: Model, args: argparse.Namespace) -> Row:
    """Decodes far beyond the trained length under SINK with compact positions."""
    policy = pagedkv.EvictPolicy("sink", args.budget, positions="compact")
    with PagedStore(
        model.config, dtype=args.cache_dtype, memory=512 << 20, policy=policy, prefix=0
    ) as store:
        seq = store.cache.sequence()
        _feed(model, store, seq, filler(5, args.budget, model.config.vocab_size))
        token, seconds, pages, metadata = 1000, [], [], []
        for number in range(args.decode):
            start = perf_counter()
            with store.step([(seq, [token])]) as step:
                logits = model.forward(step.tokens, step.positions, step.attention)
                step.commit()
            seconds.append(perf_counter() - start)
            token = int(logits[0].argmax())
            counters = store.cache.stats()
            pages.append(counters.pages_used)
            metadata.append(counters.metadata_bytes)
            if number % 1000 == 999:
                recent = float(np.median(seconds[-1000:])) * 1e3
                print(
                    f"{number + 1} tokens, {recent:.1f} ms each, {pages[-1]} pages,"
                    f" {metadata[-1]} bytes of metadata",
                    file=sys.stderr,
                    flush=True,
                )
    tenth = max(1, args.decode // 10)
    return {
        "bounded": {
            "decoded": args.decode,
            "budget": args.budget,
            "pages_max": max(pages),
            "pages_after_first_tenth": max(pages[:tenth]),
            "metadata_bytes_first_tenth": metadata[tenth - 1],
            "metadata_bytes_end": metadata[-1],
            "us_per_token_first_tenth": float(np.median(seconds[:tenth])) * 1e6,
            "us_per_token_last_tenth": float(np.median(seconds[-tenth:])) * 1e6,
        }
    }


def overhead(model: Model, args: argparse.Namespace) -> Row:
    """What a call of the binding costs beyond the C call, microseconds (10th percentile)."""
    config = model.config
    with PagedStore(config, memory=256 << 20, prefix=0, threads=1) as store:
        cache, plan, lib = store.cache, store.plan, pagedkv.lib
        seq = cache.sequence()
        shape_kv = (1, config.n_kv_heads, config.head_dim)
        k, v = np.zeros(shape_kv, np.float32), np.zeros(shape_kv, np.float32)
        q = np.zeros((1, config.n_heads, config.head_dim), np.float32)
        out = np.zeros_like(q)

        def best(call: Callable[[], object], n: int = 3000) -> float:
            times = np.empty(n)
            for i in range(n):
                start = perf_counter()
                call()
                times[i] = perf_counter() - start
            return float(np.quantile(times, 0.1)) * 1e6

        result = {}
        with cache.batch() as batch:
            batch.add(seq, [1])
            batch.reserve()
            plan.build(batch)
            rk, rv, rq, ro = (
                pagedkv.Rows(k),
                pagedkv.Rows(v),
                pagedkv.Rows(q),
                pagedkv.RowsOut(out),
            )
            handle = plan._handle
            raw = best(lambda: lib.pkv_write(handle, 0, rk.ref, rv.ref, 0, 1))
            result["write"] = best(lambda: plan.write(0, k, v)) - raw
            raw = best(lambda: lib.pkv_attend(handle, 0, rq.ref, ro.ref, None, 0, 1))
            result["attend"] = best(lambda: plan.attend(0, q, out)) - raw
            raw = best(lambda: lib.pkv_plan_build(handle, batch.handle))
            result["plan.build"] = best(lambda: plan.build(batch)) - raw
            result["seq.length (whole call)"] = best(lambda: seq.length)
    return {"overhead_us": result}


def _plot_lengths(rows: list[Row], path: Path) -> None:
    from .quality import _axes

    figure, axes = _axes(
        "Decoding one token: SmolLM2-135M on numpy", "context (tokens)", "tokens per second"
    )
    for name, label in (
        ("none", "no cache (recompute)"),
        ("concat", "concatenating cache"),
        ("pagedkv", "pagedkv"),
    ):
        axes.plot(
            [r["context"] for r in rows],
            [r[f"{name}_tokens_per_second"] for r in rows],
            marker="o",
            label=label,
        )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.xaxis.set_major_formatter("{x:.0f}")
    axes.legend()
    figure.savefig(path, metadata={"Date": None})


def main(argv: list[str] | None = None) -> int:
    parts = {
        "lengths": lengths,
        "split": split,
        "prefix": prefix,
        "bounded": bounded,
        "overhead": overhead,
    }
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", nargs="+", choices=(*parts, "all"))
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--cache-dtype", choices=("f32", "f16", "bf16"), default="f16")
    parser.add_argument(
        "--lengths", type=int, nargs="+", default=[64, 128, 256, 512, 1024, 2048, 4096]
    )
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--system-tokens", type=int, default=2048)
    parser.add_argument("--decode", type=int, default=20000)
    parser.add_argument("--budget", type=int, default=1024)
    parser.add_argument(
        "--clock",
        choices=("wall", "cpu"),
        default="wall",
        help="cpu: processor time of one thread (set OPENBLAS_NUM_THREADS=1), for"
        " lengths and split on a busy machine",
    )
    parser.add_argument("--repeats", type=int, default=24)
    parser.add_argument("--output", type=Path, metavar="DIR", help="write CSV and plots here")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    model, _ = load_model(args.model)
    result: Row = {}
    for name, part in parts.items():
        if "all" in args.part or name in args.part:
            began = time.monotonic()
            result |= part(model, args)
            print(f"{name}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    if args.output:
        args.output.mkdir(parents=True, exist_ok=True)
        (args.output / "speed.json").write_text(json.dumps(result, indent=1) + "\n")
        if "lengths" in result:
            with open(args.output / "lengths.csv", "w", newline="") as file:
                writer = csv.DictWriter(file, list(result["lengths"][0]))
                writer.writeheader()
                writer.writerows(result["lengths"])
            _plot_lengths(result["lengths"], args.output / "lengths.svg")
    print(json.dumps(result) if args.json else json.dumps(result, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
