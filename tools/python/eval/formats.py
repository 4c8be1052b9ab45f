"""Quality of quantised pages: nats, divergence and passkeys by format, and equal-bytes comparisons.

    python -m eval.formats run --output DIR [--model smollm2|gemma3] [--novel-names emma …]
    python -m eval.formats passkey --output DIR [--model …] [--keys N]
    python -m eval.formats report --output DIR [--model …]

Every format streams the same tokens beside f16 pages, so differences are paired by token. `run`
also streams 16-bit caches under eviction whose budget is what the quantised cache holds in bytes at
the text's end. It keeps each novel's raw scores in DIR/raw and computes only what is missing. Exit
status 1 if a bar holds neither for the format nor with the first and last layers in f16.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import pagedkv
from pagedkv_runtime import load_model
from pagedkv_runtime.paged import groups_of
from pagedkv_runtime.weights import ModelConfig

from . import novels
from .lockstep import FULL, Lockstep, Scores, Variant, log_normaliser, mean_interval, score_stream
from .quality import Progress, Row, make_passkeys, wilson, write_rows

PAGE_TOKENS = 32
#: Tokens scored for the comparison at equal bytes: the last ones, where caches are fullest.
LAST = 256
POLICIES = ("sink", "mass", "obs")


@dataclass(frozen=True)
class Format:
    """A page format, and how many first and last layers stay in f16."""

    kv_type: str | None
    plain_ends: int = 0

    @property
    def name(self) -> str:
        label = self.kv_type or "f16"
        return f"{label}+{self.plain_ends}" if self.plain_ends else label


F16 = Format(None)
FORMATS = (Format("k8v8"), Format("k8v4"), Format("k4v4"), Format("k4v4", 2))
#: Nats per token above f16 that a format may cost.
BARS = {"k8v8": 0.002, "k8v4": 0.01, "k4v4": 0.02}


def bytes_per_token(config: ModelConfig, form: Format) -> float:
    """Of a full page, all layers, scales and flags included."""
    groups = groups_of(config, "f16", form.kv_type, form.plain_ends)
    with pagedkv.Cache(
        groups, page_tokens=PAGE_TOKENS, memory_limit=1 << 30, storage="none"
    ) as cache:
        pages = sum(int(cache.group_info(i).page_bytes) for i in range(len(groups)))
    return pages / PAGE_TOKENS


def budget_of(config: ModelConfig, form: Format, tokens: int) -> int:
    """Tokens in f16 that take the bytes of ``tokens`` in the format, in whole pages."""
    share = bytes_per_token(config, form) / bytes_per_token(config, F16)
    return int(share * tokens) // 16 * 16


def stream(model: Any, ids: list[int], forms: list[Format], chunk: int) -> dict[str, Scores]:
    """Scores of the formats, KL from f16 pages."""
    progress, n = Progress("formats"), len(ids)
    locks = {
        form: Lockstep(
            model,
            [FULL],
            dtype="f16",
            kv_type=form.kv_type,
            plain_ends=form.plain_ends,
            page_tokens=PAGE_TOKENS,
            memory=1 << 30,
        )
        for form in [F16, *forms]
    }
    result = {f.name: Scores(np.full(n, np.nan), np.full(n, np.nan)) for f in locks}
    try:
        for start in range(0, n, chunk):
            part = ids[start : start + chunk]
            targets = np.asarray(ids[start + 1 : start + len(part) + 1])
            m = len(targets)
            where = slice(start + 1, start + 1 + m)
            p_full = base = None
            for form, lock in locks.items():
                rows = lock.feed(part)[FULL][:m]
                if m == 0:
                    continue
                norm = log_normaliser(rows)
                scores = result[form.name]
                scores.nll[where] = norm - rows[np.arange(m), targets]
                if form == F16:
                    p_full = np.exp(rows - norm[:, None].astype(np.float32))
                    p_full /= p_full.sum(axis=1, keepdims=True)
                    base = np.einsum("ij,ij->i", p_full, rows, dtype=np.float64) - norm
                    scores.kl[where] = 0.0
                elif p_full is not None and base is not None:
                    cross = np.einsum("ij,ij->i", p_full, rows, dtype=np.float64)
                    scores.kl[where] = base - cross + norm
            progress(start + len(part), n)
    finally:
        for lock in locks.values():
            lock.close()
    return result


def _raw(args: argparse.Namespace, novel: str) -> Path:
    return Path(args.output / "raw" / f"formats-{args.model}-{novel}-{args.tokens}.npz")


def _evictions(args: argparse.Namespace, config: ModelConfig) -> dict[str, list[Variant]]:
    """Policies at the budgets of the formats; Gemma's windows bound most layers already."""
    if any(span.window for span, _ in config.groups):
        return {}
    return {
        form.name: [Variant(p, budget_of(config, form, args.tokens)) for p in POLICIES]
        for form in FORMATS
        if not form.plain_ends
    }


def run(args: argparse.Namespace) -> None:
    """Raw scores of every novel."""
    model, tokenizer = load_model(args.model)
    (args.output / "raw").mkdir(parents=True, exist_ok=True)
    evictions = _evictions(args, model.config)
    for novel in args.novel_names:
        target = _raw(args, novel)
        arrays = dict(np.load(target)) if target.is_file() else {}
        ids = tokenizer.encode(novels.body(novel)[: args.tokens * 8])[: args.tokens]
        forms = [f for f in FORMATS if f"{f.name}/nll" not in arrays]
        scores = stream(model, ids, forms, args.chunk) if forms else {}
        variants = list(dict.fromkeys(v for each in evictions.values() for v in each))
        missing = [v for v in variants if f"{v.name}/nll" not in arrays]
        if missing:
            with Lockstep(model, [FULL, *missing], dtype="f16", memory=2 << 30) as lockstep:
                found = score_stream(lockstep, ids, 16, Progress(novel))
            scores.update({v.name: found[v] for v in missing})
        for name, one in scores.items():
            arrays[f"{name}/nll"] = one.nll.astype(np.float32)
            arrays[f"{name}/kl"] = one.kl.astype(np.float32)
        save: Any = np.savez_compressed
        save(target, **arrays)
        print(f"{novel}: {len(ids)} tokens", flush=True)


def passkey(args: argparse.Namespace) -> None:
    """Five digits hidden at depths from the front to the end, prompt at once, greedy answer."""
    model, tokenizer = load_model(args.model)
    rows: list[Row] = []
    for case in make_passkeys(tokenizer, args.key_tokens, args.keys, args.seed):
        for form in [F16, *FORMATS]:
            with Lockstep(
                model,
                [FULL],
                dtype="f16",
                kv_type=form.kv_type,
                plain_ends=form.plain_ends,
                page_tokens=PAGE_TOKENS,
                memory=1 << 30,
            ) as lockstep:
                for start in range(0, len(case.ids), args.chunk):
                    lockstep.feed(case.ids[start : start + args.chunk], last_only=True)
                row = lockstep.feed(case.question, last_only=True)[FULL][-1]
                right = True
                for token in case.answer:
                    right &= int(row.argmax()) == token
                    row = lockstep.feed([token])[FULL][-1]
            rows.append(
                {
                    "format": form.name,
                    "depth": case.depth,
                    "trial": case.trial,
                    "length": len(case.ids),
                    "found": int(right),
                }
            )
        print(f"depth {case.depth:.2f}: done", flush=True)
    write_rows(args.output / f"formats-passkey-{args.model}.csv", rows)


def _paired(raws: list[Any], name: str, base: str, first: int) -> tuple[float, float]:
    return mean_interval(
        np.concatenate(
            [r[f"{name}/nll"][first:].astype(np.float64) - r[f"{base}/nll"][first:] for r in raws]
        )
    )


def rows_of(args: argparse.Namespace, config: ModelConfig) -> list[Row]:
    """One row per format, and per eviction at a format's bytes."""
    files = [f for f in (_raw(args, novel) for novel in novels.NOVELS) if f.is_file()]
    raws = [dict(np.load(file)) for file in files]
    if not raws:
        return []
    evictions, whole = _evictions(args, config), bytes_per_token(config, F16)
    rows: list[Row] = []
    for form in FORMATS:
        names = [form.name, *(v.name for v in evictions.get(form.name, []))]
        for name in names:
            diff, diff_ci = _paired(raws, name, "f16", 1) if name == form.name else (None, None)
            last, last_ci = _paired(raws, name, "f16", args.tokens - LAST)
            kl = np.concatenate([r[f"{name}/kl"] for r in raws])
            kl_last = np.concatenate([r[f"{name}/kl"][args.tokens - LAST :] for r in raws])
            rows.append(
                {
                    "model": args.model,
                    "bytes_of": form.name,
                    "cache": name,
                    "novels": len(raws),
                    "tokens": args.tokens,
                    "share_of_f16": bytes_per_token(config, form) / whole,
                    "above_f16": diff,
                    "above_f16_ci95": diff_ci,
                    "kl": float(np.nanmean(kl)) if name == form.name else None,
                    "last_above_f16": last,
                    "last_above_f16_ci95": last_ci,
                    "last_kl": float(np.nanmean(kl_last)),
                }
            )
    return rows


def report(args: argparse.Namespace) -> int:
    """Tables and bars from the raw scores that exist."""
    from pagedkv_runtime.weights import find_model, load_weights

    config = load_weights(find_model(args.model)).config
    rows, missed = rows_of(args, config), set(BARS)
    if rows:
        write_rows(args.output / f"formats-{args.model}.csv", rows)
        print(f"\n{rows[0]['novels']} novels of {args.tokens} tokens")
        print("\n| format | bytes | nats above f16 | KL(f16) | bar |\n|---|---|---|---|---|")
    for r in rows:
        if r["cache"] != r["bytes_of"]:
            continue
        kv_type = str(r["cache"]).partition("+")[0]
        bar = BARS[kv_type]
        held = r["above_f16"] <= bar
        if held:
            missed.discard(kv_type)
        print(
            f"| {r['cache']} | {r['share_of_f16']:.3f} | {r['above_f16']:+.4f} ± "
            f"{r['above_f16_ci95']:.4f} | {r['kl']:.5f} | {bar} {'holds' if held else '**no**'} |"
        )
    if any(r["cache"] != r["bytes_of"] for r in rows):
        print(f"\n| bytes of | cache | nats above f16, last {LAST} | KL(f16) |\n|---|---|---|---|")
        for r in rows:
            print(
                f"| {r['bytes_of']} | {r['cache']} | {r['last_above_f16']:+.4f} ± "
                f"{r['last_above_f16_ci95']:.4f} | {r['last_kl']:.5f} |"
            )
    keys = args.output / f"formats-passkey-{args.model}.csv"
    if keys.is_file():
        _passkey_table(keys)
    return 1 if missed else 0


def _passkey_table(path: Path) -> None:
    import csv

    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    print("\n| format | passkeys found |\n|---|---|")
    for form in dict.fromkeys(r["format"] for r in rows):
        found = [int(r["found"]) for r in rows if r["format"] == form]
        low, high = wilson(float(np.mean(found)), len(found))
        print(f"| {form} | {sum(found)} of {len(found)} ({low:.0%}–{high:.0%}) |")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=("run", "passkey", "report"))
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--model", choices=("smollm2", "gemma3"), default="smollm2")
    parser.add_argument(
        "--novel-names", nargs="+", choices=novels.NOVELS, default=list(novels.NOVELS[:4])
    )
    parser.add_argument("--tokens", type=int, default=1536, help="per novel")
    parser.add_argument("--chunk", type=int, default=64, help="tokens a step; changes no format")
    parser.add_argument("--key-tokens", type=int, default=992)
    parser.add_argument("--keys", type=int, default=2, help="per depth")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args(argv)
    args.output.mkdir(parents=True, exist_ok=True)
    if args.part == "run":
        run(args)
    elif args.part == "passkey":
        passkey(args)
    return report(args)


if __name__ == "__main__":
    sys.exit(main())
