"""Every policy against full attention that masks (:mod:`eval.masking`): the same pages go, and the
negative log-likelihood of every token is the same to 1e-4 nats."""

from __future__ import annotations

import numpy as np
import pytest
from checks import plain_of
from tiny import tiny_model

import pagedkv
from eval.masking import POLICIES, Eviction
from eval.novels import body
from pagedkv_runtime.paged import PagedStore

PAGE, BUDGET = 16, 96


def nll(logits, targets):
    wide = np.asarray(logits, np.float64)
    top = wide.max(axis=1)
    total = top + np.log(np.exp(wide - top[:, None]).sum(axis=1))
    return total[: len(targets)] - wide[np.arange(len(targets)), targets]


def compare(model, ids, policy, chunk, bar):
    """Feeds both in steps of ``chunk`` tokens; returns how many pages went."""
    plain = plain_of(model)
    made = pagedkv.EvictPolicy(policy, BUDGET)
    went = 0
    with PagedStore(model.config, memory=1 << 30, policy=made, signals=3, prefix=0) as store:
        seq = store.cache.sequence()

        def held():
            return {
                run.first // PAGE + i for run in seq.runs() for i in range(-(-run.n_tokens // PAGE))
            }

        gone: set[int] = set()

        def new_drops():
            here = held()
            lost = [p for p in range(seq.length // PAGE) if p not in here and p not in gone]
            gone.update(lost)
            return lost

        simulated = Eviction(plain, policy, BUDGET, PAGE, choose=new_drops)
        cache = plain.cache(len(ids))
        for start in range(0, len(ids), chunk):
            part = ids[start : start + chunk]
            with store.step([(seq, part)]) as step:
                got = model.forward(step.tokens, step.positions, step.attention)
                step.commit()
            want = plain.extend(cache, part, observer=simulated)
            targets = ids[start + 1 : start + len(part) + 1]
            error = np.abs(nll(got, targets) - nll(want, targets)).max(initial=0.0)
            assert error <= bar, f"{error} nats at token {start}"
            went += len(simulated.commit(len(part)))
            assert held() == set(simulated.held) | (
                {seq.length // PAGE} if seq.length % PAGE else set()
            ), f"after {seq.length} tokens"
    return went


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_every_policy_is_masking(policy, seed):
    model = tiny_model("llama", seed=seed)
    ids = np.random.default_rng(seed).integers(0, 96, size=25 * PAGE + 5).tolist()
    went = compare(model, ids, policy, PAGE, 1e-4)
    assert went == (0 if policy == "topk" else 25 - BUDGET // PAGE)


@pytest.mark.parametrize("policy", ["window", "sink", "keydiff", "topk", "random"])
def test_token_by_token(policy):
    """Policies that need no attention mass, in decode."""
    model = tiny_model("llama", seed=4)
    ids = np.random.default_rng(4).integers(0, 96, size=14 * PAGE).tolist()
    compare(model, ids, policy, 1, 1e-4)


@pytest.mark.parametrize("policy", ["window", "sink", "mass", "keydiff", "topk"])
def test_on_a_real_model(smollm2, policy, long_form):
    if not long_form:
        pytest.skip("the long form covers the real model here")
    model, tokenizer = smollm2
    try:
        ids = tokenizer.encode(body("persuasion")[:4000])[:320]
    except FileNotFoundError as error:
        pytest.skip(str(error))
    assert compare(model, ids, policy, PAGE, 1e-4) or policy == "topk"


def test_the_simulation_notices_a_wrong_page(monkeypatch):
    """A policy that keeps one page too few is seen at once."""
    model = tiny_model("llama")
    ids = np.random.default_rng(1).integers(0, 96, size=12 * PAGE).tolist()
    make = Eviction.__init__

    def less(self, plain, policy, budget, *rest, **options):
        make(self, plain, policy, budget - PAGE, *rest, **options)

    monkeypatch.setattr(Eviction, "__init__", less)
    with pytest.raises(AssertionError):
        compare(model, ids, "sink", PAGE, 1e-4)
