"""Streaming perplexity under eviction over texts of several genres (:mod:`.texts`).

    python -m eval.genres run --output DIR [--model smollm2|gemma3] [--texts GENRE/NAME …]
    python -m eval.genres report --output DIR [--model …]

All variants run in lockstep, so differences are paired by token. ``run`` keeps each text's raw
scores in DIR/raw and computes only what is missing; ``report`` writes ``genres-MODEL.csv`` and
prints ranges over texts: a mean over texts of one genre says little about the next.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pagedkv_runtime import load_model

from . import texts
from .lockstep import FULL, Lockstep, Variant, mean_interval, score_stream
from .quality import Progress, Row, write_rows

POLICIES = ("window", "sink", "mass", "keydiff", "random", "topk")
BUDGETS = (256,)


def _raw(args: argparse.Namespace, text: str) -> Path:
    label = text.replace("/", "-").replace(":", ".")
    return Path(args.output / "raw" / f"{args.model}-{label}-{args.tokens}.npz")


def run(args: argparse.Namespace) -> None:
    """Scores of every variant on every text."""
    model, tokenizer = load_model(args.model)
    variants = [FULL] + [Variant(p, b) for b in args.budgets for p in args.policies]
    (args.output / "raw").mkdir(parents=True, exist_ok=True)
    for text in args.texts:
        target = _raw(args, text)
        arrays = dict(np.load(target)) if target.is_file() else {}
        missing = [v for v in variants if f"{v.name}/nll" not in arrays]
        if not missing:
            continue
        ids = tokenizer.encode(texts.read(text)[: args.tokens * 8])[: args.tokens]
        todo = [FULL, *(v for v in missing if v != FULL)]
        with Lockstep(model, todo) as lockstep:
            scores = score_stream(lockstep, ids, 16, Progress(text))
        for v, one in scores.items():
            arrays[f"{v.name}/nll"] = one.nll.astype(np.float32)
            arrays[f"{v.name}/kl"] = one.kl.astype(np.float32)
        save: Any = np.savez_compressed
        save(target, **arrays)
        print(f"{text}: {len(ids)} tokens", flush=True)


def paired(
    raw: dict[str, npt.NDArray[np.float32]], a: str, b: str, after: int
) -> tuple[float, float]:
    """Mean of a − b in nats per token with its 95 % interval, over the tokens from ``after`` on."""
    difference = raw[f"{a}/nll"][after:].astype(np.float64) - raw[f"{b}/nll"][after:]
    return mean_interval(difference)


def rows_of(args: argparse.Namespace) -> list[Row]:
    """One row per text and variant: nats above the full cache and above SINK of the same budget."""
    rows: list[Row] = []
    for text in args.texts:
        file = _raw(args, text)
        if not file.is_file():
            continue
        raw = dict(np.load(file))
        for budget in args.budgets:
            for policy in args.policies:
                name, after = f"{policy}:{budget}", budget + 16
                if f"{name}/nll" not in raw:
                    continue
                above, above_ci = paired(raw, name, "full", after)
                own, own_ci = paired(raw, name, f"sink:{budget}", after)
                scored = raw[f"{name}/nll"][after:]
                rows.append(
                    {
                        "model": args.model,
                        "text": text,
                        "policy": policy,
                        "budget": budget,
                        "tokens": int(np.isfinite(scored).sum()),
                        "full_nll": mean_interval(raw["full/nll"][after:].astype(float))[0],
                        "above_full": above,
                        "above_full_ci95": above_ci,
                        "above_sink": own,
                        "above_sink_ci95": own_ci,
                        "kl": mean_interval(raw[f"{name}/kl"][after:].astype(float))[0],
                    }
                )
    return rows


def report(args: argparse.Namespace) -> None:
    """Ranges over texts, and how often a policy differs from SINK beyond its interval."""
    rows = rows_of(args)
    if not rows:
        raise SystemExit(f"{args.output}: no scores of {args.model}; run first")
    write_rows(args.output / f"genres-{args.model}.csv", rows)
    print("\n| policy | budget | texts | nats above full | nats above sink | better / worse |")
    print("|---|---|---|---|---|---|")
    for budget in args.budgets:
        for policy in args.policies:
            own = [r for r in rows if r["policy"] == policy and r["budget"] == budget]
            if not own:
                continue
            above = [r["above_full"] for r in own]
            sink = [r["above_sink"] for r in own]
            better = sum(r["above_sink"] + r["above_sink_ci95"] < 0 for r in own)
            worse = sum(r["above_sink"] - r["above_sink_ci95"] > 0 for r in own)
            print(
                f"| {policy} | {budget} | {len(own)} | {min(above):+.3f} to {max(above):+.3f}"
                f" | {min(sink):+.3f} to {max(sink):+.3f} | {better} / {worse} |"
            )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("part", choices=("run", "report"))
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--texts", nargs="+", default=list(texts.TEXTS), metavar="GENRE/NAME")
    parser.add_argument("--tokens", type=int, default=2304, help="per text")
    parser.add_argument("--budgets", type=int, nargs="+", default=list(BUDGETS))
    parser.add_argument("--policies", nargs="+", default=list(POLICIES))
    args = parser.parse_args(argv)
    (run if args.part == "run" else report)(args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
