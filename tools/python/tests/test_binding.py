"""The binding on a small cache: life of objects, errors with detail, numpy without copies."""

from __future__ import annotations

import sys
import threading

import numpy as np
import pytest

import pagedkv
from pagedkv import CONSTANTS

RNG = np.random.default_rng(11)
LAYERS, KV, HEADS, DIM = 2, 2, 4, 32


def group(**changes):
    return pagedkv.Group(
        **{
            "n_layers": LAYERS,
            "kv_heads": KV,
            "head_dim": DIM,
            "q_heads": HEADS,
            "dtype": "f32",
            **changes,
        }
    )


@pytest.fixture
def cache():
    with pagedkv.Cache([group()], memory_limit=64 << 20, event_capacity=1024) as made:
        yield made
        if not made.closed:
            made.verify()


def rows(n, heads):
    return RNG.normal(size=(n, heads, DIM)).astype(np.float32)


def feed(cache, plan, seq, tokens, nth=1):
    """One step of one sequence: the (q, k, v) per layer and the outputs."""
    n, seen = len(tokens), []
    with cache.batch() as batch:
        batch.add(seq, tokens)
        batch.reserve()
        plan.build(batch)
        for layer in range(LAYERS):
            q, k, v = rows(n, HEADS), rows(n, KV), rows(n, KV)
            out, lse = np.empty_like(q), np.empty((n, HEADS), np.float32)
            for ith in range(nth):
                plan.write(layer, k, v, ith, nth)
            threads = [
                threading.Thread(target=plan.attend, args=(layer, q, out, lse, i, nth))
                for i in range(nth)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            seen.append((q, k, v, out, lse))
        batch.commit()
    return seen


def dense(q, k, v, first):
    from pagedkv_runtime.reference import attend_dense

    return attend_dense(q, k, v, first, 0)


def test_version_and_kernels():
    assert pagedkv.library_version().startswith("{}.{}.".format(*pagedkv.API_VERSION))
    assert "generic" in pagedkv.kernels()
    assert pagedkv.config_bounds("page_tokens") == (8, 128)
    with pytest.raises(pagedkv.InvalidArgument, match="unknown field"):
        pagedkv.config_bounds("nonsense")


def test_attention_matches_numpy_over_steps(cache):
    plan, seq = cache.plan(), cache.sequence()
    keys, values = ([np.empty((0, KV, DIM), np.float32)] * LAYERS for _ in range(2))
    keys, values, first = list(keys), list(values), 0
    for n in (1, 20, 3, 17):
        for layer, (q, k, v, out, lse) in enumerate(feed(cache, plan, seq, range(n), nth=2)):
            keys[layer] = np.concatenate([keys[layer], k])
            values[layer] = np.concatenate([values[layer], v])
            np.testing.assert_allclose(out, dense(q, keys[layer], values[layer], first), atol=2e-6)
            assert np.isfinite(lse).all()
        first += n
    assert seq.length == len(seq) == first
    k, v = seq.read(1, 5, 20)
    np.testing.assert_array_equal(k, keys[1][5:25])
    np.testing.assert_array_equal(v, values[1][5:25])
    bits, _ = seq.read(1, 5, 20, dtype="bf16")
    np.testing.assert_array_equal(bits, pagedkv.to_bf16(keys[1][5:25]))


def test_rows_take_strided_views_without_copies(cache):
    plan, seq = cache.plan(), cache.sequence()
    n = 5
    qkv = RNG.normal(size=(n, (HEADS + 2 * KV) * DIM)).astype(np.float32)
    q = qkv[:, : HEADS * DIM].reshape(n, HEADS, DIM)
    k = qkv[:, HEADS * DIM : (HEADS + KV) * DIM].reshape(n, KV, DIM)
    v = qkv[:, (HEADS + KV) * DIM :].reshape(n, KV, DIM)
    for view in (q, k, v):
        assert np.shares_memory(view, qkv)
        assert pagedkv.Rows(view).struct.data == view.ctypes.data
    out = np.full((n, HEADS, DIM), np.nan, np.float32)
    with cache.batch() as batch:
        batch.add(seq, None, n)
        batch.reserve()
        plan.build(batch)
        plan.write(0, k, v)
        plan.attend(0, q, out)
        reference, _ = plan.attend_reference(0, q)
    np.testing.assert_allclose(out, dense(np.ascontiguousarray(q), k, v, 0), atol=2e-6)
    np.testing.assert_allclose(out, reference, atol=2e-6)
    assert seq.length == 0  # left without a commit: as if it had never begun


@pytest.mark.parametrize(
    "bad",
    [
        np.zeros((2, DIM), np.float32),
        np.zeros((2, KV, DIM), np.int32),
        np.zeros((2, KV, 2 * DIM), np.float32)[..., ::2],
    ],
)
def test_rows_reject_what_c_cannot_read(bad):
    with pytest.raises((TypeError, ValueError)):
        pagedkv.Rows(bad)


def test_read_only_output_is_refused():
    array = np.zeros((1, 1, DIM), np.float32)
    array.flags.writeable = False
    pagedkv.Rows(array)
    with pytest.raises(ValueError, match="read-only"):
        pagedkv.RowsOut(array)


def test_bf16_conversions():
    x = np.array([1.0, -2.5, 1e-40, 3.1415926, np.inf, np.nan, 65280.1], np.float32)
    back = pagedkv.from_bf16(pagedkv.to_bf16(x))
    np.testing.assert_allclose(back[:4], x[:4], rtol=2**-8, atol=1e-38)
    assert np.isinf(back[4]) and np.isnan(back[5])


def test_fork_copy_on_write_and_truncate(cache):
    plan, seq = cache.plan(), cache.sequence()
    feed(cache, plan, seq, range(20))
    before, _ = seq.read(0, 0, 20)
    child = seq.fork()
    assert child.info().shared_pages == 2
    with cache.batch() as batch:
        batch.add(child, [7])
        batch.reserve()
        copies = batch.copies()
        assert len(copies) == 1 and copies[0].n_tokens == 4
    feed(cache, plan, child, [7, 8])
    assert (seq.length, child.length) == (20, 22)
    np.testing.assert_array_equal(seq.read(0, 0, 20)[0], before)
    np.testing.assert_array_equal(child.read(0, 0, 20)[0], before)
    child.truncate(3)
    assert child.length == 3
    with pytest.raises(pagedkv.InvalidArgument):
        child.truncate(4)
    child.close()
    child.close()
    assert cache.stats().sequences == 1


def test_errors_carry_status_text_and_detail(cache):
    seq = cache.sequence()
    with cache.batch() as batch:
        batch.add(seq, [1])
        with pytest.raises(pagedkv.InvalidArgument) as caught:
            batch.add(seq, [2])
        assert caught.value.status == CONSTANTS["EINVAL"]
        assert caught.value.name == "PKV_EINVAL"
        assert caught.value.detail and caught.value.detail in str(caught.value)
    with pytest.raises(pagedkv.PagedKVError):  # the handle is stale now
        batch.commit()
    with pytest.raises(pagedkv.InvalidArgument, match="kv_heads"):
        pagedkv.Cache([group(kv_heads=0)])
    with pytest.raises(TypeError, match="no option 'nonsense'"):
        pagedkv.Cache([group()], nonsense=1)
    with pytest.raises(ValueError, match="dtype"):
        pagedkv.Cache([group(dtype="f8")])


def test_stale_and_foreign_handles(cache):
    seq = cache.sequence()
    copy = pagedkv.Sequence(cache, seq.handle)
    seq.close()
    with pytest.raises(pagedkv.StaleHandle):
        copy.length
    with pagedkv.Cache([group()], memory_limit=16 << 20) as other:
        foreign = other.sequence()
        with cache.batch() as batch, pytest.raises(pagedkv.ForeignHandle):
            batch.add(foreign, [1])


def test_out_of_pages_says_how_many_and_changes_nothing():
    with pagedkv.Cache([group()], memory_limit=6 << 20, region_bytes=2 << 20) as cache:
        seq = cache.sequence()
        with cache.batch() as batch:
            batch.add(seq, None, 1 << 20)
            with pytest.raises(pagedkv.OutOfPages) as caught:
                batch.reserve()
        assert len(caught.value.missing) == 1 and caught.value.missing[0] > 0
        assert seq.length == 0 and cache.stats().pages_used == 0
        cache.verify()


def test_partial_commit(cache):
    plan, a, b = cache.plan(), cache.sequence(), cache.sequence()
    with cache.batch() as batch:
        batch.add(a, range(5))
        batch.add(b, range(3))
        batch.reserve()
        plan.build(batch)
        batch.commit_partial([2, 0])
    assert (a.length, b.length) == (2, 0)


def test_a_path_of_a_tree_is_kept(cache):
    plan, a, b = cache.plan(), cache.sequence(), cache.sequence()
    k, v = rows(8, KV), rows(8, KV)
    with cache.batch() as batch:
        batch.add(a, range(5))
        batch.add(b, range(3))
        batch.reserve()
        plan.build(batch)
        for layer in range(LAYERS):
            plan.write(layer, k, v)
        with pytest.raises(pagedkv.PagedKVError, match="ascend"):
            batch.commit_paths([[3, 1], []])
        batch.commit_paths([[0, 2, 4], []])
    assert (a.length, b.length) == (3, 0)
    assert (a.read(1, 0, 3)[0] == k[[0, 2, 4]]).all()


def test_exports_agree(cache):
    plan, a, b = cache.plan(), cache.sequence(), cache.sequence()
    feed(cache, plan, a, range(40))
    with cache.batch() as batch:
        batch.add(b, [7])
        batch.add(a, [1, 2])
        batch.remove(0)
        batch.add(b, range(17))
        batch.reserve()
        assert batch.size() == (2, 19)
        indptr, indices, last = batch.csr()
        table = batch.block_table(4)
        slots = batch.slot_mapping()
        state = np.zeros((3, 4), np.uint64)
        kept = np.full((3, 4), 7, np.int32)
        batch.block_table_update(kept, state, rows=np.array([2, 0]))
        kept[2, 0] = 99  # not changed since: not written again
        batch.block_table_update(kept, state, rows=np.array([2, 0]))
        with pytest.raises(ValueError, match="state"):
            batch.block_table_update(kept, state[:2])
    assert indptr.tolist() == [0, 3, 5] and last.tolist() == [10, 1]
    np.testing.assert_array_equal(table[0, :3], indices[:3])
    np.testing.assert_array_equal(table[1, :2], indices[3:])
    assert table[0, 3] == table[1, 2] == -1
    np.testing.assert_array_equal(table[0, 1:], kept[2, 1:])
    np.testing.assert_array_equal(table[1], kept[0])
    assert kept[2, 0] == 99 and (kept[1] == 7).all()
    assert slots[0] == indices[2] * 16 + 8 and slots[-1] == indices[4] * 16
    assert (np.asarray(pagedkv_index(a.pages(0, 0, 3))) == indices[:3]).all()


def pagedkv_index(pages):
    return [int(page) & 0xFFFFFFFF for page in pages]


def test_token_ids_may_come_late(cache):
    tokens = np.arange(300, 350)
    with cache.sequence() as seq:
        for first, n in ((0, 20), (20, 30)):
            with cache.batch() as batch:
                batch.add(seq, None, n)
                batch.reserve()
                if first:
                    batch.set_tokens(0, tokens[first : first + n])
                    assert list(seq.missing_tokens()) == list(range(20))
                    seq.set_tokens(0, tokens[:20])
                batch.commit()
        assert not seq.missing_tokens()
        assert cache.prefix.match(tokens).n_pages == 3
        with pytest.raises(pagedkv.InvalidArgument):
            seq.set_tokens(51, tokens[:1])


def test_prefix_match_attach_and_namespaces(cache):
    plan, seq = cache.plan(), cache.sequence()
    tokens = np.arange(100, 150)
    feed(cache, plan, seq, tokens)
    keys, _ = seq.read(0, 0, 48)
    seq.close()
    assert cache.stats().pages_cached == 3
    match = cache.prefix.match(tokens)
    assert match.n_tokens >= 48 and match.n_pages == 3
    other = cache.sequence()
    assert other.attach_prefix(tokens[:-1]) == match.n_tokens
    np.testing.assert_array_equal(other.read(0, 0, 48)[0], keys)
    assert cache.prefix.match(tokens, b"tenant").n_tokens == 0
    assert cache.sequence().attach_prefix(tokens, b"tenant") == 0
    assert pagedkv.digest_tokens(tokens, 16) == cache.prefix.digests(match)
    pin = cache.prefix.pin(match, ttl_ns=0)
    cache.prefix.unpin(pin)
    with pytest.raises(pagedkv.StaleHandle):
        cache.prefix.unpin(pin)
    assert cache.prefix.stats().tokens_hit >= 48
    other.close()
    assert cache.prefix.drop() == 3
    assert cache.prefix.match(tokens).n_tokens == 0


def test_block_index_replay():
    assert pagedkv.prefix_policies()["lru-leaf"] is False
    with pagedkv.BlockIndex(pages=4) as index:
        assert index.replay([1, 2, 3]) == 0
        assert index.replay([1, 2, 4]) == 2
        assert index.match([1, 2, 3]) == 3
        index.replay([7, 8])
        assert index.stats().pages <= 4
        index.verify()


def test_limits_stats_events(cache):
    plan, seq = cache.plan(), cache.sequence()
    feed(cache, plan, seq, range(33))
    stats = cache.stats()
    assert stats.tokens == 33 and stats.pages_used == 3 and stats.pages_sealed == 2
    assert cache.group_stats(0).pages_used == 3
    assert cache.group_info(0).token_bytes == LAYERS * 2 * KV * DIM * 4
    assert cache.layer_group(1) == (0, 1)
    kinds = {event.kind for event in cache.events()}
    assert CONSTANTS["EVENT_PAGE_ALLOC"] in kinds and CONSTANTS["EVENT_PAGE_SEAL"] in kinds
    with pytest.raises(pagedkv.Busy):
        cache.set_limit(1)
    assert cache.stats().memory_limit == 64 << 20
    cache.set_limit(32 << 20)
    assert cache.stats().memory_limit == 32 << 20
    seq.close()
    cache.trim()
    assert "tokens=0" in repr(cache.stats())


def test_limit_shortfall_says_what_stands_in_the_way(cache):
    plan, seq = cache.plan(), cache.sequence()
    feed(cache, plan, seq, range(100))
    page = cache.page_alloc(0, 1)
    assert cache.limit_shortfall(64 << 20).bytes == 0
    found = cache.limit_shortfall(100 << 10)
    page_bytes = cache.group_info(0).page_bytes
    assert (found.sequences, found.host) == (7 * page_bytes, page_bytes)
    assert found.bytes > 0 and found.magazines == 0 and found.metadata > 0
    assert found.needed > 100 << 10
    with pytest.raises(pagedkv.Busy):
        cache.set_limit(100 << 10)
    cache.set_limit(found.needed)
    assert cache.limit_shortfall(found.needed).bytes == 0
    cache.page_unref(0, page)
    seq.close()
    assert cache.limit_shortfall(found.needed).host == 0


def test_compact_moves_pages_and_keeps_what_they_hold(cache):
    info = cache.group_info(0)
    per_region = info.pages_per_region
    seqs = [cache.sequence() for _ in range(2 * per_region)]
    for i, seq in enumerate(seqs):  # a page each, over more than two regions' worth
        with cache.batch() as batch:
            batch.add(seq, [i])
            batch.reserve()
            batch.commit()
        cache.page_memory(0, int(seq.pages(0, 0, 1)[0]), 0)[:4] = list(i.to_bytes(4, "little"))
    kept = {i: seq for i, seq in enumerate(seqs) if i % 2}
    for seq in seqs[::2]:
        seq.close()
    before = {i: int(seq.pages(0, 0, 1)[0]) for i, seq in kept.items()}
    held = cache.stats().region_bytes
    assert cache.compact(info.page_bytes) == info.page_bytes
    moved = cache.compact()
    assert 0 < moved <= len(kept) * info.page_bytes and moved % info.page_bytes == 0
    assert cache.stats().region_bytes < held
    after = {i: int(seq.pages(0, 0, 1)[0]) for i, seq in kept.items()}
    changed = sum(before[i] != after[i] for i in kept)
    assert changed == moved // info.page_bytes + 1
    for i, page in after.items():
        memory = cache.page_memory(0, page, 0)
        assert int.from_bytes(bytes(memory[:4]), "little") == i
    assert cache.compact() == 0
    with pagedkv.Cache([group()], storage="none") as ids, pytest.raises(pagedkv.NotSupported):
        ids.compact()


def test_single_pages(cache):
    pages = cache.page_alloc(0, 3)
    assert len(set(pages.tolist())) == 3
    cache.page_ref(0, pages[:1])
    assert cache.page_refs(0, int(pages[0])) == 2
    memory = cache.page_memory(0, int(pages[1]), 1)
    memory[:4] = [1, 2, 3, 4]
    assert cache.page_memory(0, int(pages[1]), 1)[:4].tolist() == [1, 2, 3, 4]
    cache.page_unref(0, pages)
    cache.page_unref(0, pages[:1])
    with pytest.raises(pagedkv.StaleHandle):
        cache.page_unref(0, pages[:1])


def test_admission(cache):
    safe, missing = cache.admit_probe(100)
    assert safe and missing == [0]
    safe, missing = cache.admit_probe(1 << 24)
    assert not safe and missing[0] > 0
    seq = cache.sequence()
    with pytest.raises(pagedkv.Unsafe):
        seq.admit(1 << 24)
    seq.admit(100)
    with cache.batch() as batch:
        batch.add(seq, range(10))
        assert batch.admit_check() is None
    seq.admit_release()


def test_eviction_from_python(cache):
    plan = cache.plan()
    cache.set_evict(pagedkv.EvictPolicy("sink", 64, sinks=4))
    seq = cache.sequence()
    for _ in range(20):
        feed(cache, plan, seq, range(16))
    info = seq.info()
    assert info.resident_tokens == 64 and info.dropped_pages == 16
    assert [run.as_dict() for run in seq.runs()] == [
        {"first": 0, "n_tokens": 16, "shift": 0},
        {"first": 272, "n_tokens": 48, "shift": 256},
    ]
    assert seq.position() == 320 and seq.evict_info().dropped_tokens == 256
    assert not seq.tainted
    with pytest.raises(pagedkv.Dropped):
        seq.truncate(100)
    with pytest.raises(pagedkv.NotSupported):
        cache.set_evict(pagedkv.EvictPolicy("sink", 64, positions="compact"))


def test_score_callback_and_its_exception(cache):
    plan, calls = cache.plan(), []

    def score(pages, n_tokens):
        calls.append((pages.copy(), n_tokens))
        return -pages.astype(np.float32)  # drops the newest evictable page

    seq = cache.sequence()
    seq.set_evict(pagedkv.EvictPolicy("callback", 64, score=score, window=16, sinks=0))
    for _ in range(6):
        feed(cache, plan, seq, range(16))
    assert calls and seq.info().resident_tokens == 64 and seq.tainted
    assert seq.pages(0, 0, 1)[0] != 0  # the oldest page stays under this score

    def broken(pages, n_tokens):
        raise RuntimeError("no score today")

    seq.set_evict(pagedkv.EvictPolicy("callback", 32, score=broken))
    with pytest.raises(RuntimeError, match="no score today"):
        feed(cache, plan, seq, range(16))
    assert seq.length == 7 * 16  # the commit itself took place


def test_tree_mask(cache):
    """Two branches of a speculative tree see their own ancestors only."""
    plan, seq = cache.plan(), cache.sequence()
    feed(cache, plan, seq, range(9))
    visible = np.array([[1, 0, 0], [1, 1, 0], [1, 0, 1]], bool)
    q, k, v = rows(3, HEADS), rows(3, KV), rows(3, KV)
    out = np.empty_like(q)
    past_k, past_v = seq.read(0, 0, 9)
    with cache.batch() as batch:
        batch.add(seq, None, 3)
        batch.reserve()
        plan.set_tree(0, visible, [0, 1, 1])
        plan.build(batch)
        plan.write(0, k, v)
        plan.attend(0, q, out)
    for row in range(3):
        keys = np.concatenate([past_k, k[visible[row]]])
        values = np.concatenate([past_v, v[visible[row]]])
        want = dense(q[row : row + 1], keys, values, len(keys) - 1)
        np.testing.assert_allclose(out[row : row + 1], want, atol=2e-6)


def test_merge_states():
    q, k, v = rows(4, 1), rows(10, 1), rows(10, 1)

    def state(keys, values):
        s = q[:, 0] @ keys[:, 0].T
        m = s.max(1, keepdims=True)
        p = np.exp(s - m)
        return ((p / p.sum(1, keepdims=True)) @ values[:, 0], (m[:, 0] + np.log(p.sum(1))))

    out_a, lse_a = state(k[:6], v[:6])
    out_b, lse_b = state(k[6:], v[6:])
    pagedkv.merge_states(out_a, lse_a, out_b, lse_b)
    want, lse = state(k, v)
    np.testing.assert_allclose(out_a, want, atol=1e-5)
    np.testing.assert_allclose(lse_a, lse, atol=1e-5)
    with pytest.raises(ValueError):
        pagedkv.merge_states(out_a, lse_a.astype(np.float64), out_b, lse_b)


def test_mass_sums_to_one_per_query_head(cache):
    with cache.plan(mass=1) as plan:
        seq = cache.sequence()
        feed(cache, plan, seq, range(50))
        with cache.batch() as batch:
            batch.add(seq, None, 2)
            batch.reserve()
            plan.build(batch)
            q = rows(2, HEADS)
            plan.write(0, rows(2, KV), rows(2, KV))
            plan.attend(0, q, np.empty_like(q))
            mass = plan.mass(0, 0, 1, 4)
        assert mass.sum() == pytest.approx(2 * HEADS / KV, abs=1e-3)


def test_ids_only_cache():
    with pagedkv.Cache([group(dtype="f16")], storage="none", memory_limit=64 << 20) as cache:
        seq = cache.sequence()
        with cache.batch() as batch:
            batch.add(seq, range(100))
            batch.reserve()
            assert len(batch.csr()[1]) == 7
            batch.commit()
        with pytest.raises(pagedkv.NotSupported):
            cache.plan()


def test_closing_the_cache_closes_its_plans():
    cache = pagedkv.Cache([group()], memory_limit=16 << 20)
    plan, seq = cache.plan(), cache.sequence()
    cache.close()
    cache.close()
    seq.close()
    plan.close()
    with pytest.raises(ValueError, match="closed"):
        cache.stats()


def test_a_call_of_the_binding_makes_few_calls(cache):
    """What a binding call costs beyond the C call, counted: ``eval.speed overhead`` times it."""
    plan, seq = cache.plan(), cache.sequence()
    with cache.batch() as batch:
        batch.add(seq, None, 1)
        batch.reserve()
        plan.build(batch)
        k, v, q = rows(1, KV), rows(1, KV), rows(1, HEADS)
        out = np.empty_like(q)
        rk, rv, rq, ro = (pagedkv.Rows(k), pagedkv.Rows(v), pagedkv.Rows(q), pagedkv.RowsOut(out))

        def calls(call):
            made = 0

            def count(_frame, event, _argument):
                nonlocal made
                made += event in ("call", "c_call")

            sys.setprofile(count)
            try:
                call()
            finally:
                sys.setprofile(None)
            return made

        cost = {
            "write(arrays)": calls(lambda: plan.write(0, k, v)),
            "write(rows)": calls(lambda: plan.write(0, rk, rv)),
            "attend(arrays)": calls(lambda: plan.attend(0, q, out)),
            "attend(rows)": calls(lambda: plan.attend(0, rq, ro)),
            "length": calls(lambda: seq.length),
        }
    print(cost)
    assert max(cost["write(arrays)"], cost["attend(arrays)"]) <= 22, cost
    assert max(cost["write(rows)"], cost["attend(rows)"]) <= 10, cost
    assert cost["length"] <= 4, cost
