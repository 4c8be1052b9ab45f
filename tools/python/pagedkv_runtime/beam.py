"""Beam search on forks: every hypothesis is a sequence, survivors fork, losers are released."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .model import Model
from .paged import PagedStore


@dataclass(frozen=True)
class Hypothesis:
    """A finished or surviving continuation and its score: log-probability / length^penalty."""

    ids: list[int]
    score: float


def log_softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Row-wise log-probabilities in double precision."""
    x = logits.astype(np.float64)
    x -= x.max(axis=-1, keepdims=True)
    result: npt.NDArray[np.float64] = x - np.log(np.exp(x).sum(axis=-1, keepdims=True))
    return result


def expand(
    scores: npt.NDArray[np.float64], logits: npt.NDArray[np.float32], n: int
) -> list[tuple[float, int, int]]:
    """The n best (score, beam, token) over all continuations; ties go to the lower beam, token."""
    total = scores[:, None] + log_softmax(logits)
    flat = total.ravel()
    n = min(n, flat.size)
    best = np.argpartition(-flat, n - 1)[:n]
    best = best[np.lexsort((best, -flat[best]))]
    vocab = total.shape[1]
    return [(float(flat[i]), int(i) // vocab, int(i) % vocab) for i in best]


def search(
    next_logits: Callable[[list[int], list[int]], npt.NDArray[np.float32]],
    first_logits: npt.NDArray[np.float32],
    width: int,
    max_tokens: int,
    stop_ids: SequenceOf[int],
    length_penalty: float,
) -> list[Hypothesis]:
    """The search itself, whatever keeps the state: ``next_logits(parents, tokens)`` goes on to
    beams that extend ``parents[i]`` by ``tokens[i]`` and returns logits ``[beams, vocab]``."""
    stops = set(stop_ids)
    done: list[Hypothesis] = []
    beams: list[list[int]] = [[]]
    scores = np.zeros(1)
    logits = first_logits
    for _ in range(max_tokens):
        parents: list[int] = []
        tokens: list[int] = []
        kept: list[float] = []
        for score, beam, token in expand(scores, logits, 2 * width):
            ids = [*beams[beam], token]
            if token in stops:
                done.append(Hypothesis(ids, score / len(ids) ** length_penalty))
            elif len(parents) < width:
                parents.append(beam)
                tokens.append(token)
                kept.append(score)
        beams = [[*beams[p], t] for p, t in zip(parents, tokens)]
        scores = np.asarray(kept)
        if (
            not beams
            or len(beams[0]) >= max_tokens
            or len(done) >= width
            and (sorted(h.score for h in done)[-width] >= kept[0] / len(beams[0]) ** length_penalty)
        ):
            break
        logits = next_logits(parents, tokens)
    done += [Hypothesis(ids, s / len(ids) ** length_penalty) for ids, s in zip(beams, scores)]
    return sorted(done, key=lambda h: -h.score)[:width]


def beam_search(
    model: Model,
    store: PagedStore,
    prompt: list[int],
    *,
    width: int = 4,
    max_tokens: int = 64,
    chunk: int = 256,
    stop_ids: SequenceOf[int] = (),
    length_penalty: float = 1.0,
) -> list[Hypothesis]:
    """The ``width`` best continuations of a prompt, best first. Pages of the prompt and of common
    beginnings are shared; only tails are copied."""
    root = store.cache.sequence()
    live = [root]
    try:
        logits = np.empty((0, 0), np.float32)
        for start in range(0, len(prompt), chunk):
            with store.step([(root, prompt[start : start + chunk])]) as step:
                logits = model.forward(step.tokens, step.positions, step.attention, step.last_rows)
                step.commit()

        def advance(parents: list[int], tokens: list[int]) -> npt.NDArray[np.float32]:
            used: set[int] = set()
            nexts = []
            old = list(live)
            for parent in parents:  # the first child takes the parent over, the others fork
                nexts.append(old[parent].fork() if parent in used else old[parent])
                used.add(parent)
                if nexts[-1] not in live:
                    live.append(nexts[-1])
            for i, seq in enumerate(old):
                if i not in used:
                    seq.close()
                    live.remove(seq)
            live[:] = nexts
            with store.step(list(zip(live, ([t] for t in tokens)))) as step:
                result = model.forward(step.tokens, step.positions, step.attention, step.last_rows)
                step.commit()
            return result

        return search(advance, logits, width, max_tokens, stop_ids, length_penalty)
    finally:
        for seq in live:
            seq.close()
