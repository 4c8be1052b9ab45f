"""serve-bench: many requests through the engine, with arrivals, and what they experienced."""

from __future__ import annotations

import argparse
import io
import json
import lzma
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from . import load_model
from .__main__ import make_store, sampling_of
from .engine import Engine, Request, State
from .sampling import SamplingParams

_TRACE_BLOCK = 512  # tokens per hash id in the Mooncake format


@dataclass(frozen=True)
class Arrival:
    """A request of the workload: when it comes, what it asks."""

    seconds: float
    prompt: list[int]
    n_output: int


def filler(seed: int, n: int, vocab: int) -> list[int]:
    """n pseudo-random ordinary token ids; the same seed gives the same ids."""
    rng = np.random.default_rng(seed)
    ids: list[int] = rng.integers(min(1000, vocab // 2), vocab, size=n).tolist()
    return ids


def shared_prompt(args: argparse.Namespace, vocab: int) -> list[Arrival]:
    """All requests at once, one common system prompt, own tails."""
    system = filler(args.seed, args.system_tokens, vocab)
    return [
        Arrival(0.0, system + filler(args.seed + 1 + i, args.prompt_tokens, vocab), args.max_tokens)
        for i in range(args.requests)
    ]


def read_trace(
    path: Path, n: int, scale: float, speed: float, vocab: int, max_tokens: int
) -> list[Arrival]:
    """The first n requests of a Mooncake trace. A block id becomes the same tokens wherever it
    occurs, so prefixes are shared as in the trace; scale shrinks blocks and outputs alike."""
    opener = lzma.open if path.suffix == ".xz" else open
    block = max(1, round(_TRACE_BLOCK * scale))
    arrivals: list[Arrival] = []
    with io.TextIOWrapper(opener(path, "rb")) as lines:
        for number, line in enumerate(lines, 1):
            if len(arrivals) == n:
                break
            try:
                item = json.loads(line)
                seconds = float(item["timestamp"]) / 1000.0 / speed
                ids, n_in, n_out = item["hash_ids"], item["input_length"], item["output_length"]
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{path}:{number}: not a Mooncake request ({error})") from None
            prompt = [t for i in ids for t in filler(int(i) + 1, block, vocab)]
            prompt = prompt[: max(1, round(n_in * scale))] or filler(number, 1, vocab)
            arrivals.append(Arrival(seconds, prompt, min(max_tokens, max(1, round(n_out * scale)))))
    if not arrivals:
        raise ValueError(f"{path}: no requests")
    first = arrivals[0].seconds
    return [Arrival(a.seconds - first, a.prompt, a.n_output) for a in arrivals]


def serve(
    engine: Engine, arrivals: list[Arrival], params: SamplingParams, limits: list[tuple[float, int]]
) -> tuple[list[Request], float]:
    """Feeds arrivals in real time until all are done: the requests and the seconds it took."""
    todo = list(arrivals)
    requests: list[Request] = []
    limits = list(limits)
    start = time.perf_counter()
    while todo or not engine.idle:
        now = time.perf_counter() - start
        while limits and limits[0][0] <= now:
            engine.set_limit(limits.pop(0)[1])
        while todo and todo[0].seconds <= now:
            arrival = todo.pop(0)
            request = Request(
                arrival.prompt,
                replace(params, max_tokens=arrival.n_output, seed=params.seed + len(requests)),
            )
            requests.append(request)
            engine.submit(request)
        if engine.idle and todo:
            time.sleep(max(0.0, todo[0].seconds - (time.perf_counter() - start)))
            continue
        engine.step()
    return requests, time.perf_counter() - start


def _quantile(values: list[float], q: float) -> float:
    return float(np.quantile(values, q)) if values else 0.0


def summary(engine: Engine, requests: list[Request], seconds: float) -> dict[str, object]:
    """What serve-bench reports."""
    done = [r for r in requests if r.state is State.DONE]
    ttft = [r.first_token_at - r.submitted_at for r in done if r.first_token_at is not None]
    per_token = [
        (r.finished_at - r.first_token_at) / (len(r.output) - 1)
        for r in done
        if len(r.output) > 1 and r.finished_at and r.first_token_at
    ]
    cache = engine.store.cache.stats()
    return {
        "requests": len(requests),
        "failed": len(requests) - len(done),
        "seconds": seconds,
        "prompt_tokens": sum(len(r.prompt) for r in requests),
        "output_tokens": engine.stats.output_tokens,
        "output_tokens_per_second": engine.stats.output_tokens / seconds if seconds else 0.0,
        "computed_tokens": engine.stats.computed_tokens,
        "ttft_seconds_p50": _quantile(ttft, 0.5),
        "ttft_seconds_p99": _quantile(ttft, 0.99),
        "seconds_per_token_p50": _quantile(per_token, 0.5),
        "seconds_per_token_p99": _quantile(per_token, 0.99),
        "prefix_tokens_hit": sum(r.cached_tokens for r in requests),
        "preemptions": engine.stats.preemptions,
        "steps": engine.stats.steps,
        "drafted": engine.stats.drafted,
        "accepted": engine.stats.accepted,
        "peak_page_bytes": engine.stats.peak_bytes,
        "memory_limit": cache.memory_limit,
        "region_bytes_peak": cache.region_bytes_peak,
        "metadata_bytes_peak": cache.metadata_bytes_peak,
        "pages_reclaimed": cache.pages_reclaimed,
        "pages_evicted": cache.pages_evicted,
    }


def run(args: argparse.Namespace) -> int:
    """The command."""
    limits = sorted(args.limit_at)
    model, tokenizer = load_model(args.model)
    vocab = model.config.vocab_size
    if args.trace:
        arrivals = read_trace(
            args.trace, args.requests, args.scale, args.speed, vocab, args.max_tokens
        )
    else:
        arrivals = shared_prompt(args, vocab)
    params = sampling_of(args, set())  # synthetic prompts: nothing to stop at
    with make_store(model, args) as store:
        engine = Engine(
            model,
            store,
            max_batch=args.max_batch,
            chunk=args.chunk,
            drafts=args.draft,
            prefix=not args.no_prefix,
        )
        requests, seconds = serve(engine, arrivals, params, limits)
        result = summary(engine, requests, seconds)
    if args.json:
        print(json.dumps(result))
    else:
        width = max(map(len, result))
        for key, value in result.items():
            print(
                f"{key:{width}}  {value:.4g}"
                if isinstance(value, float)
                else f"{key:{width}}  {value}"
            )
    return 1 if result["failed"] else 0
