"""The runtime on pagedkv against a reference that shares no code with it and caches nothing.

A greedy run is right if one cache-free pass over prompt and output gives every output token as the
argmax before it: by induction that is what recomputing token by token gives, at the cost of one
pass (``test_reference_generate_agrees`` does it the long way once).

Logits in float32 differ by rounding alone, which the layers amplify. The bar is 1e-4, or what
numpy's concatenating cache is off by over several chunkings of the same text, whichever is larger:
no cache can be closer to a reference than its own float32 products are.
"""

from __future__ import annotations

import numpy as np
import pytest
from checks import assert_greedy, plain_of, reference_generate, reference_logits

from eval.plain import PlainModel
from pagedkv_runtime.beam import beam_search, search
from pagedkv_runtime.engine import Engine, Request, State
from pagedkv_runtime.paged import PagedStore
from pagedkv_runtime.reference import ConcatCache, NoCache
from pagedkv_runtime.sampling import SamplingParams
from pagedkv_runtime.weights import find_model

GIB = 1 << 30
TEXT = (
    "The lighthouse keeper wrote a line in the log every hour, even when nothing happened. Nothing"
    " happened most of the time. At four the wind turned and he wrote that down. At five a ship"
    " with two red lamps passed to the north, and he wrote that down too, with the bearing and the"
    " number of lamps. Years later a lawyer asked for the log of that night."
    " The lawyer read it aloud in"
    " court: wind north-west, ship, two red lamps, bearing 34 degrees, visibility good. The owners"
    " had sworn that there was only one lamp. The judge asked who had counted, and the keeper said"
    " that he counted everything, since that was what he was paid for: 3 sacks of coal, 12 candles,"
    " 40 steps to the gallery, 118 to the shore. 'And how many ships that year?' asked the judge."
    " 'Two hundred and six,' said the keeper, 'and one that came back.' Nobody in the room laughed,"
    " because all of them knew which ship he meant, and what it had brought home, and for whom."
)


def mixed_prompts(tokenizer, n, longest=180):
    """n prompts of mixed lengths, cut from the text at different places."""
    ids = tokenizer.encode(TEXT, add_bos=False)
    bos = tokenizer.bos
    rng = np.random.default_rng(5)
    prompts = []
    for i in range(n):
        length = int(rng.integers(1, min(longest, len(ids) - 8)))
        start = int(rng.integers(0, len(ids) - length))
        prompts.append(bos + ids[start : start + length])
    return prompts


def run(model, store, prompts, n, **options):
    engine = Engine(model, store, **options)
    requests = [Request(p, SamplingParams(n)) for p in prompts]
    for request in requests:
        engine.submit(request)
    engine.run()
    store.cache.verify()
    return engine, requests


def paged_logits(model, store, ids, chunk):
    seq, parts = store.cache.sequence(), []
    for start in range(0, len(ids), chunk):
        with store.step([(seq, ids[start : start + chunk])]) as step:
            parts.append(model.forward(step.tokens, step.positions, step.attention))
            step.commit()
    seq.close()
    return np.concatenate(parts)


def concat_logits(model, ids, chunk):
    cache = ConcatCache(model.config)
    return np.concatenate(
        [
            model.forward(ids[i : i + chunk], np.arange(i, min(len(ids), i + chunk)), cache)
            for i in range(0, len(ids), chunk)
        ]
    )


def worst(a, b):
    return float(np.abs(a - b).max())


def mean_square(a, b):
    return float(np.sqrt(np.mean((a.astype(np.float64) - b) ** 2)))


_noise: dict[tuple[int, tuple[int, ...]], tuple[float, float]] = {}


def numpy_noise(model, ids, reference):
    """(largest, root mean square) difference that float32 matrix products alone make: numpy's
    concatenating cache, fed in different chunks, against the reference. A text has a few
    ill-conditioned rows, and which chunking hits them is chance, so one chunking tells little."""
    key = (id(model), tuple(ids))
    if key not in _noise:
        runs = [concat_logits(model, ids, chunk) for chunk in (1, 7, 16, len(ids))]
        _noise[key] = (
            max(worst(run, reference) for run in runs),
            max(mean_square(run, reference) for run in runs),
        )
    return _noise[key]


def test_the_reference_reads_the_file_as_the_runtime_does(smollm2):
    """Both readers of the file, and both forward passes, on the same text."""
    model, tokenizer = smollm2
    ids = tokenizer.encode(TEXT)[:40]
    own = PlainModel.from_gguf(find_model("smollm2"))
    shared = plain_of(model)
    assert own.weights.keys() == shared.weights.keys()
    for name, value in own.weights.items():
        np.testing.assert_array_equal(value, shared.weights[name])
    assert worst(own.logits(ids), model.forward(ids, np.arange(40), NoCache(model.config))) <= 2e-4


@pytest.fixture(params=["smollm2", "gemma3"])
def any_model(request, long_form):
    if request.param == "gemma3" and not long_form:
        pytest.skip("the long form covers Gemma 3 here")
    return request.getfixturevalue(request.param)


# logits


@pytest.mark.parametrize("dtype, bar", [("f32", 1e-4), ("f16", 0.1), ("bf16", 0.6)])
def test_logits_within_the_dtype_bound(smollm2, dtype, bar, long_form):
    """f16 and bf16 round K and V once when they are written: 2^-11 and 2^-8 of each element."""
    model, tokenizer = smollm2
    ids = (tokenizer.encode(TEXT) * 6)[: 1000 if long_form else 200]
    reference = reference_logits(model, ids)
    with PagedStore(model.config, dtype=dtype, memory=GIB) as store:
        got = paged_logits(model, store, ids, 64)
    error = worst(got, reference)
    noise = numpy_noise(model, ids, reference)[0] if dtype == "f32" else 0.0
    print(f"{dtype}: largest logit error {error:.3g} (numpy's own noise {noise:.3g})")
    assert error <= max(bar, noise)
    agree = (got.argmax(1) == reference.argmax(1)).mean()
    assert agree == 1.0 if dtype == "f32" else agree > 0.98


@pytest.mark.parametrize("chunk", [1, 7, 16, 100, 512])
def test_logits_for_any_chunk(smollm2, chunk):
    model, tokenizer = smollm2
    ids = tokenizer.encode(TEXT)[: 60 if chunk == 1 else 200]
    reference = reference_logits(model, ids)
    with PagedStore(model.config, memory=GIB) as store:
        got = paged_logits(model, store, ids, chunk)
    largest, rms = numpy_noise(model, ids, reference)
    assert worst(got, reference) <= max(1e-4, largest), largest
    assert mean_square(got, reference) <= 1.25 * rms, rms


def test_gemma3_logits_across_its_window(gemma3, long_form):
    """Beyond 512 tokens the window layers drop pages; the logits do not notice."""
    model, tokenizer = gemma3
    ids = (tokenizer.encode(TEXT) * 4)[: 1500 if long_form else 600]
    rows = list(range(len(ids) - 60, len(ids)))
    reference = reference_logits(model, ids, rows)
    with PagedStore(model.config, memory=GIB) as store:
        seq, got = store.cache.sequence(), []
        for start in range(0, len(ids), 100):
            with store.step([(seq, ids[start : start + 100])]) as step:
                got.append(model.hidden(step.tokens, step.positions, step.attention))
                step.commit()
        got = model.logits(np.concatenate(got)[rows])
        window_group = 0 if model.config.groups[0][0].window else 1
        assert seq.info(window_group).dropped_pages > 0
        assert seq.info(1 - window_group).dropped_pages == 0
    cache = ConcatCache(model.config)
    parts = [range(i, min(len(ids), i + 100)) for i in range(0, len(ids), 100)]
    dense = [model.hidden([ids[i] for i in part], np.array(part), cache) for part in parts]
    noise = worst(model.logits(np.concatenate(dense)[rows]), reference)
    error = worst(got, reference)
    print(f"gemma3: largest logit error {error:.3g} (numpy's own noise {noise:.3g})")
    assert error <= max(1.5e-4, 1.25 * noise)


def test_gemma3_window_release_changes_no_bit(gemma3):
    """The same tokens with every page pinned, so that none is released: identical logits."""
    model, tokenizer = gemma3
    ids = (tokenizer.encode(TEXT) * 4)[:576]
    results = []
    for pinned in (False, True):
        with PagedStore(model.config, memory=GIB) as store:
            seq = store.cache.sequence()
            if pinned:
                seq.pin(0, len(ids))
            for start in range(0, len(ids), 64):
                with store.step([(seq, ids[start : start + 64])]) as step:
                    logits = model.forward(
                        step.tokens, step.positions, step.attention, step.last_rows
                    )
                    step.commit()
            window_group = 0 if model.config.groups[0][0].window else 1
            dropped = seq.info(window_group).dropped_pages
            assert (dropped == 0) is pinned
            results.append(logits)
    np.testing.assert_array_equal(results[0], results[1])


def test_threads_change_no_bit(smollm2):
    model, tokenizer = smollm2
    ids = tokenizer.encode(TEXT)[:150]
    results = []
    for threads in (1, 2, 3):
        with PagedStore(model.config, memory=GIB, threads=threads) as store:
            store.prepare = lambda n, c, s=store, p=store.prepare: (
                p(n, c),
                setattr(s, "_parallel", s.workers.n > 1),
            )
            results.append(paged_logits(model, store, ids, 50))
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


# greedy runs


def test_reference_generate_agrees(smollm2):
    """The reference by actual recomputation, token by token."""
    model, tokenizer = smollm2
    prompt = tokenizer.encode("Once upon a time, in a village by the sea,")
    with PagedStore(model.config, memory=GIB) as store:
        _, (request,) = run(model, store, [prompt], 24)
    assert request.output == reference_generate(model, prompt, 24)


def test_two_hundred_tokens(any_model):
    model, tokenizer = any_model
    prompt = tokenizer.encode(TEXT)[:40]
    with PagedStore(model.config, memory=GIB) as store:
        _, (request,) = run(model, store, [prompt], 220)
        assert len(request.output) == 220
    assert_greedy(model, request)


@pytest.mark.parametrize("n", [1, 3, 16])
def test_batches_of_mixed_lengths(any_model, n, long_form):
    model, tokenizer = any_model
    with PagedStore(model.config, memory=GIB) as store:
        _, requests = run(
            model, store, mixed_prompts(tokenizer, n), 200 if long_form else 20, chunk=64
        )
    for request in requests:
        assert_greedy(model, request)


@pytest.mark.parametrize("chunk", [1, 16, 33, 512])
def test_greedy_for_any_chunk(smollm2, chunk):
    model, tokenizer = smollm2
    with PagedStore(model.config, memory=GIB) as store:
        _, requests = run(model, store, mixed_prompts(tokenizer, 3, 60), 10, chunk=chunk)
    for request in requests:
        assert_greedy(model, request)


@pytest.mark.parametrize("page_tokens", [8, 128])
def test_greedy_for_other_page_sizes(smollm2, page_tokens):
    model, tokenizer = smollm2
    with PagedStore(model.config, memory=GIB, page_tokens=page_tokens) as store:
        _, requests = run(model, store, mixed_prompts(tokenizer, 4), 12)
    for request in requests:
        assert_greedy(model, request)


def test_prefix_hits(any_model):
    """A second wave with the same system prompt attaches its pages and says the same."""
    model, tokenizer = any_model
    system = tokenizer.encode(TEXT)[:100]
    tails = [tokenizer.encode(t, add_bos=False) for t in (" Therefore", " The ship", " In 1850,")]
    with PagedStore(model.config, memory=GIB) as store:
        _, first = run(model, store, [system + t for t in tails], 15)
        _, again = run(model, store, [system + t for t in tails], 15)
        assert all(r.cached_tokens >= 96 for r in again)
        engine = Engine(model, store, namespace=b"other tenant")
        stranger = Request(system + tails[0], SamplingParams(3))
        engine.submit(stranger)
        engine.run()
        assert stranger.cached_tokens == 0
    for a, b in zip(first, again):
        assert a.output == b.output
        assert_greedy(model, b)


def test_multi_turn_reuses_the_conversation(smollm2):
    model, tokenizer = smollm2
    with PagedStore(model.config, memory=GIB) as store:
        _, (one,) = run(model, store, [tokenizer.encode(TEXT)[:70]], 30)
        follow = one.tokens + tokenizer.encode(" But then")
        _, (two,) = run(model, store, [follow], 20)
        assert two.cached_tokens >= len(one.tokens) - 1 - 16
    assert_greedy(model, two)


def test_parallel_samples_share_the_prompt(smollm2):
    """Forked samples equal requests that ran on their own with the same seeds."""
    model, tokenizer = smollm2
    prompt = tokenizer.encode(TEXT)[:90]
    params = SamplingParams(15, temperature=0.9, top_p=0.9, seed=40)
    with PagedStore(model.config, memory=GIB) as store:
        engine = Engine(model, store, prefix=False)
        samples = engine.submit(Request(prompt, params), samples=4)
        while not engine.running or not all(r.seq for r in samples):
            engine.step()
        pages = store.cache.stats()
        assert pages.pages_shared >= len(prompt) // 16
        engine.run()
        alone = []
        for i in range(4):
            from dataclasses import replace

            request = Request(prompt, replace(params, seed=40 + i))
            engine.submit(request)
            engine.run()
            alone.append(request.output)
    assert [r.output for r in samples] == alone
    assert len({tuple(o) for o in alone}) > 1


def test_beam_search(smollm2):
    """Beams on forks equal beams that recompute everything."""
    model, tokenizer = smollm2
    prompt = tokenizer.encode(TEXT)[:50]
    with PagedStore(model.config, memory=GIB) as store:
        found = beam_search(model, store, prompt, width=3, max_tokens=8)
        store.cache.verify()
        assert store.cache.stats().sequences == 0
    state = [prompt]

    def advance(parents, tokens):
        state[:] = [state[p] + [t] for p, t in zip(parents, tokens)]
        return np.stack([reference_logits(model, s, [len(s) - 1])[0] for s in state])

    first = reference_logits(model, prompt, [len(prompt) - 1])
    wanted = search(advance, first, 3, 8, (), 1.0)
    assert [h.ids for h in found] == [h.ids for h in wanted]
    np.testing.assert_allclose([h.score for h in found], [h.score for h in wanted], atol=1e-4)


@pytest.mark.parametrize("rollback", ["partial", "truncate"])
def test_speculation_changes_nothing(any_model, rollback):
    model, tokenizer = any_model
    base = tokenizer.encode("one two three four, one two three four, one two")
    prompts = [base, *mixed_prompts(tokenizer, 2, 60)]
    with PagedStore(model.config, memory=GIB) as store:
        engine, requests = run(model, store, prompts, 30, drafts=4, rollback=rollback)
    assert engine.stats.accepted > 0 and engine.stats.drafted > engine.stats.accepted
    assert engine.stats.steps < 31
    for request in requests:
        assert_greedy(model, request)


def test_speculative_sampling_gives_what_the_seed_gives(smollm2):
    model, tokenizer = smollm2
    prompt = tokenizer.encode("a b c d a b c d a b c d a b")
    outputs = []
    for drafts in (0, 5):
        with PagedStore(model.config, memory=GIB) as store:
            engine = Engine(model, store, drafts=drafts)
            request = Request(prompt, SamplingParams(25, temperature=0.7, top_p=0.95, seed=9))
            engine.submit(request)
            engine.run()
            outputs.append(request.output)
    assert outputs[0] == outputs[1]


def store_bytes(store):
    counters = store.cache.stats()
    return counters.region_bytes + counters.metadata_bytes


def test_half_the_memory_gives_the_same_tokens(any_model):
    """Preemption with recomputation, reclaim of cached prefixes, and a limit that changes twice."""
    model, tokenizer = any_model
    prompts = mixed_prompts(tokenizer, 8, 150)
    n = 40
    with PagedStore(model.config, memory=2 * GIB, region_bytes=2 << 20) as store:
        engine, wanted = run(model, store, prompts, n)
        assert engine.stats.preemptions == 0
        metadata = store.cache.stats().metadata_bytes_peak
        need = engine.stats.peak_bytes
        regions = need // 2 // (2 << 20)
    half = max(regions, 4) * (2 << 20) + metadata
    with PagedStore(model.config, memory=half, region_bytes=2 << 20) as store:
        engine = Engine(model, store, chunk=64)
        requests = [Request(p, SamplingParams(n)) for p in prompts]
        for request in requests:
            engine.submit(request)
        for _ in range(10):
            engine.step()
        engine.set_limit(half * 7 // 8)  # less still, while running
        for _ in range(10):
            engine.step()
        engine.set_limit(half)
        engine.run()
        store.cache.verify()
        assert store.cache.stats().region_bytes_peak <= half
        reclaimed = store.cache.stats().pages_reclaimed
    assert engine.stats.preemptions > 0
    assert reclaimed > 0
    assert [r.output for r in requests] == [r.output for r in wanted]


def test_admission_by_claims_never_preempts(smollm2):
    model, tokenizer = smollm2
    prompts = mixed_prompts(tokenizer, 6, 100)
    with PagedStore(model.config, memory=24 << 20, region_bytes=2 << 20) as store:
        engine, requests = run(model, store, prompts, 20, safe=True)
    assert engine.stats.preemptions == 0
    for request in requests:
        assert_greedy(model, request)


def test_a_request_that_can_never_fit_fails_alone(smollm2):
    model, tokenizer = smollm2
    ids = tokenizer.encode(TEXT)
    with PagedStore(model.config, memory=16 << 20, region_bytes=2 << 20) as store:
        engine = Engine(model, store)
        huge = Request((ids * 10)[:2000], SamplingParams(4))
        small = Request(ids[:20], SamplingParams(4))
        engine.submit(huge)
        engine.submit(small)
        engine.run()
        assert huge.state is State.FAILED and huge.error is not None
        assert store.cache.stats().sequences == 0
        store.cache.verify()
    assert_greedy(model, small)


def test_requests_join_and_leave(smollm2):
    model, tokenizer = smollm2
    prompts = mixed_prompts(tokenizer, 6, 60)
    with PagedStore(model.config, memory=GIB) as store:
        engine, requests = Engine(model, store, max_batch=3), []
        for i, prompt in enumerate(prompts):
            request = Request(prompt, SamplingParams(5 + 2 * i))
            requests.append(request)
            engine.submit(request)
            for _ in range(3):
                engine.step()
        gone = Request(prompts[0], SamplingParams(500))
        engine.submit(gone)
        engine.step()
        engine.cancel(gone)
        engine.run()
        assert store.cache.stats().sequences == 0
        store.cache.verify()
    assert gone.state is State.FAILED
    for request in requests:
        assert_greedy(model, request)
