"""Command line: ``pagedkv-runtime generate | chat | serve-bench`` (or ``python -m
pagedkv_runtime``), and ``pagedkv-generate`` for the first of them. Nothing is imported that the
options themselves do not need: ``--help`` works without the extra packages."""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .units import limit_change, natural, parse_bytes, positive

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from .engine import Engine, Request
    from .model import Model
    from .paged import PagedStore
    from .sampling import SamplingParams
    from .tokenizer import Tokenizer

#: Policies of the option --evict. The library is not loaded to read the options; a test compares
#: these with ``pagedkv.POLICIES``.
POLICIES = ("none window sink mass obs keydiff lru-mass random topk h2o tova").split()


def _unit_interval(text: str) -> float:
    value = _number(text)
    if not 0.0 < value <= 1.0:
        raise argparse.ArgumentTypeError("must be in (0, 1]")
    return value


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not finite")
    return value


def _factor(text: str) -> float:
    value = _number(text)
    if value <= 0.0:
        raise argparse.ArgumentTypeError("must be positive")
    return value


def _temperature(text: str) -> float:
    value = _number(text)
    if not 0.0 <= value < 1e3:
        raise argparse.ArgumentTypeError("must be 0 (greedy) or more")
    return value


def _policy_spec(text: str) -> str:
    name, _, budget = text.partition(":")
    if name not in POLICIES:
        raise argparse.ArgumentTypeError(f"policy {name!r} is not one of {', '.join(POLICIES)}")
    if name != "none" and (not budget.isdecimal() or not 1 <= int(budget) < 2**31):
        raise argparse.ArgumentTypeError(f"{text!r} is not POLICY:BUDGET (tokens), e.g. sink:1024")
    return text


def _common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, help="smollm2, gemma3 or the path of a GGUF file")
    parser.add_argument("--max-tokens", type=positive, default=128, help="most tokens to generate")
    parser.add_argument("--temperature", type=_temperature, default=0.0, help="0 = greedy")
    parser.add_argument("--top-p", type=_unit_interval, default=1.0)
    parser.add_argument("--seed", type=natural, default=0)
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
        type=natural,
        default=0,
        metavar="K",
        help="speculative decoding with up to K n-gram drafts",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description=("A small Llama / Gemma 3 runtime whose KV cache is pagedkv."),
    )
    commands = parser.add_subparsers(dest="command", required=True)

    _add_generate(commands.add_parser("generate", help="continue a raw prompt (no chat template)"))
    chat = commands.add_parser("chat", help="talk to the model with its template, streaming")
    chat.add_argument("--system", help="system message")
    chat.add_argument(
        "--message",
        action="append",
        help="a user message (repeatable); default: read lines from stdin",
    )
    _common(chat)
    _add_serve_bench(commands.add_parser("serve-bench", help="serve many requests and measure"))
    return parser


def _add_generate(generate: argparse.ArgumentParser) -> None:
    source = generate.add_mutually_exclusive_group(required=True)
    source.add_argument("--prompt")
    source.add_argument("--prompt-file", type=Path, metavar="FILE")
    generate.add_argument(
        "--samples", type=positive, default=1, help="parallel samples that share the prompt's pages"
    )
    generate.add_argument("--beams", type=positive, default=1, help="beam search of this width")
    _common(generate)


def _add_serve_bench(bench: argparse.ArgumentParser) -> None:
    bench.add_argument("--requests", type=positive, default=16)
    bench.add_argument(
        "--system-tokens",
        type=natural,
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
        type=_factor,
        default=1.0,
        help="multiply the trace's token counts by this (real traces are long)",
    )
    bench.add_argument("--speed", type=_factor, default=1.0, help="divide arrival times by this")
    bench.add_argument(
        "--limit-at",
        type=limit_change,
        action="append",
        default=[],
        metavar="SECONDS:BYTES",
        help="change the memory limit while running (repeatable)",
    )
    _common(bench)


def make_store(model: Model, args: argparse.Namespace) -> PagedStore:
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
    from .sampling import SamplingParams

    return SamplingParams(
        args.max_tokens,
        args.temperature,
        args.top_p,
        args.seed,
        frozenset() if args.ignore_eos else frozenset(stop_ids),
    )


def run_stats(engine: Engine, request: Request, seconds: float) -> dict[str, object]:
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
    if args.beams > 1 and args.samples > 1:
        raise Usage("--beams and --samples exclude each other")
    from . import load_model
    from .beam import beam_search
    from .engine import Engine, Request

    prompt = args.prompt if args.prompt is not None else args.prompt_file.read_text("utf-8")
    model, tokenizer = load_model(args.model)
    ids = tokenizer.encode(prompt)
    if not ids:
        raise Usage("the prompt has no tokens")
    params = sampling_of(args, tokenizer.stop_ids)
    with make_store(model, args) as store:
        engine = Engine(model, store, chunk=args.chunk, drafts=args.draft)
        request = Request(ids, params)
        scores: list[float] = []
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


def _print_stream(tokenizer: Tokenizer, tokens: Iterable[int]) -> list[int]:
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


def _user_lines() -> Iterator[str]:
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


class Usage(Exception):
    """The command line asks for something that makes no sense: exit status 2."""


def main(argv: list[str] | None = None, prog: str = "pagedkv-runtime") -> int:
    """Entry point; exit status 0, 1 (run failed) or 2 (usage)."""
    parser = _parser(prog)
    args = parser.parse_args(argv)
    return _run(parser, args, args.command)


def generate(argv: list[str] | None = None) -> int:
    """Entry point of ``pagedkv-generate``: the verb ``generate`` of :func:`main`."""
    parser = argparse.ArgumentParser(
        prog="pagedkv-generate", description="Continues a prompt; the KV cache is pagedkv."
    )
    _add_generate(parser)
    return _run(parser, parser.parse_args(argv), "generate")


def _run(parser: argparse.ArgumentParser, args: argparse.Namespace, command: str) -> int:
    commands = {"generate": cmd_generate, "chat": cmd_chat, "serve-bench": cmd_serve_bench}
    try:
        return commands[command](args)
    except Usage as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 1
    except ModuleNotFoundError as error:
        print(
            f"{command}: the package {error.name} is missing: pip install 'pagedkv[runtime]'",
            file=sys.stderr,
        )
        return 1
    except (OSError, ValueError, ImportError) as error:
        print(f"{command}: {error}", file=sys.stderr)
        return 1
    except Exception as error:
        from pagedkv import PagedKVError

        if isinstance(error, PagedKVError):
            print(f"{command}: {error}", file=sys.stderr)
            return 1
        raise


if __name__ == "__main__":
    sys.exit(main())
