"""Choosing the next token, and drafts for speculative decoding."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class SamplingParams:
    """How a request generates. temperature 0 is greedy."""

    max_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    stop_ids: frozenset[int] = field(default_factory=frozenset)


class Sampler:
    """One request's choices: exactly one random number per emitted token, so that chunking,
    batching, preemption and speculation never change what a seed gives."""

    def __init__(self, params: SamplingParams) -> None:
        self._params = params
        self._random = np.random.Generator(np.random.PCG64(params.seed))

    def __call__(self, logits: npt.NDArray[np.float32]) -> int:
        """The next token of a row of logits ``[vocab]``."""
        params = self._params
        if params.temperature <= 0.0:
            return int(logits.argmax())
        scaled = logits.astype(np.float64) / params.temperature
        scaled -= scaled.max()
        p = np.exp(scaled)
        p /= p.sum()
        order = np.argsort(-p, kind="stable")
        cumulative = np.cumsum(p[order])
        keep = 1 + int(np.searchsorted(cumulative, params.top_p)) if params.top_p < 1.0 else len(p)
        keep = min(keep, len(p))
        draw = self._random.random() * cumulative[keep - 1]
        return int(order[min(int(np.searchsorted(cumulative, draw, side="right")), keep - 1)])


def draft_ngram(tokens: list[int], n_drafts: int, longest: int = 4) -> list[int]:
    """Draft continuation: what followed the latest earlier occurrence of the text's last n-gram,
    the longest n first. [] if nothing recurs."""
    if n_drafts <= 0:
        return []
    array = np.asarray(tokens, dtype=np.int64)
    for n in range(min(longest, len(array) - 1), 0, -1):
        tail = array[-n:]
        hits = np.flatnonzero(array[n - 1 : -1] == tail[-1])  # ends of candidates
        for back in range(1, n):
            hits = hits[array[hits + n - 1 - back] == tail[-1 - back]]
        if len(hits):
            after = int(hits[-1]) + n
            return [int(t) for t in array[after : after + n_drafts]]
    return []
