"""The forward pass by itself: pieces against straightforward formulas, caches against none."""

from __future__ import annotations

import numpy as np
import pytest

from pagedkv_runtime.model import Rope, gelu_mul, rms_norm, silu_mul
from pagedkv_runtime.reference import (
    ConcatCache,
    NoCache,
    attend_dense,
    reference_generate,
    reference_logits,
)
from pagedkv_runtime.sampling import Sampler, SamplingParams, draft_ngram

RNG = np.random.default_rng(7)


def test_norm_and_activations():
    x = RNG.normal(size=(5, 64)).astype(np.float32)
    w = RNG.normal(size=64).astype(np.float32)
    want = x / np.sqrt((x.astype(np.float64) ** 2).mean(-1, keepdims=True) + 1e-6) * w
    np.testing.assert_allclose(rms_norm(x, w, 1e-6), want, rtol=2e-5)
    g, u = (RNG.normal(size=(5, 64), scale=30).astype(np.float32) for _ in range(2))
    with np.errstate(over="ignore"):
        np.testing.assert_allclose(silu_mul(g, u), g / (1 + np.exp(-g)) * u, rtol=1e-5, atol=1e-6)
    gelu = 0.5 * g * (1 + np.tanh(np.sqrt(2 / np.pi) * (g + 0.044715 * g**3))) * u
    np.testing.assert_allclose(gelu_mul(g, u), gelu, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("interleaved", [False, True])
def test_rope_keeps_distances(interleaved):
    """q at p and k at s give a product that depends on p - s alone, and angle 0 changes nothing."""
    q, k = (RNG.normal(size=(1, 1, 32)).astype(np.float32) for _ in range(2))

    def product(p, s):
        turn = lambda x, at: Rope([at], 1e4, 32, interleaved)(x)
        return float((turn(q, p) * turn(k, s)).sum())

    assert product(7, 3) == pytest.approx(product(1004, 1000), abs=1e-4)
    assert product(7, 3) != pytest.approx(product(8, 3), abs=1e-3)
    np.testing.assert_array_equal(Rope([0], 1e4, 32, interleaved)(q), q)


def test_rope_pairs():
    """The two layouts are the same rotation of permuted elements."""
    x = RNG.normal(size=(3, 2, 32)).astype(np.float32)
    order = np.arange(32).reshape(2, 16).T.ravel()  # half-split index of interleaved place
    a = Rope([5, 6, 7], 1e4, 32, True)(x[..., order])
    b = Rope([5, 6, 7], 1e4, 32, False)(x)
    np.testing.assert_allclose(a, b[..., order], atol=1e-6)


@pytest.mark.parametrize("window", [0, 5])
def test_dense_attention_against_a_loop(window):
    q = RNG.normal(size=(7, 4, 8)).astype(np.float32)
    k, v = (RNG.normal(size=(10, 2, 8)).astype(np.float32) for _ in range(2))
    got = attend_dense(q, k, v, 3, window, block=4)
    for row in range(7):
        at = 3 + row
        low = max(0, at - window + 1) if window else 0
        for head in range(4):
            s = k[low : at + 1, head // 2].astype(float) @ q[row, head] / np.sqrt(8)
            p = np.exp(s - s.max())
            want = (p / p.sum()) @ v[low : at + 1, head // 2]
            np.testing.assert_allclose(got[row, head], want, rtol=1e-5, atol=1e-6)


def test_concat_cache_equals_no_cache(smollm2):
    model, tokenizer = smollm2
    ids = tokenizer.encode("A short walk along the canal, before the rain came back.")
    whole = reference_logits(model, ids)
    cache, parts = ConcatCache(model.config), []
    for start, stop in ((0, 5), (5, 6), (6, len(ids))):
        parts.append(model.forward(ids[start:stop], np.arange(start, stop), cache))
    assert np.abs(np.concatenate(parts) - whole).max() < 1e-3
    assert cache.length == len(ids)


def test_generates_sense(smollm2):
    model, tokenizer = smollm2
    prompt = tokenizer.encode("The capital of France is")
    assert tokenizer.decode(reference_generate(model, prompt, 2)) == " Paris."


def test_no_cache_is_causal(smollm2):
    model, tokenizer = smollm2
    ids = tokenizer.encode("one two three four five six")
    other = [*ids[:-1], ids[0]]
    a = model.forward(ids, np.arange(len(ids)), NoCache(model.config))
    b = model.forward(other, np.arange(len(ids)), NoCache(model.config))
    np.testing.assert_array_equal(a[:-1], b[:-1])
    assert np.abs(a[-1] - b[-1]).max() > 0.1


def test_sampler_distribution_and_greedy():
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))
    assert Sampler(SamplingParams())(logits) == 0
    sampler = Sampler(SamplingParams(temperature=1.0, seed=3))
    counts = np.bincount([sampler(logits) for _ in range(4000)], minlength=4) / 4000
    np.testing.assert_allclose(counts, [0.5, 0.3, 0.15, 0.05], atol=0.03)
    nucleus = Sampler(SamplingParams(temperature=1.0, top_p=0.7, seed=3))
    seen = {nucleus(logits) for _ in range(500)}
    assert seen == {0, 1}  # the smallest set that reaches 0.7
    cold = Sampler(SamplingParams(temperature=0.01, seed=3))
    assert {cold(logits) for _ in range(100)} == {0}


def test_ngram_drafts():
    assert draft_ngram([1, 2, 3, 9, 1, 2, 3], 3) == [9, 1, 2]
    assert draft_ngram([1, 2, 3], 3) == []
    assert draft_ngram([5, 5, 5], 4) == [5]
    assert draft_ngram([1, 2, 8, 3, 2, 7, 1, 2], 1) == [8]  # the longer match wins
    assert draft_ngram([1, 2, 1], 0) == []
