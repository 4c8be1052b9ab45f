"""What a caller can get wrong must be an exception, and must touch nothing: shapes against the
plan, numbers that do not fit, objects that were dropped, memory that is gone."""

from __future__ import annotations

import copy
import ctypes as C
import gc
import pickle
import threading
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest

import pagedkv
from pagedkv import CONSTANTS, errors

LAYERS, KV, HEADS, DIM, DIM_V = 2, 2, 4, 32, 16
MARK = np.float32(-77.0)


def group(**changes):
    shape = {"n_layers": LAYERS, "kv_heads": KV, "head_dim": DIM, "head_dim_v": DIM_V}
    return pagedkv.Group(**{**shape, "q_heads": HEADS, "dtype": "f32", **changes})


@pytest.fixture
def cache():
    with pagedkv.Cache([group()], memory_limit=64 << 20) as made:
        yield made
        if not made.closed:
            made.verify()


def rows(n, heads, dim=DIM):
    return np.full((n, heads, dim), 0.5, np.float32)


@pytest.fixture
def step(cache):
    """A plan built for eight new tokens of one sequence."""
    plan, seq = cache.plan(), cache.sequence()
    with cache.batch() as batch:
        batch.add(seq, range(8))
        batch.reserve()
        plan.build(batch)
        yield plan


# shapes against the plan


def test_a_short_output_view_overwrites_nothing(step):
    """One row of a larger array as the output of eight tokens: the other rows are a neighbour's."""
    step.write(0, rows(8, KV), rows(8, KV, DIM_V))
    whole = np.full((8, HEADS, DIM_V), MARK, np.float32)
    with pytest.raises(ValueError, match="out has shape"):
        step.attend(0, rows(8, HEADS), whole[:1])
    assert (whole == MARK).all()
    lse = np.full((8, HEADS), MARK, np.float32)
    out = np.full((8, HEADS, DIM_V), MARK, np.float32)
    with pytest.raises(ValueError, match="lse"):
        step.attend(0, rows(8, HEADS), out, lse[:1])
    assert (out == MARK).all() and (lse == MARK).all()


WRONG = [(7, KV, DIM), (9, KV, DIM), (8, KV + 1, DIM), (8, KV, DIM - 1), (0, KV, DIM)]


@pytest.mark.parametrize("shape", WRONG)
def test_write_compares_every_axis_with_the_plan(step, shape):
    right_k, right_v = rows(8, KV), rows(8, KV, DIM_V)
    with pytest.raises(ValueError, match="k has shape"):
        step.write(0, np.zeros(shape, np.float32), right_v)
    with pytest.raises(ValueError, match="v has shape"):
        step.write(0, right_k, np.zeros(shape, np.float32))
    with pytest.raises(ValueError, match="k has shape"):
        step.write(0, pagedkv.Rows(np.zeros(shape, np.float32)), right_v)


@pytest.mark.parametrize("shape", [(7, HEADS, DIM), (8, HEADS - 1, DIM), (8, HEADS, DIM + 1)])
def test_attend_compares_every_axis_with_the_plan(step, shape):
    step.write(0, rows(8, KV), rows(8, KV, DIM_V))
    out = np.full((8, HEADS, DIM_V), MARK, np.float32)
    with pytest.raises(ValueError, match="q has shape"):
        step.attend(0, np.zeros(shape, np.float32), out)
    with pytest.raises(ValueError, match="q has shape"):
        step.attend_reference(0, np.zeros(shape, np.float32))
    with pytest.raises(ValueError, match="out has shape"):
        step.attend(0, rows(8, HEADS), rows(8, HEADS, DIM))  # keys' size, not values'
    assert (out == MARK).all()


def test_a_broadcast_shape_does_not_wrap(step):
    """2**32 + KV heads in a view of one element must not look like KV heads."""
    huge = np.broadcast_to(np.zeros((8, 1, DIM), np.float32), (8, 2**32 + KV, DIM))
    with pytest.raises(ValueError, match="k has shape"):
        step.write(0, huge, rows(8, KV, DIM_V))


def test_outputs_must_be_writable_and_of_their_type(step):
    step.write(0, rows(8, KV), rows(8, KV, DIM_V))
    q, out = rows(8, HEADS), rows(8, HEADS, DIM_V)
    lse = np.zeros((8, HEADS), np.float32)
    lse.flags.writeable = False
    with pytest.raises(ValueError, match="lse is read-only"):
        step.attend(0, q, out, lse)
    with pytest.raises(ValueError, match="lse"):
        step.attend(0, q, out, np.zeros((8, HEADS)))
    with pytest.raises(ValueError, match="lse"):
        step.attend(0, q, out, np.zeros((HEADS, 8), np.float32).T)
    with pytest.raises(TypeError):
        step.attend(0, q, np.zeros((8, HEADS, DIM_V)))
    with pytest.raises(TypeError):  # the other byte order is no float32
        step.attend(0, q.astype(">f4"), out)
    with pytest.raises(ValueError):
        step.attend(0, q, np.broadcast_to(np.zeros(1, np.float32), (8, HEADS, DIM_V)))


@pytest.mark.parametrize("layer", [LAYERS, -1, 2**32])
def test_layers_are_the_caches(step, layer):
    with pytest.raises(ValueError, match="layer"):
        step.write(layer, rows(8, KV), rows(8, KV, DIM_V))
    with pytest.raises(ValueError, match="layer"):
        step.attend(layer, rows(8, HEADS), rows(8, HEADS, DIM_V))
    with pytest.raises(TypeError):
        step.write(0.0, rows(8, KV), rows(8, KV, DIM_V))


@pytest.mark.parametrize("ith, nth", [(1, 1), (-1, 1), (0, 0), (0, 2**32 + 1), (2**32, 2**33)])
def test_thread_numbers_do_not_wrap(step, ith, nth):
    with pytest.raises(ValueError, match="ith"):
        step.write(0, rows(8, KV), rows(8, KV, DIM_V), ith, nth)
    with pytest.raises(ValueError, match="ith"):
        step.attend(0, rows(8, HEADS), rows(8, HEADS, DIM_V), None, ith, nth)


def test_a_plan_that_was_never_built_says_so(cache):
    plan = cache.plan()
    with pytest.raises(pagedkv.OutOfOrder):
        plan.write(0, rows(3, KV), rows(3, KV, DIM_V))
    with pytest.raises(pagedkv.OutOfOrder):
        plan.attend(0, rows(3, HEADS), rows(3, HEADS, DIM_V))


def test_shapes_follow_the_step(cache):
    plan, seq = cache.plan(), cache.sequence()
    for n in (3, 5, 3):
        with cache.batch() as batch:
            batch.add(seq, range(n))
            batch.reserve()
            plan.build(batch)
            plan.write(0, rows(n, KV), rows(n, KV, DIM_V))
            with pytest.raises(ValueError, match="k has shape"):
                plan.write(0, rows(n + 1, KV), rows(n, KV, DIM_V))
            batch.commit()


def test_groups_of_different_geometry():
    groups = [group(n_layers=1, layers=[1]), group(n_layers=1, layers=[0], kv_heads=1, q_heads=2)]
    with pagedkv.Cache(groups, memory_limit=64 << 20) as cache:
        plan, seq = cache.plan(), cache.sequence()
        with cache.batch() as batch:
            batch.add(seq, range(4))
            batch.reserve()
            plan.build(batch)
            plan.write(0, rows(4, 1), rows(4, 1, DIM_V))
            plan.write(1, rows(4, KV), rows(4, KV, DIM_V))
            with pytest.raises(ValueError, match="k has shape"):
                plan.write(0, rows(4, KV), rows(4, KV, DIM_V))


def test_tables_of_plan_options_are_measured(cache):
    """The library reads [layers][q_heads] floats from where it is pointed."""
    with pytest.raises(ValueError, match="alibi_slopes"):
        cache.plan(alibi_slopes=np.ones(HEADS - 1))
    with pytest.raises(ValueError, match="sinks"):
        cache.plan(sinks=np.ones((LAYERS - 1, HEADS)))
    with pytest.raises(TypeError, match="sinks_stride"):
        cache.plan(sinks=np.ones((LAYERS, HEADS)), sinks_stride=1 << 20)
    cache.plan(sinks=np.ones((LAYERS, HEADS)), alibi_slopes=np.ones(HEADS)).close()


def test_other_outputs_are_measured(cache):
    seq = cache.sequence()
    with cache.batch() as batch:
        batch.add(seq, range(20))
        batch.reserve()
        table, state = np.full((1, 4), -1, np.int32), np.zeros((1, 4), np.uint64)
        for bad in (table[0], table.astype(np.int64), np.full((2, 4), -1, np.int32), table[:, ::2]):
            with pytest.raises(ValueError):
                batch.block_table_update(bad, state)
        for bad in (np.zeros(4, np.uint64), np.zeros((1, 4), np.int64), state[:, ::2]):
            with pytest.raises(ValueError):
                batch.block_table_update(table, bad)
        with pytest.raises(ValueError):
            batch.block_table_update(table, state, rows=[-1])
        table.flags.writeable = False
        with pytest.raises(ValueError, match="read-only"):
            batch.block_table_update(table, state)
    state = np.zeros((4, 8), np.float32), np.zeros(4, np.float32)
    frozen = np.zeros((4, 8), np.float32)
    frozen.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        pagedkv.merge_states(frozen, state[1], *state)
    with pytest.raises(ValueError):
        pagedkv.merge_states(np.zeros((5, 8), np.float32), state[1], *state)


# numbers


@pytest.mark.parametrize("field", ["n_layers", "kv_heads", "q_heads", "head_dim", "window"])
@pytest.mark.parametrize("value", [2**32 + 2, -1, 2.0])
def test_geometry_does_not_wrap(field, value):
    with pytest.raises((ValueError, TypeError)):
        pagedkv.Cache([group(**{field: value})])


def test_layer_numbers_and_options_do_not_wrap():
    with pytest.raises(ValueError, match="layer"):
        pagedkv.Cache([group(layers=[0, 2**32 + 1])])
    for option in ({"page_tokens": 2**32 + 16}, {"max_sequences": 2**32 + 8}, {"memory_limit": -1}):
        with pytest.raises(ValueError):
            pagedkv.Cache([group()], **option)
    with pytest.raises(ValueError, match="two numbers"):
        pagedkv.Cache([group()], prefix_key=(1,))
    with pagedkv.Cache([group(n_layers=np.int64(2))], memory_limit=np.int64(1 << 24)) as cache:
        assert cache.group_info(0).n_layers == 2


def test_arguments_do_not_wrap(cache):
    seq = cache.sequence()
    for call in (
        lambda: cache.group_info(2**32),
        lambda: cache.page_alloc(0, 2**32 + 1),
        lambda: cache.set_limit(-1),
        lambda: seq.truncate(-1),
        lambda: seq.pin(0, 2**64),
        lambda: pagedkv.EvictPolicy("sink", 2**64 + 64),
        lambda: pagedkv.EvictPolicy("sink", 64, window=2**32),
        lambda: cache.plan(max_threads=2**32 + 1),
        lambda: pagedkv.digest_tokens([1], 0),
    ):
        with pytest.raises((ValueError, OverflowError, MemoryError)):
            call()
    with cache.batch() as batch:
        with pytest.raises(ValueError):
            batch.add(seq, None, 2**32 + 1)


@pytest.mark.parametrize(
    "tokens, error",
    [
        ([1.7, 2.9], TypeError),
        (np.array([1.0, 2.0]), TypeError),
        (["1"], TypeError),
        ([2**31], ValueError),
        (np.array([2**31]), ValueError),
        (np.array([-(2**31) - 1]), ValueError),
        ([[1, 2]], (TypeError, ValueError)),
        (np.ones((2, 2), np.int32), ValueError),
        (np.array([True, False]), TypeError),
    ],
)
def test_token_ids_are_integers_that_fit(cache, tokens, error):
    seq = cache.sequence()
    with cache.batch() as batch:
        with pytest.raises(error):
            batch.add(seq, tokens)
        assert batch.size() == (0, 0)
    for call in (cache.prefix.match, seq.match, lambda t: pagedkv.digest_tokens(t, 16)):
        with pytest.raises(error):
            call(tokens)


def test_token_ids_of_any_integer_kind(cache):
    for tokens in ([1, 2], (1, 2), range(1, 3), np.array([1, 2], np.uint8), [np.int64(1), 2]):
        seq = cache.sequence()
        with cache.batch() as batch:
            batch.add(seq, tokens)
            batch.reserve()
            batch.commit()
        assert seq.length == 2
    assert cache.prefix.match([]).n_tokens == 0


def test_counts_and_pages_do_not_wrap(cache):
    seq = cache.sequence()
    with cache.batch() as batch:
        batch.add(seq, range(4))
        batch.reserve()
        for bad, error in (([2.5], TypeError), ([-1], ValueError), ([2**32 + 2], ValueError)):
            with pytest.raises(error):
                batch.commit_partial(bad)
        batch.commit_partial([2])
    assert seq.length == 2
    with pytest.raises(ValueError):
        cache.page_ref(0, [-1])
    with pagedkv.BlockIndex(pages=4) as index:
        for bad in ([1.5], [-1]):
            with pytest.raises((TypeError, ValueError)):
                index.replay(bad)


# exceptions


def _raise(name):
    seq = None
    with pagedkv.Cache([group()], memory_limit=16 << 20) as cache:
        seq = cache.sequence()
        if name == "pages":
            with cache.batch() as batch:
                batch.add(seq, None, 1 << 22)
                batch.reserve()
        cache.prefix.unpin(12345)


@pytest.mark.parametrize("kind", sorted(errors._BY_STATUS.values(), key=lambda c: c.__name__))
def test_exceptions_survive_pickling(kind):
    status = next(s for s, c in errors._BY_STATUS.items() if c is kind)
    error = errors.make_error(status, "pkv_call", detail="what exactly")
    assert type(error) is kind
    if isinstance(error, pagedkv.OutOfPages):
        error.missing = (3, 4)
    for made in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(made) is kind and str(made) == str(error)
        assert (made.status, made.name, made.call, made.detail) == (
            status,
            error.name,
            "pkv_call",
            "what exactly",
        )
        assert getattr(made, "missing", None) == getattr(error, "missing", None)


def test_a_process_pool_hands_exceptions_over():
    with ProcessPoolExecutor(1) as pool:
        with pytest.raises(pagedkv.OutOfPages) as caught:
            pool.submit(_raise, "pages").result()
        assert caught.value.missing and caught.value.missing[0] > 0
        with pytest.raises(pagedkv.StaleHandle, match="unpin"):
            pool.submit(_raise, "pin").result()


def test_the_runtimes_exceptions_survive_pickling():
    from pagedkv_runtime.paged import Blocked

    made = pickle.loads(pickle.dumps(Blocked(3)))
    assert made.entry == 3 and str(made) == str(Blocked(3))


# life of objects


def test_dropped_plans_are_destroyed(cache):
    seq = cache.sequence()

    def use():
        plan = cache.plan()
        with cache.batch() as batch:
            batch.add(seq, None, 1)
            batch.reserve()
            plan.build(batch)

    use()
    before = cache.stats().metadata_bytes
    for _ in range(300):
        use()
    assert cache.stats().metadata_bytes <= before + 4096


def test_dropped_sequences_are_destroyed():
    with pagedkv.Cache([group()], memory_limit=16 << 20, max_sequences=16) as cache:
        for i in range(200):
            seq = cache.sequence()
            with cache.batch() as batch:
                batch.add(seq, [i])
                batch.reserve()
                batch.commit()
            seq.fork()
        del seq, batch
        assert cache.stats().sequences == 0 and cache.stats().pages_used == 0
        cache.verify()


def test_dropped_batches_are_aborted():
    with pagedkv.Cache([group()], memory_limit=16 << 20, max_batches=4) as cache:
        for _ in range(20):
            batch, seq = cache.batch(), cache.sequence()
            batch.add(seq, range(40))
            batch.reserve()
            del batch, seq
        assert cache.stats().as_dict()["batches"] == 0
        assert cache.stats().sequences == 0 and cache.stats().pages_used == 0
        # one that only the batch still holds: it must not end before the batch
        batch = cache.batch()
        batch.add(cache.sequence(), range(40))
        batch.reserve()
        gc.collect()
        assert cache.stats().sequences == 1
        batch.commit()
        assert cache.stats().sequences == 0
        cache.verify()


def test_dropped_claims_are_given_back(cache):
    most = 0
    while cache.admit_probe(1 << most)[0]:
        most += 1
    for _ in range(3):
        seq = cache.sequence()
        seq.admit(1 << (most - 1))
        del seq
        assert cache.admit_probe(1 << (most - 1))[0]
        assert cache.stats().sequences == 0


def test_a_second_name_owns_nothing(cache):
    seq = cache.sequence()
    pagedkv.Sequence(cache, seq.handle)
    assert cache.stats().sequences == 1 and seq.length == 0


def test_finalisers_run_on_any_thread(cache):
    """Objects in reference cycles are collected wherever the collector happens to run."""
    for _ in range(50):
        cycle = [cache.sequence(), cache.plan()]
        cycle.append(cycle)
        del cycle
    thread = threading.Thread(target=gc.collect)
    thread.start()
    thread.join()
    assert cache.stats().sequences == 0


def test_an_index_ends_with_its_object():
    index = pagedkv.BlockIndex(pages=4)
    index.close()
    with pytest.raises((pagedkv.PagedKVError, ValueError)):
        index.replay([1])
    with pytest.raises((pagedkv.PagedKVError, ValueError)):
        index.stats()


def test_everything_after_close_is_an_error():
    cache = pagedkv.Cache([group()], memory_limit=16 << 20)
    plan, seq, batch, magazine = cache.plan(), cache.sequence(), cache.batch(), cache.magazine(0)
    policy = pagedkv.EvictPolicy("sink", 64)
    cache.close()
    calls = [
        lambda: seq.length,
        lambda: len(seq),
        lambda: seq.fork(),
        lambda: seq.truncate(0),
        lambda: seq.info(),
        lambda: seq.pages(0, 0, 1),
        lambda: seq.read(0, 0, 1),
        lambda: seq.match([1, 2]),
        lambda: seq.attach_prefix([1, 2]),
        lambda: seq.set_namespace(b"x"),
        lambda: seq.set_evict(policy),
        lambda: seq.runs(),
        lambda: seq.tainted,
        lambda: seq.admit(10),
        lambda: batch.add(seq, [1]),
        lambda: batch.reserve(),
        lambda: batch.commit(),
        lambda: batch.size(),
        lambda: batch.csr(),
        lambda: plan.build(batch),
        lambda: plan.write(0, rows(1, KV), rows(1, KV, DIM_V)),
        lambda: plan.attend(0, rows(1, HEADS), rows(1, HEADS, DIM_V)),
        lambda: plan.mass(0, 0, 0, 1),
        lambda: magazine.alloc(),
        lambda: cache.stats(),
        lambda: cache.sequence(),
        lambda: cache.prefix.match([1]),
        lambda: cache.page_alloc(0, 1),
    ]
    for number, call in enumerate(calls):
        with pytest.raises(ValueError, match="closed"):
            call()
            pytest.fail(f"call {number}")
    assert seq.closed
    for made in (cache, plan, seq, batch, magazine):
        assert "closed" in repr(made) or "ended" in repr(made)
    seq.close()
    batch.__exit__(None, None, None)
    magazine.close()


def test_page_views_outlive_the_cache():
    cache = pagedkv.Cache([group()], memory_limit=16 << 20)
    page = int(cache.page_alloc(0, 1)[0])
    view = cache.page_memory(0, page, 1)
    part = view[8:16]
    view[:] = 7
    cache.close()
    del cache, view
    gc.collect()
    assert part.tolist() == [7] * 8
    part[:] = 9
    assert part.sum() == 72


def test_page_views_keep_their_page(cache):
    """Freed and trimmed away while a view still shows it."""
    page = int(cache.page_alloc(0, 1)[0])
    view = cache.page_memory(0, page, 0)
    view[:] = 5
    cache.page_unref(0, [page])
    cache.trim()
    assert cache.stats().pages_used == 1 and (view == 5).all()
    again = cache.page_memory(0, page, 0)
    del view
    assert cache.stats().pages_used == 1 and (again == 5).all()
    del again
    assert cache.stats().pages_used == 0
    with pytest.raises(pagedkv.StaleHandle):
        cache.page_memory(0, page, 0)
    with pytest.raises(pagedkv.PagedKVError):
        cache.page_memory(0, int(cache.page_alloc(0, 1)[0]), LAYERS)
    assert cache.stats().pages_used == 1


def test_pages_in_plain_layout(cache):
    plan, seq = cache.plan(), cache.sequence()
    k = np.arange(16 * KV * DIM, dtype=np.float32).reshape(16, KV, DIM)
    v = -np.arange(16 * KV * DIM_V, dtype=np.float32).reshape(16, KV, DIM_V)
    with cache.batch() as batch:
        batch.add(seq, range(16))
        batch.reserve()
        plan.build(batch)
        plan.write(1, k, v)
        batch.commit()
    page = int(seq.pages(0, 0, 1)[0])
    plain = cache.page_unpack(0, page, 1)
    assert plain == k.tobytes() + v.tobytes()
    hnd = cache.page_unpack(0, page, 1, "hnd")
    assert hnd == k.swapaxes(0, 1).tobytes() + v.swapaxes(0, 1).tobytes()
    other = int(cache.page_alloc(0, 1)[0])
    cache.page_pack(0, other, 1, plain)
    assert cache.page_unpack(0, other, 1) == plain
    with pytest.raises(ValueError, match="bytes"):
        cache.page_pack(0, other, 1, plain[:-4])


def test_magazines(cache):
    with cache.magazine(0, 8) as magazine:
        pages = {magazine.alloc() for _ in range(20)}
        assert len(pages) == 20
        for page in pages:
            magazine.free(page)
        with pytest.raises(pagedkv.StaleHandle):
            magazine.free(pages.pop())
    magazine.close()


def test_an_empty_sequence_is_true(cache):
    seq = cache.sequence()
    assert len(seq) == 0 and bool(seq) is True
    with cache.batch() as batch:
        assert bool(batch) is True


def test_everything_has_a_repr(cache):
    plan, seq = cache.plan(), cache.sequence()
    assert "not built" in repr(plan)
    with cache.batch() as batch:
        batch.add(seq, [1, 2, 3])
        batch.reserve()
        plan.build(batch)
        assert "1 entries" in repr(batch) and "3 new tokens" in repr(plan)
        batch.commit()
    assert "ended" in repr(batch) and "3 tokens" in repr(seq)
    assert "1 sequences" in repr(cache) and "PrefixIndex" in repr(cache.prefix)
    assert "budget" not in repr(pagedkv.Rows(rows(2, 3))) and "(2, 3, 32)" in repr(
        pagedkv.Rows(rows(2, 3))
    )
    policy = repr(pagedkv.EvictPolicy("sink", 64, positions="compact"))
    assert policy == "EvictPolicy('sink', 64, unit='tokens', positions='compact')"
    assert "external" not in repr(group(external=np.zeros(8, np.uint8)))
    with pagedkv.BlockIndex(pages=4) as index:
        assert "0 pages" in repr(index)
    assert "closed" in repr(index)
    seq.close()
    assert "closed" in repr(seq)
    assert "Match(n_tokens=0" in repr(cache.prefix.match([1]))
    assert "pages_used=" in repr(cache.stats())


# arrays of others


class Tensor:
    """An object that knows DLPack and nothing else, in either form of the protocol."""

    def __init__(self, array, versioned=True, device=(1, 0)):
        self.array, self.versioned, self.device = array, versioned, device

    def __dlpack_device__(self):
        return self.device

    def __dlpack__(self, **keywords):
        if keywords and not self.versioned:
            raise TypeError("unexpected keyword")
        return self.array.__dlpack__(**keywords)


@pytest.mark.parametrize("wrap", [Tensor, lambda a: Tensor(a, False), memoryview, lambda a: a])
def test_arrays_come_in_without_copies(step, wrap):
    rng = np.random.default_rng(3)
    k = rng.normal(size=(8, KV, DIM)).astype(np.float32)
    v = rng.normal(size=(8, KV, DIM_V)).astype(np.float32)
    q = rng.normal(size=(8, HEADS, DIM)).astype(np.float32)
    assert pagedkv.Rows(wrap(k)).struct.data == k.ctypes.data
    out, lse = np.zeros((8, HEADS, DIM_V), np.float32), np.zeros((8, HEADS), np.float32)
    step.write(0, wrap(k), wrap(v))
    step.attend(0, wrap(q), wrap(out), wrap(lse))
    want, want_lse = step.attend_reference(0, wrap(q))
    np.testing.assert_allclose(out, want, atol=1e-5)
    np.testing.assert_allclose(lse, want_lse, atol=1e-5)
    strided = np.zeros((8, 2 * KV, DIM), np.float32)[:, ::2]
    if wrap is not memoryview:
        assert pagedkv.Rows(wrap(strided)).struct.head_stride == strided.strides[1]
    with pytest.raises(ValueError, match="k has shape"):
        step.write(0, wrap(k[:7]), wrap(v))


def test_half_precision_and_bfloat16_tensors():
    half = np.zeros((2, KV, DIM), np.float16)
    assert pagedkv.Rows(Tensor(half)).struct.dtype == CONSTANTS["DTYPE_F16"]
    bits = np.zeros((2, KV, DIM), np.uint16)
    assert pagedkv.Rows(Tensor(bits), dtype="bf16").struct.dtype == CONSTANTS["DTYPE_BF16"]

    class BFloat(Tensor):
        """numpy exports no bfloat16: the type code of its capsule is changed in place."""

        def __dlpack__(self, **keywords):
            from pagedkv import _dlpack

            capsule = self.array.__dlpack__()
            managed = _dlpack._Tensor.from_address(_dlpack._pointer(capsule, b"dltensor"))
            managed.dtype.code = 4
            return capsule

    assert pagedkv.Rows(BFloat(bits)).struct.dtype == CONSTANTS["DTYPE_BF16"]
    with pytest.raises(TypeError):
        pagedkv.Rows(Tensor(np.zeros((2, KV, DIM))))
    with pytest.raises(TypeError):
        pagedkv.Rows(half, dtype="bf16")


def test_tensors_elsewhere_and_read_only_ones_are_refused():
    array = np.zeros((2, KV, DIM), np.float32)
    with pytest.raises(ValueError, match="device"):
        pagedkv.Rows(Tensor(array, device=(2, 0)))
    array.flags.writeable = False
    pagedkv.Rows(memoryview(array))
    with pytest.raises(ValueError, match="read-only"):
        pagedkv.RowsOut(memoryview(array))
    if np.lib.NumpyVersion(np.__version__) >= "2.1.0":  # older ones export no read-only arrays
        with pytest.raises(ValueError, match="read-only"):
            pagedkv.RowsOut(Tensor(array))
    with pytest.raises(TypeError, match="neither an array"):
        pagedkv.Rows([[[1.0]]])


def test_a_tensor_stays_alive_as_long_as_its_rows():
    array = np.full((2, KV, DIM), 3, np.float32)
    rows_of_it = pagedkv.Rows(Tensor(array))
    where = rows_of_it.struct.data
    del array
    gc.collect()
    np.empty((2, KV, DIM), np.float32)[:] = 1
    assert C.c_float.from_address(where).value == 3


@pytest.mark.parametrize("library", ["torch", "jax"])
def test_tensors_of_real_libraries(step, library):
    module = pytest.importorskip(library)
    if library == "torch":
        k, v = module.ones(8, KV, DIM), module.ones(8, KV, DIM_V)
        step.write(0, k.bfloat16(), v.half())
        out = module.zeros(8, HEADS, DIM_V)
        step.attend(0, module.ones(8, HEADS, DIM), out)
        assert module.allclose(out, module.ones_like(out), atol=1e-6)
    else:
        k, v = module.numpy.ones((8, KV, DIM)), module.numpy.ones((8, KV, DIM_V))
        step.write(0, k, v)
        out = np.zeros((8, HEADS, DIM_V), np.float32)
        step.attend(0, module.numpy.ones((8, HEADS, DIM)), out)
        np.testing.assert_allclose(out, 1, atol=1e-6)
        with pytest.raises(ValueError, match="read-only"):
            step.attend(0, module.numpy.ones((8, HEADS, DIM)), module.numpy.zeros(out.shape))
