"""Feeds the same tokens to a full cache and to caches under eviction, step by step in one batch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

import pagedkv
from pagedkv_runtime.model import Model
from pagedkv_runtime.paged import PagedStore
from pagedkv_runtime.weights import F32

#: Policies that drop by token numbers, chance or nothing at all: what happened before they start
#: does not matter to them, so they may fork off the full sequence when it fills the budget.
FORGETFUL = {"window", "sink", "random", "random-all", "topk"}
_SIGNALS = pagedkv.CONSTANTS["SIGNAL_BOUNDS"] | pagedkv.CONSTANTS["SIGNAL_KEYSUM"]


@dataclass(frozen=True)
class Variant:
    """A policy at a budget of tokens; "full" keeps everything. "random" protects the sinks and the
    recent quarter as every policy does by default, "random-all" nothing."""

    policy: str
    budget: int = 0
    positions: str = "original"
    options: tuple[tuple[str, Any], ...] = field(default=())

    @property
    def name(self) -> str:
        label = self.policy if self.policy == "full" else f"{self.policy}:{self.budget}"
        if self.positions != "original":
            label += f":{self.positions}"
        return label + "".join(f":{key}={value}" for key, value in self.options)

    def make(self) -> pagedkv.EvictPolicy | None:
        if self.policy == "full":
            return None
        if self.policy == "random-all":  # nothing protected, as opposed to the library's default
            return pagedkv.EvictPolicy("random", self.budget, sinks=0, window=0, seed=1)
        return pagedkv.EvictPolicy(
            self.policy, self.budget, positions=self.positions, **dict(self.options)
        )


FULL = Variant("full")


class Lockstep:
    """One store; per variant one sequence. The first variant must be FULL if others fork off it."""

    def __init__(
        self,
        model: Model,
        variants: list[Variant],
        *,
        dtype: str = "f32",
        kv_type: str | None = None,
        plain_ends: int = 0,
        page_tokens: int = 16,
        memory: int = 8 << 30,
        fork: bool = True,
    ) -> None:
        self.model = model
        self.variants = variants
        self.page_tokens = page_tokens
        self.store = PagedStore(
            model.config,
            dtype=dtype,
            kv_type=kv_type,
            plain_ends=plain_ends,
            page_tokens=page_tokens,
            memory=memory,
            signals=_SIGNALS if kv_type is None else 0,
            prefix=0,
        )
        self.fork = fork
        self.length = 0
        self.sequences: dict[Variant, pagedkv.Sequence] = {}
        self.resident_max: dict[Variant, int] = {v: 0 for v in variants}
        #: The full-attention group: the one that policies bound.
        self.group = next(i for i, (span, _) in enumerate(model.config.groups) if not span.window)
        self._join()

    def close(self) -> None:
        self.store.close()

    def __enter__(self) -> Lockstep:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _starts(self, variant: Variant) -> int:
        """Committed tokens at which a variant takes part."""
        if self.fork and variant.policy in FORGETFUL and FULL in self.variants:
            return variant.budget // self.page_tokens * self.page_tokens
        return 0

    def _join(self) -> None:
        for variant in self.variants:
            if variant in self.sequences or self._starts(variant) > self.length:
                continue
            if self.length == 0:
                seq = self.store.cache.sequence()
            else:
                seq = self.sequences[FULL].fork()
            policy = variant.make()
            if policy is not None:
                seq.set_evict(policy)
            self.sequences[variant] = seq

    def feed(
        self, tokens: list[int], last_only: bool = False, wanted: set[Variant] | None = None
    ) -> dict[Variant, F32]:
        """One step of every sequence: logits ``[len(tokens), vocab]`` (or of the last row) of the
        wanted variants (None = all). Checks the bound: resident <= budget + one page + the step's
        own tokens."""
        self._join()
        live = [(v, self.sequences[v]) for v in self.variants if v in self.sequences]
        for variant, seq in live:
            if variant.budget and variant.policy != "topk":
                held = seq.info(self.group).resident_tokens + len(tokens)
                self.resident_max[variant] = max(self.resident_max[variant], held)
                if held > variant.budget + self.page_tokens + len(tokens):
                    raise AssertionError(f"{variant.name} holds {held} tokens")
        n = len(tokens)
        with self.store.step([(seq, tokens) for _, seq in live]) as step:
            asked = [i for i, (v, _) in enumerate(live) if wanted is None or v in wanted]
            each = 1 if last_only else n
            rows = [row for i in asked for row in range((i + 1) * n - each, (i + 1) * n)]
            logits = self.model.forward(step.tokens, step.positions, step.attention, rows)
            step.commit()
        self.length += n
        return {live[i][0]: logits[at * each : (at + 1) * each] for at, i in enumerate(asked)}


def log_normaliser(logits: F32) -> npt.NDArray[np.float64]:
    """log sum exp of each row."""
    top = logits.max(axis=1)
    total = np.exp(logits - top[:, None]).sum(axis=1, dtype=np.float64)
    return np.asarray(top.astype(np.float64) + np.log(total))


@dataclass
class Scores:
    """Per predicted position: negative log-likelihood and KL(full || variant), NaN where the
    variant had not started (it equals the full cache there)."""

    nll: npt.NDArray[np.float64]
    kl: npt.NDArray[np.float64]


def score_stream(
    lockstep: Lockstep, tokens: list[int], chunk: int = 16, progress: Any = None
) -> dict[Variant, Scores]:
    """Streams tokens through all variants; position i of the result scores tokens[i]. A variant
    is scored from the step on that may follow its first eviction."""
    n = len(tokens)
    result = {v: Scores(np.full(n, np.nan), np.full(n, np.nan)) for v in lockstep.variants}
    for start in range(0, n, chunk):
        part = tokens[start : start + chunk]
        logits = lockstep.feed(
            part, wanted={v for v in lockstep.variants if start + len(part) > v.budget}
        )
        targets = np.asarray(tokens[start + 1 : start + len(part) + 1])
        m = len(targets)
        p_full = cross_full = norm_full = None
        for variant in lockstep.variants:
            if variant not in logits:
                continue
            rows = logits[variant][:m]
            if m == 0:
                continue
            norm = log_normaliser(rows)
            where = slice(start + 1, start + 1 + m)
            result[variant].nll[where] = norm - rows[np.arange(m), targets]
            if variant == FULL:
                p_full = np.exp(rows - norm[:, None].astype(np.float32))
                p_full /= p_full.sum(axis=1, keepdims=True)
                cross_full, norm_full = np.einsum("ij,ij->i", p_full, rows, dtype=np.float64), norm
                result[variant].kl[where] = 0.0
            elif p_full is not None:
                cross = np.einsum("ij,ij->i", p_full, rows, dtype=np.float64)
                result[variant].kl[where] = cross_full - cross - norm_full + norm
        if progress is not None:
            progress(start + len(part), n)
    return result


def mean_interval(values: npt.NDArray[np.float64], block: int = 64) -> tuple[float, float]:
    """Mean and half width of its 95 % interval. Neighbouring tokens are not independent: the
    variance is that of the means of blocks of consecutive tokens."""
    values = values[~np.isnan(values)]
    if len(values) == 0:
        return float("nan"), float("nan")
    n = max(1, len(values) // block)
    means = np.array([part.mean() for part in np.array_split(values, n)])
    half = 1.96 * means.std(ddof=1) / np.sqrt(n) if n > 1 else float("nan")
    return float(values.mean()), float(half)
