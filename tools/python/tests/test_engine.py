"""The scheduler by itself, on tiny models: who is matched when, who waits for whom, and that what
goes wrong with one request is that request's matter."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from checks import assert_greedy
from tiny import tiny_model

import pagedkv
from pagedkv_runtime import engine as engine_module
from pagedkv_runtime import paged
from pagedkv_runtime.engine import Engine, Request, State
from pagedkv_runtime.matching import common_tokens
from pagedkv_runtime.paged import PagedStore
from pagedkv_runtime.sampling import SamplingParams

RNG = np.random.default_rng(17)


def ids(n, seed=0):
    return np.random.default_rng(seed).integers(0, 96, size=n).tolist()


@pytest.fixture(scope="module")
def llama():
    return tiny_model("llama")


@pytest.fixture(scope="module")
def gemma():
    return tiny_model("gemma3")


def check(model, requests):
    for request in requests:
        assert request.state is State.DONE, request.error
        assert_greedy(model, request)


def submit(engine, prompts, n=6):
    requests = [Request(prompt, SamplingParams(n)) for prompt in prompts]
    for request in requests:
        engine.submit(request)
    return requests


def test_common_tokens():
    for _ in range(300):
        n = int(RNG.integers(0, 400))
        a = RNG.integers(0, 9, size=n).tolist()
        b = list(a)
        cut = int(RNG.integers(0, n + 1))
        if cut < n:
            b[cut] += 10
        limit = int(RNG.integers(0, 500))
        assert common_tokens(a, b, limit) == min(cut, limit)


# matching while waiting


@pytest.mark.parametrize("chunk", [32, 100, 256, 2048])
@pytest.mark.parametrize("safe", [False, True])
def test_requests_that_arrive_together_share_their_prompt(llama, chunk, safe):
    """Eight at once with 512 tokens in common: one computes them, seven take its pages."""
    system = ids(512)
    prompts = [system + ids(20 + i, 100 + i) for i in range(8)]
    with PagedStore(llama.config, memory=256 << 20) as store:
        engine = Engine(llama, store, chunk=chunk, safe=safe)
        requests = submit(engine, prompts)
        engine.run()
        store.cache.verify()
    assert [r.cached_tokens for r in requests] == [0] + [512] * 7
    tails = sum(len(p) - 512 for p in prompts)
    assert engine.stats.computed_tokens == 512 + tails + 8 * 5
    check(llama, requests)


def test_without_an_index_nobody_waits(llama):
    prompts = [ids(128) + [i] for i in range(4)]
    for options, engine_options in (({"prefix": 0}, {}), ({}, {"prefix": False})):
        with PagedStore(llama.config, memory=64 << 20, **options) as store:
            engine = Engine(llama, store, **engine_options)
            requests = submit(engine, prompts, 3)
            engine.step()
            assert len(engine.running) == 4
            engine.run()
        assert [r.cached_tokens for r in requests] == [0] * 4
        check(llama, requests)


def test_a_follower_holds_no_slot_and_others_pass(llama):
    """Two slots: the follower waits outside, the stranger behind it runs."""
    system = ids(256)
    with PagedStore(llama.config, memory=64 << 20) as store:
        engine = Engine(llama, store, chunk=64, max_batch=2)
        leader, follower, stranger = submit(engine, [system + [1], system + [2], ids(40, 5)], 12)
        engine.step()
        assert leader.state is stranger.state is State.RUNNING
        assert follower.state is State.WAITING and follower.following.leader is leader
        engine.run()
    assert follower.cached_tokens == 256
    check(llama, [leader, follower, stranger])


def test_a_small_common_part_is_computed_at_once(llama):
    """One page of twenty is no reason to wait: the rule asks for a quarter of the work."""
    start = ids(16)
    prompts = [start + ids(304, 1), start + ids(304, 2)]
    with PagedStore(llama.config, memory=64 << 20) as store:
        engine = Engine(llama, store, chunk=1024)
        requests = submit(engine, prompts, 3)
        engine.step()
        assert len(engine.running) == 2
        engine.run()
    check(llama, requests)


def test_a_running_request_takes_what_others_published(llama):
    """Admitted with nothing in common that is being computed; the pages come from elsewhere."""
    prompt = ids(400)
    with PagedStore(llama.config, memory=64 << 20) as store:
        engine = Engine(llama, store, chunk=32)
        (slow,) = submit(engine, [prompt + [1]])
        engine.step()
        assert slow.computed == 32
        other = Engine(llama, store, chunk=512)  # a second engine on the same cache
        (quick,) = submit(other, [prompt + [2]])
        other.run()
        engine._published += 1  # what a shared counter would say
        engine.step()
        assert slow.computed >= 400
        engine.run()
        store.cache.verify()
    assert slow.cached_tokens >= 400 - 32 - 16
    check(llama, [slow, quick])


def test_followers_of_a_leader_that_goes_away(llama):
    system = ids(512)
    with PagedStore(llama.config, memory=64 << 20) as store:
        engine = Engine(llama, store, chunk=64)
        leader, *others = submit(engine, [system + [i] for i in range(4)])
        engine.step()
        engine.step()
        assert len(engine.running) == 1
        engine.cancel(leader)
        engine.run()
        store.cache.verify()
    assert leader.state is State.FAILED
    # the first follower attaches what the leader had, and leads
    assert others[0].cached_tokens == 128
    assert [r.cached_tokens for r in others[1:]] == [512, 512]
    check(llama, others)


def test_chains_of_leaders(llama):
    """Each request goes on where the one before ends: everybody waits for the right one."""
    whole = ids(640)
    prompts = [whole[:200] + ids(3, 7), whole[:400] + ids(3, 8), whole[:600] + ids(3, 9), whole]
    with PagedStore(llama.config, memory=64 << 20) as store:
        engine = Engine(llama, store, chunk=48)
        requests = submit(engine, prompts)
        engine.run()
        store.cache.verify()
    assert [r.cached_tokens for r in requests] == [0, 192, 400, 592]
    check(llama, requests)


def test_following_under_a_policy(llama):
    """Pages of a count-based policy are found under that policy; nobody waits for a tainted one."""
    system = ids(320)
    for policy in (pagedkv.EvictPolicy("sink", 128), pagedkv.EvictPolicy("mass", 64)):
        with PagedStore(llama.config, memory=64 << 20, policy=policy) as store:
            engine = Engine(llama, store, chunk=16)
            requests = submit(engine, [system + [i] for i in range(3)])
            engine.run()
            store.cache.verify()
        assert all(r.state is State.DONE for r in requests)
        if policy.name == "sink":
            assert [r.cached_tokens > 0 for r in requests] == [False, True, True]


def test_preemption_with_followers(llama, monkeypatch):
    """Few pages: leaders are preempted, followers lead, everybody finishes with its tokens."""
    system = ids(200)
    prompts = [system + ids(60 + 10 * i, 50 + i) for i in range(6)]
    room = len(prompts[-1]) // 16 + 20
    groups_of = paged.groups_of

    def bounded(*formats):
        return [dataclasses.replace(group, max_pages=room) for group in groups_of(*formats)]

    monkeypatch.setattr(paged, "groups_of", bounded)
    with PagedStore(llama.config, memory=64 << 20) as store:
        engine = Engine(llama, store, chunk=64)
        requests = submit(engine, prompts, 30)
        engine.run()
        store.cache.verify()
    assert engine.stats.preemptions > 0
    check(llama, requests)


def test_random_schedules(llama, gemma):
    """Joins, cancellations, families of prompts: the books and the tokens are right."""
    for seed in range(6):
        rng = np.random.default_rng(seed)
        model = (llama, gemma)[seed % 2]
        families = [ids(int(rng.integers(20, 200)), 900 + i) for i in range(3)]
        with PagedStore(model.config, memory=64 << 20) as store:
            engine = Engine(
                model,
                store,
                chunk=int(rng.integers(8, 200)),
                max_batch=int(rng.integers(1, 6)),
                safe=bool(seed % 3 == 0),
            )
            requests = []
            for _ in range(60):
                if rng.random() < 0.4:
                    family = families[int(rng.integers(3))]
                    cut = int(rng.integers(1, len(family) + 1))
                    prompt = family[:cut] + ids(int(rng.integers(0, 30)), int(rng.integers(1000)))
                    requests += submit(engine, [prompt], int(rng.integers(1, 8)))
                if rng.random() < 0.05 and requests:
                    engine.cancel(requests[int(rng.integers(len(requests)))])
                engine.step()
            engine.run()
            store.cache.verify()
            assert store.cache.stats().sequences == 0
        check(model, [r for r in requests if r.state is not State.FAILED])
        assert sum(r.state is State.DONE for r in requests) > 10


# one request's trouble


def repeating(n):
    return (ids(7) * n)[:n]


def test_rejected_drafts_beyond_the_window_fail_one_request(gemma, monkeypatch):
    """rollback="truncate" cannot go back over pages that left the window: that request fails."""
    prompts = [repeating(150), ids(5, 3), ids(9, 4)]
    wrong = lambda tokens, n: [95] * n if len(tokens) >= 150 else []
    monkeypatch.setattr(engine_module, "draft_ngram", wrong)
    with PagedStore(gemma.config, memory=64 << 20, page_tokens=8) as store:
        engine = Engine(gemma, store, drafts=6, rollback="truncate", chunk=64)
        requests = submit(engine, prompts, 24)
        engine.run()
        store.cache.verify()
        assert store.cache.stats().sequences == 0
    assert [r.state for r in requests] == [State.FAILED, State.DONE, State.DONE]
    assert isinstance(requests[0].error, pagedkv.Dropped)
    assert requests[0].finished_at is not None and len(requests[0].output) < 24
    check(gemma, requests[1:])


def test_a_rollback_that_fails_fails_one_request(llama, monkeypatch):
    """The same whatever the reason: the library's refusal is injected."""
    prompts = [repeating(60), repeating(61)[::-1], ids(9, 4)]
    with PagedStore(llama.config, memory=64 << 20) as store:
        engine = Engine(llama, store, drafts=4, rollback="truncate")
        requests = submit(engine, prompts, 20)
        truncate, calls = pagedkv.Sequence.truncate, []

        def broken(self, n):
            calls.append(n)
            if len(calls) == 1:
                raise pagedkv.errors.make_error(pagedkv.CONSTANTS["EDROPPED"], "pkv_seq_truncate")
            truncate(self, n)

        monkeypatch.setattr(pagedkv.Sequence, "truncate", broken)
        engine.run()
        store.cache.verify()
        assert store.cache.stats().sequences == 0
    failed = [r for r in requests if r.state is State.FAILED]
    assert len(failed) == 1 and isinstance(failed[0].error, pagedkv.Dropped) and len(calls) > 1
    check(llama, [r for r in requests if r not in failed])


def test_a_callback_that_raises_fails_one_request(llama):
    def broken(request, token):
        raise RuntimeError("the client went away")

    with PagedStore(llama.config, memory=64 << 20) as store:
        engine = Engine(llama, store)
        bad = Request(ids(20), SamplingParams(9), on_token=broken)
        seen = []
        good = Request(ids(30, 1), SamplingParams(9), on_token=lambda r, t: seen.append(t))
        engine.submit(bad, samples=2)
        engine.submit(good)
        engine.run()
        assert store.cache.stats().sequences == 0
    assert bad.state is State.FAILED and "went away" in str(bad.error)
    assert seen == good.output
    check(llama, [good])


def test_an_interrupt_leaves_the_books_right(llama):
    def interrupt(request, token):
        if len(request.output) == 3:
            raise KeyboardInterrupt

    with PagedStore(llama.config, memory=64 << 20) as store:
        engine = Engine(llama, store)
        first = Request(ids(20), SamplingParams(9), on_token=interrupt)
        second = Request(ids(30, 1), SamplingParams(9))
        engine.submit(first)
        engine.submit(second)
        with pytest.raises(KeyboardInterrupt):
            engine.run()
        engine.run()  # and on it goes
    check(llama, [first, second])


def test_a_stream_that_nobody_reads_gives_its_pages_back(llama):
    with PagedStore(llama.config, memory=64 << 20) as store:
        engine = Engine(llama, store)
        request = Request(ids(40), SamplingParams(50))
        stream = engine.stream(request)
        next(stream)
        stream.close()
        assert request.state is State.FAILED and request.error is None
        assert store.cache.stats().sequences == 0 and engine.idle


def test_cancelled_siblings_never_start(llama):
    with PagedStore(llama.config, memory=64 << 20) as store:
        engine = Engine(llama, store)
        first, second, third = engine.submit(Request(ids(40), SamplingParams(5)), samples=3)
        engine.cancel(second)
        engine.run()
        assert store.cache.stats().sequences == 0
    assert second.state is State.FAILED and second.output == []
    check(llama, [first, third])


def test_siblings_have_claims(llama):
    with PagedStore(llama.config, memory=64 << 20) as store:
        engine = Engine(llama, store, safe=True)
        requests = engine.submit(Request(ids(40), SamplingParams(5)), samples=4)
        engine.run()
        assert store.cache.stats().sequences == 0
    check(llama, requests)


@pytest.mark.parametrize("prompt", [[-1], [96], [3, 1 << 40]])
def test_ids_that_the_model_lacks_are_refused(llama, prompt):
    with PagedStore(llama.config, memory=64 << 20) as store:
        engine = Engine(llama, store)
        with pytest.raises(ValueError, match="0 to 95"):
            engine.submit(Request(prompt))
        assert engine.idle
    with pytest.raises(TypeError):
        Request([1.7, 2.9])


def test_too_many_sequences_wait_their_turn(llama):
    """The cache's own bound on sequences is a reason to wait, not an error."""
    with PagedStore(llama.config, memory=64 << 20, max_sequences=2) as store:
        engine = Engine(llama, store)
        requests = submit(engine, [ids(20, i) for i in range(5)])
        engine.run()
    check(llama, requests)
