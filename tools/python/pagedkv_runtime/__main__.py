"""Command line: ``python -m pagedkv_runtime generate | chat | serve-bench``."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from .sampling import SamplingParams
from .units import parse_bytes, positive


def _unit_interval(text: str) -> float:
    value = float(text)
    if not 0.0 < value <= 1.0:
        raise argparse.ArgumentTypeError("must be in (0, 1]")
    return value


def _temperature(text: str) -> float:
    value = float(text)
    if not 0.0 <= value < 1e3:
        raise argparse.ArgumentTypeError("must be 0 (greedy) or more")
    return value


def _policy_spec(text: str) -> str:
    name, _, budget = text.partition(":")
    if name != "none" and (not budget.isdigit() or int(budget) < 1):
        raise argparse.ArgumentTypeError(f"{text!r} is not POLICY:BUDGET (tokens), e.g. sink:1024")
    return text


def _common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, help="smollm2, gemma3 or the path of a GGUF file")
    parser.add_argument("--max-tokens", type=positive, default=128, help="most tokens to generate")
    parser.add_argument("--temperature", type=_temperature, default=0.0, help="0 = greedy")
    parser.add_argument("--top-p", type=_unit_interval, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ignore-eos", action="store_true", help="do not stop at the end token")
    cache = parser.add_argument_group("cache")
    cache.add_argument("--cache-dtype", choices=("f32", "f16", "bf16"), default="f32")
    cache.add_argument("--page-tokens", type=int, choices=(8, 16, 32, 64, 128), default=16)
    cache.add_argument("--chunk", type=positive, default=256, help="prompt tokens per step")
    cache.add_argument("--memory", type=parse_bytes, default=2 << 30, help="e.g. 512MiB")
    cache.add_argument(
        "--evict",
        type=_policy_spec,
        metavar="POLICY:BUDGET",
        help="bound every sequence: sink:1024, window:512, mass:1024, …",
    )
    cache.add_argument(
        "--positions",
        choices=("original", "compact"),
        default="original",
        help="distances after eviction; compact beyond the trained length",
    )
    cache.add_argument("--threads", type=positive, help="attention threads; default: the CPUs")
    cache.add_argument(
        "--draft",
        type=int,
        default=0,
        metavar="K",
        help="speculative decoding with up to K n-gram drafts",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pagedkv_runtime",
        description=("A small Llama / Gemma 3 runtime whose KV cache is pagedkv."),
    )
    commands = parser.add_subparsers(dest="command", required=True)

    generate = commands.add_parser("generate", help="continue a raw prompt (no chat template)")
    source = generate.add_mutually_exclusive_group(required=True)
    source.add_argument("--prompt")
    source.add_argument("--prompt-file", type=Path, metavar="FILE")
    generate.add_argument(
        "--samples", type=positive, default=1, help="parallel samples that share the prompt's pages"
    )
    generate.add_argument("--beams", type=positive, default=1, help="beam search of this width")
    _common(generate)

    chat = commands.add_parser("chat", help="talk to the model with its template, streaming")
    chat.add_argument("--system", help="system message")
    chat.add_argument(
        "--message",
        action="append",
        help="a user message (repeatable); default: read lines from stdin",
    )
    _common(chat)

    bench = commands.add_parser("serve-bench", help="serve many requests and measure")
    bench.add_argument("--requests", type=positive, default=16)
    bench.add_argument(
        "--system-tokens",
        type=int,
        default=512,
        help="length of the system prompt that all requests share",
    )
    bench.add_argument("--prompt-tokens", type=positive, default=64, help="own tokens per request")
    bench.add_argument("--max-batch", type=positive, default=16)
    bench.add_argument("--no-prefix", action="store_true", help="do not use the prefix index")
    bench.add_argument(
        "--trace",
        type=Path,
        metavar="FILE",
        help="a trace with arrivals, Mooncake's JSONL format (.xz allowed)",
    )
    bench.add_argument(
        "--scale",
        type=float,
        default=1.0,
        help="multiply the trace's token counts by this (real traces are long)",
    )
    bench.add_argument("--speed", type=float, default=1.0, help="divide arrival times by this")
    bench.add_argument(
        "--limit-at",
        action="append",
        default=[],
        metavar="SECONDS:BYTES",
        help="change the memory limit while running (repeatable)",
    )
    _common(bench)
    return parser


def make_store(model, args: argparse.Namespace):
    """The paged cache that the options describe."""
    import pagedkv

    from .paged import PagedStore

    policy = None
    if args.evict and not args.evict.startswith("none"):
        policy = pagedkv.EvictPolicy.parse(args.evict, positions=args.positions)
    return PagedStore(
        model.config,
        dtype=args.cache_dtype,
        page_tokens=args.page_tokens,
        memory=args.memory,
        policy=policy,
        threads=args.threads,
    )


def sampling_of(args: argparse.Namespace, stop_ids: set[int]) -> SamplingParams:
    """Sampling parameters from the options."""
    return SamplingParams(
        args.max_tokens,
        args.temperature,
        args.top_p,
        args.seed,
        frozenset() if args.ignore_eos else frozenset(stop_ids),
    )


def run_stats(engine, request, seconds: float) -> dict[str, object]:
    """The ``stats`` object of ``generate --json``."""
    from dataclasses import asdict

    ttft = (request.first_token_at or 0.0) - request.submitted_at
    decode = seconds - ttft
    counters = engine.store.cache.stats().as_dict()
    return {
        "prompt_tokens": len(request.prompt),
        "output_tokens": len(request.output),
        "cached_tokens": request.cached_tokens,
        "preemptions": request.preemptions,
        "seconds": seconds,
        "ttft_seconds": ttft,
        "decode_tokens_per_second": (len(request.output) - 1) / decode if decode > 0 else 0.0,
        "kernel": engine.store.cache.kernel,
        "engine": asdict(engine.stats),
        "cache": counters,
    }


def cmd_generate(args: argparse.Namespace) -> int:
    from . import load_model
    from .beam import beam_search
    from .engine import Engine, Request

    prompt = args.prompt if args.prompt is not None else args.prompt_file.read_text("utf-8")
    model, tokenizer = load_model(args.model)
    ids = tokenizer.encode(prompt)
    if not ids:
        print("generate: the prompt has no tokens", file=sys.stderr)
        return 1
    params = sampling_of(args, tokenizer.stop_ids)
    with make_store(model, args) as store:
        engine = Engine(model, store, chunk=args.chunk, drafts=args.draft)
        request = Request(ids, params)
        start = time.perf_counter()
        if args.beams > 1:
            found = beam_search(
                model,
                store,
                ids,
                width=args.beams,
                max_tokens=args.max_tokens,
                chunk=args.chunk,
                stop_ids=sorted(params.stop_ids),
            )
            request.submitted_at = request.first_token_at = start
            request.output = found[0].ids
            outputs, scores = [h.ids for h in found], [h.score for h in found]
        else:
            streaming = not args.json and args.samples == 1
            if streaming:
                _print_stream(tokenizer, engine.stream(request))
                outputs = [request.output]
            else:
                requests = engine.submit(request, args.samples)
                engine.run()
                for one in requests:
                    if one.error is not None:
                        raise one.error
                outputs = [one.output for one in requests]
            scores = None
        stats = run_stats(engine, request, time.perf_counter() - start)
    if args.json:
        result: dict[str, Any] = {
            "prompt_ids": ids,
            "ids": outputs[0],
            "text": tokenizer.decode(outputs[0]),
            "stats": stats,
        }
        if len(outputs) > 1:
            result["samples"] = [{"ids": o, "text": tokenizer.decode(o)} for o in outputs]
            if scores:
                for sample, score in zip(result["samples"], scores):
                    sample["score"] = score
        print(json.dumps(result))
    elif len(outputs) > 1:
        for i, output in enumerate(outputs):
            print(f"--- {i + 1}" + (f" (score {scores[i]:.4f})" if scores else ""))
            print(tokenizer.decode(output))
    return 0


def _print_stream(tokenizer, tokens) -> list[int]:
    """Prints text as tokens come; a character that is not complete yet waits for its last byte."""
    ids: list[int] = []
    shown = ""
    for token in tokens:
        ids.append(token)
        text = tokenizer.decode(ids)
        if text.endswith("\ufffd"):
            continue
        print(text[len(shown) :], end="", flush=True)
        shown = text
    print(tokenizer.decode(ids)[len(shown) :])
    return ids


def cmd_chat(args: argparse.Namespace) -> int:
    from . import load_model
    from .engine import Engine, Request

    model, tokenizer = load_model(args.model)
    messages: list[dict[str, str]] = []
    if args.system:
        messages.append({"role": "system", "content": args.system})
    turns = []
    with make_store(model, args) as store:
        engine = Engine(model, store, chunk=args.chunk, drafts=args.draft)
        for line in args.message if args.message else _user_lines():
            messages.append({"role": "user", "content": line})
            ids = tokenizer.encode(tokenizer.render_chat(messages), add_bos=False)
            request = Request(ids, sampling_of(args, tokenizer.stop_ids))
            start = time.perf_counter()
            if args.json:
                engine.submit(request)
                engine.run()
                if request.error is not None:
                    raise request.error
            else:
                _print_stream(tokenizer, engine.stream(request))
            text = tokenizer.decode(request.output)
            messages.append({"role": "assistant", "content": text})
            turns.append(
                {
                    "prompt_ids": ids,
                    "ids": request.output,
                    "text": text,
                    "stats": run_stats(engine, request, time.perf_counter() - start),
                }
            )
    if args.json:
        print(json.dumps({"turns": turns}))
    return 0


def _user_lines():
    """Lines that a person types; the prompt shows on a terminal only."""
    while True:
        if sys.stdin.isatty():
            print("> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line:
            return
        if line.strip():
            yield line.rstrip("\n")


def cmd_serve_bench(args: argparse.Namespace) -> int:
    from .serve_bench import run

    return run(args)


def main(argv: list[str] | None = None) -> int:
    """Entry point; exit status 0, 1 (run failed) or 2 (usage)."""
    args = _parser().parse_args(argv)
    commands = {"generate": cmd_generate, "chat": cmd_chat, "serve-bench": cmd_serve_bench}
    try:
        return commands[args.command](args)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 1
    except (OSError, ValueError, ImportError) as error:
        print(f"{args.command}: {error}", file=sys.stderr)
        return 1
    except Exception as error:
        from pagedkv import PagedKVError

        if isinstance(error, PagedKVError):
            print(f"{args.command}: {error}", file=sys.stderr)
            return 1
        raise


if __name__ == "__main__":
    sys.exit(main())
