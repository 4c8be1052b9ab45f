"""Quality under eviction: perplexity, divergence, long positions, passkeys.

    python -m eval.quality all --output DIR            about 20 minutes on two free cores
    python -m eval.quality perplexity|positions|passkey|report --output DIR [--novels N …]

Writes ``perplexity.csv``, ``positions.csv``, ``passkey.csv``, plots and ``gates.json`` to DIR;
``report`` prints docs/quality.md's tables from them. Exit status 1 if a gate does not hold.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pagedkv_runtime import load_model

from . import novels
from .lockstep import FULL, Lockstep, Variant, mean_interval, score_stream

POLICIES = (
    "window",
    "sink",
    "mass",
    "h2o",
    "tova",
    "obs",
    "keydiff",
    "lru-mass",
    "random",
    "random-all",
    "topk",
)
BUDGETS = (256, 512, 1024)


#: A row of a table or CSV file by column.
Row = dict[str, Any]


class Progress:
    """A line on stderr when it is a terminal, else nothing."""

    def __init__(self, label: str) -> None:
        self._label, self._start = label, time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        if sys.stderr.isatty():
            took = time.monotonic() - self._start
            left = took / done * (total - done)
            end = "\n" if done >= total else ""
            print(
                f"\r{self._label}: {done}/{total} tokens, {left:.0f} s left  ",
                end=end,
                file=sys.stderr,
                flush=True,
            )


def write_rows(path: Path, rows: list[Row]) -> None:
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    print(f"wrote {path} ({len(rows)} rows)")


def _read(path: Path) -> list[Row]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def perplexity(args: argparse.Namespace) -> None:
    """Streaming perplexity and KL of every policy and budget, one novel after the other. Each
    novel's raw scores go to a file of their own: a run that was interrupted goes on with what is
    missing, and several processes may share the novels (``--novel-names``)."""
    model, tokenizer = load_model(args.model)
    variants = [FULL] + [Variant(p, b) for b in args.budgets for p in args.policies]
    raw = args.output / "raw"
    raw.mkdir(exist_ok=True)
    for name in args.novel_names or novels.NOVELS[: args.novels]:
        target = raw / f"{name}-{args.tokens}-{args.cache_dtype}.npz"
        arrays = dict(np.load(target)) if target.is_file() else {}
        missing = [v for v in variants if f"{v.name}/nll" not in arrays]
        if missing:
            ids = tokenizer.encode(novels.body(name)[: args.tokens * 8])[: args.tokens]
            todo = [FULL, *(v for v in missing if v != FULL)]
            with Lockstep(model, todo, dtype=args.cache_dtype) as lockstep:
                scores = score_stream(lockstep, ids, 16, Progress(name))
                held = lockstep.resident_max
            for v, one in scores.items():
                arrays[f"{v.name}/nll"] = one.nll.astype(np.float32)
                arrays[f"{v.name}/kl"] = one.kl.astype(np.float32)
                arrays[f"{v.name}/held"] = np.int64(held[v])
            np.savez_compressed(target, **arrays)
        print(f"{name}: done", flush=True)
    write_rows(
        args.output / "perplexity.csv",
        perplexity_rows(sorted(raw.glob(f"*-{args.tokens}-{args.cache_dtype}.npz")), variants),
    )


def perplexity_rows(files: list[Path], variants: list[Variant]) -> list[Row]:
    """Summary of the novels' raw scores: per variant, scored after its own first eviction and after
    that of the largest budget (for comparisons between budgets on the same tokens)."""
    novels_raw = [np.load(file) for file in files]
    budgets = sorted({v.budget for v in variants if v.budget})
    rows = []
    for variant in variants:
        marks = (
            {variant.budget + 16, budgets[-1] + 16} if variant.budget else {b + 16 for b in budgets}
        )
        for after in sorted(marks):
            own, full, kl = (
                np.concatenate([raw[key][after:].astype(np.float64) for raw in novels_raw])
                for key in (f"{variant.name}/nll", "full/nll", f"{variant.name}/kl")
            )
            nll, nll_ci = mean_interval(own)
            diff, diff_ci = mean_interval(own - full)
            kl_mean, kl_ci = mean_interval(kl)
            rows.append(
                {
                    "policy": variant.policy,
                    "budget": variant.budget,
                    "scored_after": after,
                    "novels": len(files),
                    "tokens": int(len(own)),
                    "nll": nll,
                    "nll_ci95": nll_ci,
                    "perplexity": float(np.exp(nll)),
                    "nll_minus_full": diff,
                    "nll_minus_full_ci95": diff_ci,
                    "kl_from_full": kl_mean,
                    "kl_ci95": kl_ci,
                    "resident_tokens_max": max(
                        int(raw[f"{variant.name}/held"]) for raw in novels_raw
                    ),
                }
            )
    return rows


def positions(args: argparse.Namespace) -> None:
    """Far beyond the trained length: full cache, and a bounded one with either kind of position.

    Part "restart" adds a control to the file: a full cache that starts at ``--restart`` tokens with
    position 0, so that the later text is scored within the trained length."""
    model, tokenizer = load_model(args.model)
    budget, target = 1024, args.output / "positions.csv"
    restart = args.part == "restart"
    variants = [FULL, Variant("sink", budget), Variant("sink", budget, "compact")]
    rows = _read(target) if restart else []
    for name in novels.NOVELS[: args.position_novels]:
        ids = tokenizer.encode(novels.body(name)[: args.position_tokens * 6])
        ids = ids[: args.position_tokens]
        parts = [] if restart else [(variants, 0)]
        if restart or args.part == "all":
            parts.append(([FULL], args.restart))
        for group, first in parts:
            with Lockstep(model, group, dtype=args.cache_dtype) as lockstep:
                result = score_stream(lockstep, ids[first:], 16, Progress(name))
            for variant in group:
                label = f"{variant.name}:restarted" if first else variant.name
                rows += _windows(name, label, result[variant].nll, first)
        print(f"{name}: done", flush=True)
    write_rows(target, rows)


def _windows(novel: str, label: str, nll: np.ndarray, first: int, width: int = 1024) -> list[Row]:
    """Means over windows of consecutive tokens; ``first`` is the text position of nll[0]."""
    rows = []
    for start in range(0, len(nll), width):
        mean, ci = mean_interval(nll[start : start + width])
        at = first + start
        rows.append(
            {
                "novel": novel,
                "variant": label,
                "from": at,
                "to": min(first + len(nll), at + width),
                "nll": mean,
                "nll_ci95": ci,
            }
        )
    return rows


_NEEDLE = "\n\nThe pass key is {key}. Remember it. {key} is the pass key.\n\n"
_QUESTION = "\n\nThe pass key is"


@dataclass(frozen=True)
class Passkey:
    """A text with a key hidden ``at`` a token, the question, and the answer's tokens."""

    depth: float
    trial: int
    at: int
    ids: list[int]
    question: list[int]
    answer: list[int]


def make_passkeys(tokenizer: Any, tokens: int, trials: int, seed: int) -> Iterator[Passkey]:
    """Five digits hidden in a novel's text at ten depths."""
    filler = tokenizer.encode(novels.body("emma")[: tokens * 12], add_bos=False)
    question = tokenizer.encode(_QUESTION, add_bos=False)
    rng = np.random.default_rng(seed)
    for depth in range(10):
        for trial in range(trials):
            key = "".join(str(d) for d in rng.integers(0, 10, 5))
            needle = tokenizer.encode(_NEEDLE.format(key=key), add_bos=False)
            room = tokens - len(needle)
            at = int(room * (depth + 0.5) / 10)
            offset = int(rng.integers(0, len(filler) - room))
            hay = filler[offset : offset + room]
            ids = tokenizer.bos + hay[:at] + needle + hay[at:]
            answer = tokenizer.encode(" " + key, add_bos=False)
            yield Passkey((depth + 0.5) / 10, trial, at, ids, question, answer)


def passkey(args: argparse.Namespace) -> None:
    """Retrieval of five digits hidden at ten depths; the question is fed token by token."""
    model, tokenizer = load_model(args.model)
    variants = [FULL] + [Variant(p, b) for b in args.passkey_budgets for p in args.policies]
    rows = []
    for case in make_passkeys(tokenizer, args.passkey_tokens, args.passkey_trials, args.seed):
        with Lockstep(model, variants, dtype=args.cache_dtype) as lockstep:
            for start in range(0, len(case.ids), 16):
                lockstep.feed(case.ids[start : start + 16], last_only=True)
            logits = {}
            for token in case.question:
                logits = lockstep.feed([token])
            right = {v: True for v in logits}
            for token in case.answer:  # teacher-forced: equals free greedy running while right
                for v, row in logits.items():
                    right[v] &= int(row[-1].argmax()) == token
                logits = lockstep.feed([token])
            distance = lockstep.length - len(case.answer) - case.at
        rows += [
            {
                "policy": v.policy,
                "budget": v.budget,
                "depth": case.depth,
                "trial": case.trial,
                "length": len(case.ids),
                "distance": distance,
                "found": int(ok),
            }
            for v, ok in right.items()
        ]
        if case.trial == args.passkey_trials - 1:
            print(f"depth {case.depth}: done", flush=True)
    write_rows(args.output / "passkey.csv", rows)


def _gate(gates: list[Row], name: str, holds: bool, detail: str) -> None:
    gates.append({"gate": name, "holds": bool(holds), "detail": detail})


def perplexity_gates(rows: list[Row], gates: list[Row]) -> None:
    """The perplexity gates of research: differences in nats, scored after the first eviction."""
    at = {(r["policy"], int(r["budget"]), int(r["scored_after"])): r for r in rows}

    def diff(policy: str, budget: int, after: int | None = None) -> float:
        return float(at[policy, budget, after or budget + 16]["nll_minus_full"])

    budgets = sorted({int(r["budget"]) for r in rows if int(r["budget"])})
    allowed = {256: 0.30, 512: 0.15, 1024: 0.08}
    for b in budgets:
        _gate(
            gates,
            f"window - sink >= 0.3 nats at {b}",
            diff("window", b) - diff("sink", b) >= 0.3,
            f"{diff('window', b) - diff('sink', b):.3f}",
        )
        if b in allowed:
            _gate(
                gates,
                f"sink - full <= {allowed[b]} nats at {b}",
                diff("sink", b) <= allowed[b],
                f"{diff('sink', b):.4f}",
            )
        if ("random-all", b, b + 16) in at:
            _gate(
                gates,
                f"random over all pages is worse than sink at {b}",
                diff("random-all", b) > diff("sink", b),
                f"random {diff('random-all', b):.3f}, sink {diff('sink', b):.3f}",
            )
    last = max(budgets) + 16
    kls = [float(at["sink", b, last]["kl_from_full"]) for b in budgets]
    _gate(
        gates,
        "KL(full || sink) falls with the budget",
        all(a > b for a, b in zip(kls, kls[1:])),
        ", ".join(f"{k:.4f}" for k in kls),
    )
    worst = max(
        int(r["resident_tokens_max"]) - int(r["budget"])
        for r in rows
        if int(r["budget"]) and r["policy"] != "topk"
    )
    _gate(
        gates,
        "resident <= budget + 1 page + the step's tokens at every step",
        worst <= 32,
        f"largest excess {worst} tokens in steps of 16",
    )


def position_gates(rows: list[Row], gates: list[Row]) -> None:
    """Beyond the trained length: the full cache degrades, the compact one stays flat."""

    def mean(variant: str, low: int, high: int) -> float:
        return float(
            np.mean(
                [
                    float(r["nll"])
                    for r in rows
                    if r["variant"] == variant and low <= int(r["from"]) < high
                ]
            )
        )

    end = max(int(r["to"]) for r in rows)
    trained = 8192
    if end <= trained + 2048:
        return
    before, beyond = mean("full", 2048, trained), mean("full", trained + 2048, end)
    _gate(
        gates,
        "full + original positions degrades beyond the trained length",
        beyond - before >= 0.3,
        f"{before:.3f} before, {beyond:.3f} beyond",
    )
    compact = "sink:1024:compact"
    near, far = mean(compact, 2048, trained), mean(compact, trained, end)
    _gate(
        gates,
        "sink + compact stays flat within 0.1 nats",
        far - near <= 0.1,
        f"{near:.3f} up to {trained}, {far:.3f} beyond",
    )
    restarted = [int(r["from"]) for r in rows if r["variant"] == "full:restarted"]
    if restarted:
        warm = min(restarted) + 1024  # the control has a context of its own from here on
        control, own = mean("full:restarted", warm, end), mean(compact, warm, end)
        _gate(
            gates,
            "the same on equal text: within 0.1 nats of a full cache restarted at position 0",
            own - control <= 0.1,
            f"restarted {control:.3f}, compact {own:.3f} on tokens {warm} to {end}",
        )


def passkey_gates(rows: list[Row], gates: list[Row]) -> None:
    """Retrieval against the full cache."""

    def rate(policy: str, budget: int, outside: bool) -> tuple[float, int]:
        found = [
            int(r["found"])
            for r in rows
            if r["policy"] == policy
            and int(r["budget"]) == budget
            and (not outside or int(r["distance"]) > max(budgets) + 64)
        ]
        return (float(np.mean(found)) if found else float("nan")), len(found)

    budgets = sorted({int(r["budget"]) for r in rows if int(r["budget"])})
    full, n = rate("full", 0, False)
    _gate(gates, "the full cache finds >= 90 %", full >= 0.9, f"{full:.0%} of {n}")
    for b in budgets:
        for policy in ("window", "sink"):
            r, n = rate(policy, b, True)
            _gate(
                gates, f"{policy}:{b} finds nothing outside its window", r <= 0.1, f"{r:.0%} of {n}"
            )
        r, n = rate("topk", b, False)
        _gate(gates, f"topk:{b} within 5 points of full", r >= full - 0.05, f"{r:.0%} of {n}")


def report(args: argparse.Namespace) -> int:
    """Gates, tables and plots from the CSV files that exist."""
    gates: list[Row] = []
    out = args.output
    if (out / "perplexity.csv").is_file():
        rows = _read(out / "perplexity.csv")
        perplexity_gates(rows, gates)
        _perplexity_table(rows)
        _plot_perplexity(rows, out / "perplexity.svg")
    if (out / "positions.csv").is_file():
        rows = _read(out / "positions.csv")
        position_gates(rows, gates)
        _positions_table(rows)
        _plot_positions(rows, out / "positions.svg")
    if (out / "passkey.csv").is_file():
        rows = _read(out / "passkey.csv")
        passkey_gates(rows, gates)
        _passkey_table(rows)
    (out / "gates.json").write_text(json.dumps(gates, indent=1) + "\n")
    print("\n| gate | holds | measured |\n|---|---|---|")
    for gate in gates:
        print(f"| {gate['gate']} | {'yes' if gate['holds'] else '**no**'} | {gate['detail']} |")
    return 0 if gates and all(g["holds"] for g in gates) else 1


def _perplexity_table(rows: list[Row]) -> None:
    budgets = sorted({int(r["budget"]) for r in rows if int(r["budget"])})
    print(
        "\n| policy | " + " | ".join(f"{b}" for b in budgets) + " |\n|---|" + "---|" * len(budgets)
    )
    full = {int(r["scored_after"]): r for r in rows if r["policy"] == "full"}
    print(
        "| full (nats) | "
        + " | ".join(
            f"{float(full[b + 16]['nll']):.3f} ± {float(full[b + 16]['nll_ci95']):.3f}"
            for b in budgets
        )
        + " |"
    )
    for policy in dict.fromkeys(r["policy"] for r in rows if r["policy"] != "full"):
        cells = []
        for b in budgets:
            r = next(
                r
                for r in rows
                if r["policy"] == policy
                and int(r["budget"]) == b
                and int(r["scored_after"]) == b + 16
            )
            cells.append(
                f"{float(r['nll_minus_full']):+.4f} ± {float(r['nll_minus_full_ci95']):.4f}"
                f" (KL {float(r['kl_from_full']):.4f})"
            )
        print(f"| {policy} | " + " | ".join(cells) + " |")


def _positions_table(rows: list[Row]) -> None:
    variants = list(dict.fromkeys(r["variant"] for r in rows))
    print("\n| tokens | " + " | ".join(variants) + " |\n|---|" + "---|" * len(variants))
    for start in sorted({int(r["from"]) for r in rows}):
        cells = []
        for v in variants:
            found = [
                float(r["nll"])
                for r in rows
                if r["variant"] == v and int(r["from"]) == start and r["nll"] != "nan"
            ]
            cells.append(f"{np.mean(found):.3f}" if found else "–")
        print(f"| {start}– | " + " | ".join(cells) + " |")


def _passkey_table(rows: list[Row]) -> None:
    budgets = sorted({int(r["budget"]) for r in rows if int(r["budget"])})
    print(
        "\n| policy | " + " | ".join(f"{b}" for b in budgets) + " |\n|---|" + "---|" * len(budgets)
    )
    for policy in dict.fromkeys(r["policy"] for r in rows):
        cells = []
        for b in [0] * len(budgets) if policy == "full" else budgets:
            found = [
                int(r["found"]) for r in rows if r["policy"] == policy and int(r["budget"]) == b
            ]
            p, n = float(np.mean(found)), len(found)
            low, high = wilson(p, n)
            cells.append(f"{p:.0%} ({low:.0%}–{high:.0%})")
        print(f"| {policy} | " + " | ".join(cells) + " |")


def wilson(p: float, n: int) -> tuple[float, float]:
    """95 % interval of a proportion."""
    z = 1.96
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)


def _axes(title: str, x: str, y: str) -> tuple[Any, Any]:
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "pagedkv"
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    axes.set_title(title)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.3)
    colors = [plt.get_cmap("tab20")(i) for i in range(20)]
    axes.set_prop_cycle(color=colors[::2] + colors[1::2])
    return figure, axes


def _plot_perplexity(rows: list[Row], path: Path) -> None:
    figure, axes = _axes(
        "Quality under eviction: SmolLM2-135M, novels",
        "budget (tokens)",
        "nats above the full cache",
    )
    for policy in dict.fromkeys(r["policy"] for r in rows if r["policy"] != "full"):
        own = [
            r
            for r in rows
            if r["policy"] == policy and int(r["scored_after"]) == int(r["budget"]) + 16
        ]
        axes.errorbar(
            [int(r["budget"]) for r in own],
            [float(r["nll_minus_full"]) for r in own],
            yerr=[float(r["nll_minus_full_ci95"]) for r in own],
            marker="o",
            capsize=3,
            label=policy,
        )
    axes.set_xscale("log", base=2)
    axes.set_xticks(sorted({int(r["budget"]) for r in rows if int(r["budget"])}))
    axes.xaxis.set_major_formatter("{x:.0f}")
    axes.set_yscale("symlog", linthresh=0.01)
    axes.legend(ncols=2, fontsize=8)
    figure.savefig(path, metadata={"Date": None})
    print(f"wrote {path}")


def _plot_positions(rows: list[Row], path: Path) -> None:
    figure, axes = _axes(
        "Beyond the trained length (8,192): SmolLM2-135M",
        "tokens",
        "nats per token (1,024-token windows)",
    )
    for variant in dict.fromkeys(r["variant"] for r in rows):
        own = [r for r in rows if r["variant"] == variant and r["nll"] != "nan"]
        starts = sorted({int(r["from"]) for r in own})
        axes.plot(
            [s + 512 for s in starts],
            [np.mean([float(r["nll"]) for r in own if int(r["from"]) == s]) for s in starts],
            marker=".",
            label=variant,
        )
    axes.axvline(8192, color="grey", linestyle=":")
    axes.legend(fontsize=8)
    figure.savefig(path, metadata={"Date": None})
    print(f"wrote {path}")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "part", choices=("all", "perplexity", "positions", "restart", "passkey", "report")
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--cache-dtype", choices=("f32", "f16", "bf16"), default="f32")
    parser.add_argument(
        "--novels", type=int, default=4, help="of the six; more = tighter intervals"
    )
    parser.add_argument("--novel-names", nargs="+", choices=novels.NOVELS, default=None)
    parser.add_argument("--tokens", type=int, default=2304, help="per novel, for perplexity")
    parser.add_argument("--budgets", type=int, nargs="+", default=list(BUDGETS))
    parser.add_argument("--policies", nargs="+", default=list(POLICIES))
    parser.add_argument("--position-novels", type=int, default=1)
    parser.add_argument("--restart", type=int, default=8192, help="text position of the control")
    parser.add_argument("--position-tokens", type=int, default=16384)
    parser.add_argument("--passkey-tokens", type=int, default=992)
    parser.add_argument("--passkey-budgets", type=int, nargs="+", default=[256])
    parser.add_argument("--passkey-trials", type=int, default=2, help="per depth")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args(argv)
    args.output.mkdir(parents=True, exist_ok=True)
    parts = {
        "perplexity": perplexity,
        "positions": positions,
        "restart": positions,
        "passkey": passkey,
    }
    for name, run in parts.items():
        if args.part == name or args.part == "all" and name != "restart":
            run(args)
    return report(args)


if __name__ == "__main__":
    sys.exit(main())
